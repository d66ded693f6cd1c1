"""Files made to do harm are refused by name: nothing in them runs, nothing is written elsewhere, no page obeys them."""
import dataclasses
import html.parser
import io
import json
import os
import pickle
import struct
import time
import zipfile

import numpy as np
import pytest
import report_case
import safetensors.numpy
from ml_collections import ConfigDict

from htd_jax import checkpoints, config as config_lib
from htd_jax.data.records import Category
from htd_jax.errors import UserError
from htd_jax.evaluation import coco, drawing, report
from htd_jax.weights import files, loading

MEGABYTES_100 = 100 * 2**20


class Touch:
    """Pickled, it makes a file when loaded."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


@pytest.fixture
def trap(tmp_path):
    """A folder that must not exist afterwards."""
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def refused(path, *words):
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        files.read(path)
    message = str(error.value)
    assert path.name in message and "\n" not in message and time.monotonic() - started < 30
    for word in words:
        assert word in message, message


# ---- pickles

@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_calls_is_refused(tmp_path, trap, protocol):
    content = {"x": Touch(trap), "model": {"conv1.weight": np.ones(3, np.float32)}}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    refused(tmp_path / "a.pkl", "mkdir")


# Opcodes by hand: a function by its name, from a module that is allowed, through attributes, through the memo.
CALLS = [b"cos\nsystem\n(S'mkdir {0}'\ntR.", b"cbuiltins\neval\n(S'__import__(\"os\").mkdir(\"{0}\")'\ntR.",
         b"cnumpy\nload\n(S'{0}'\ntR.", b"cnumpy\nsave\n(S'{0}'\nS'x'\ntR.", b"cnumpy\nfromfile\n(S'{0}'\ntR.",
         b"c_codecs\nlookup\n(S'{0}'\ntR.", b"c_codecs\nopen\n(S'{0}'\ntR.",
         b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", b"\x80\x04\x8c\x05numpy\x8c\x0aos.system\x93.",
         b"(icollections\nnamedtuple\nS'a'\nS'{0}'\n."]


@pytest.mark.parametrize("call", CALLS)
def test_opcodes_that_call_are_refused(tmp_path, trap, call):
    (tmp_path / "a.pkl").write_bytes(call.replace(b"{0}", str(trap).encode()))
    refused(tmp_path / "a.pkl")


def test_a_torch_file_that_calls_is_refused(tmp_path, trap):
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {"x": Touch(trap)}}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "refused")


def test_a_torch_file_with_paths_that_lead_out_writes_nothing(tmp_path, trap):
    pytest.importorskip("torch")
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("../executed/data.pkl", pickle.dumps({}))
        archive.writestr("/executed/version", "3")
    refused(tmp_path / "a.pth")


def test_a_torch_file_that_unpacks_to_much_is_refused_at_once(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(3)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as whole, \
            zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in whole.namelist():
            bomb.writestr(name, bytes(MEGABYTES_100) if "/data/" in name else whole.read(name))
    refused(tmp_path / "a.pth")


# ---- other containers

def header(content, length=None):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text


@pytest.mark.parametrize("data", [
    header(b"{}", 2**63), header(b"{}", 2**40), header(b"{}", 0), header(b"[" * 100_000), header(b'{"a":' * 10_000),
    header({"a": dict(dtype="F32", shape=[2**40], data_offsets=[0, 2**42])}),
    header({"a": dict(dtype="F32", shape=[2**31, 2**31, 2**31], data_offsets=[0, 4])}) + b"0000",
    header({"a": dict(dtype="F32", shape=[-1], data_offsets=[0, 4])}) + b"0000",
    header({"a": dict(dtype="F32", shape=[1], data_offsets=[4, 0])}) + b"0000",
    header({k: dict(dtype="F32", shape=[1], data_offsets=[0, 4]) for k in "ab"}) + b"0000",
    header({"a": dict(dtype="PY", shape=[1], data_offsets=[0, 4])}) + b"0000",
    header({"__metadata__": {"a": 3}}), b"\x00" * 7, b""],
    ids=lambda data: f"{len(data)} bytes")
def test_headers_of_safetensors_that_lie(tmp_path, data):
    (tmp_path / "a.safetensors").write_bytes(data)
    refused(tmp_path / "a.safetensors")


def test_names_in_safetensors_are_but_names(tmp_path):
    safetensors.numpy.save_file({"../../executed": np.ones(1, np.float32)}, tmp_path / "a.safetensors")
    assert list(files.read(tmp_path / "a.safetensors")) == ["../../executed"] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("suffix", [".h5", ".pkl", ".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"\x89HDF\r\n\x1a\n" + b"\x00" * 500, b"PK\x03\x04" + b"\x00" * 500, b"\x80\x04.",
                                     b"\x80\x02X\xff\xff\xff\x7f", b"<html>not found</html>"],
                         ids=["hdf5", "zip", "empty", "length", "html"])
def test_a_file_of_another_kind(tmp_path, suffix, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    refused(tmp_path / f"a{suffix}")


def test_keras_files_of_odd_content(tmp_path):
    h5py = pytest.importorskip("h5py")
    for k, (name, value) in enumerate({"layers/conv/vars/x": 1.0, "conv/conv/kernel:0": "text",
                                       "layers/conv/vars/0": [1.0]}.items()):
        with h5py.File(tmp_path / f"{k}.h5", "w") as file:
            file[name] = value
        refused(tmp_path / f"{k}.h5")


def test_prefixes_of_a_file_are_all_refused(tmp_path):
    whole = io.BytesIO()
    pickle.dump({"model": {"a": np.ones((20, 20), np.float32)}}, whole)
    for data, suffix in ((whole.getvalue(), ".pkl"), (safetensors.numpy.save({"a": np.ones((20, 20), np.float32)}),
                                                     ".safetensors")):
        for length in range(0, len(data) - 1, 37):
            (tmp_path / f"a{suffix}").write_bytes(data[:length])
            refused(tmp_path / f"a{suffix}")


# ---- what is in a checkpoint

def test_shapes_that_differ_are_listed():
    tree = {"backbone": {"conv": {"kernel": np.zeros((3, 3, 2, 4), np.float32)}}}
    with pytest.raises((UserError, KeyError)):
        loading.load_into(tree, {"x": np.zeros(3, np.float32)})


def test_detections_of_weights_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="not finite"):
        coco.to_results(1, dict(boxes=np.full((1, 4), np.nan), scores=np.ones(1), labels=np.zeros(1, int),
                                valid=np.ones(1)), [1])


@pytest.fixture
def workdir(tmp_path):
    """With one saved step, and text beside it."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "5" / "state").mkdir(parents=True)
    checkpoints.write_about(folder, config_lib.default_config(), [(1, "cat")])
    return folder


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"model": 3}', '{"model": {"depth": {"a": 1}}}',
                                  "[" * 100_000, '{"seed": 1e999}', '{"seed": "<script>alert(1)</script>"}', "\ud800",
                                  '{"seed": %s}'],
                         ids=lambda text: text[:20])
def test_config_json_of_anything(workdir, text):
    text = text % ("9" * 10_000) if "%s" in text else text
    (workdir / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="config"):
        checkpoints.load_config(workdir)


@pytest.mark.parametrize("text", ["", "{", "null", "3", '{"a": 1}', "[1]", '[["a"]]', "[[1, 2, 3]]", "[" * 100_000,
                                  "\ud800", '[[1, {"a": 2}]]'], ids=lambda text: text[:20])
def test_categories_json_of_anything(workdir, text):
    (workdir / "categories.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match="categories.json"):
        checkpoints.load_categories(workdir)


def test_json_of_100_megabytes_is_refused_in_seconds(workdir):
    for name, load in (("config.json", checkpoints.load_config), ("categories.json", checkpoints.load_categories)):
        (workdir / name).write_text('["' + "x" * MEGABYTES_100 + '"]')
        started = time.monotonic()
        with pytest.raises(UserError, match=name):
            load(workdir)
        assert time.monotonic() - started < 30


def test_a_symlinked_workdir_is_read_where_it_leads(workdir, tmp_path):
    (tmp_path / "link").symlink_to(workdir)
    assert checkpoints.load_categories(tmp_path / "link") == checkpoints.load_categories(workdir)


def test_a_symlink_that_leads_to_itself(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "link")
    for load in (checkpoints.load_config, checkpoints.restore_params):
        with pytest.raises(UserError, match="link"):
            load(tmp_path / "link")


# ---- pages and pictures

MARKUP = ('<script>alert(1)</script>', '"><img src=x onerror=alert(1)>', "</script><script>alert(2)</script>",
          "${title}", "<!--", "\\u003cscript>", "'; alert(1); //", "a\nb\x00\u2028", "javascript:alert(1)")


class Elements(html.parser.HTMLParser):
    """Counts elements, and keeps what runs."""

    def __init__(self):
        super().__init__()
        self.tags, self.handlers, self.links, self.scripts, self._in = [], [], [], [], None

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._in = tag
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        self.links += [value for name, value in attributes if name in ("src", "href") and value]

    def handle_data(self, data):
        if self._in == "script":
            self.scripts.append(data)


def page(path, names, file_name, command):
    class Images(report_case.Images):
        categories = tuple(Category(id_, name) for id_, name in zip((7, 2), names))

        def record(self, i):
            return dataclasses.replace(super().record(i), name=file_name)

    rows = [dict(zip(("image_id", "category_id", "bbox", "score"), row)) for row in report_case.RESULTS]
    truth = Images().ground_truth()
    evaluation = coco.evaluation(truth, rows)
    report.write(path, coco.metrics(evaluation, truth["categories"]), evaluation, Images(),
                 ConfigDict({"note": command}), command, None)
    parser = Elements()
    parser.feed(path.read_text(encoding="utf-8"))
    return parser


@pytest.mark.parametrize("markup", MARKUP)
def test_a_report_shows_markup_and_does_not_obey_it(tmp_path, markup):
    plain = page(tmp_path / "plain.html", ("cat", "dog"), "a.jpg", "eval.py")
    hostile = page(tmp_path / "hostile.html", (markup, markup + "2"), markup, markup)
    assert hostile.tags == plain.tags and hostile.handlers == plain.handlers
    assert len(hostile.scripts) == len(plain.scripts)
    assert not [link for link in hostile.links if not link.startswith(("data:", "#"))]


@pytest.mark.parametrize("name", [*MARKUP, "x" * 10_000, "\U0001f600" * 50, ""])
def test_pictures_take_any_name(name):
    picture = drawing.draw(np.zeros((40, 60, 3), np.uint8), np.float32([(3, 3, 30, 30)]), np.zeros(1, int), np.ones(1),
                           [name])
    assert np.asarray(picture).shape[2] == 3
