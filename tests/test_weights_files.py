"""Reading and writing files of tensors: what comes back, and what is refused."""
import os
import pickle
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from htd_jax.errors import UserError
from htd_jax.weights import files


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch is not installed: .pth files cannot be tested")


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_safetensors_round_trip_of_a_transposed_view(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)
    files.write(tmp_path / "sub" / "w.safetensors", {"a": array, "n": np.zeros((), np.int64)})
    back = files.read(tmp_path / "sub" / "w.safetensors")
    assert np.array_equal(back["a"], array) and back["n"].dtype == np.int64
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["w.safetensors"]


def test_half_precision_becomes_float32(tmp_path):
    values = np.array([1.5, -2.25, 1024.0])
    kinds = {"h": np.float16, "b": ml_dtypes.bfloat16, "d": np.float64}
    safetensors.numpy.save_file({name: values.astype(kind) for name, kind in kinds.items()}, tmp_path / "w.safetensors")
    for array in files.read(tmp_path / "w.safetensors").values():
        assert array.dtype == np.float32 and np.array_equal(array, values)


@pytest.mark.parametrize("name, content, word", [
    ("w.safetensors", b"hello world, no tensors", "damaged"), ("w.safetensors", b"", "damaged"),
    ("w.ckpt", b"x", ".ckpt"), ("w", b"x", "kind of file"), ("missing.safetensors", None, "no such file")])
def test_bad_file_is_one_line_that_names_it(tmp_path, name, content, word):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        files.read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and word in str(error.value) and "\n" not in str(error.value)


def write_h5(path, tensors):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, array in tensors.items():
            file[f"{name}/{name}/kernel:0"] = array


def write_torch(path, tensors):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path)


WRITERS = {"w.safetensors": lambda path, tensors: safetensors.numpy.save_file(tensors, path), "w.pth": write_torch,
           "w.pkl": lambda path, tensors: path.write_bytes(pickle.dumps(tensors)), "w.h5": write_h5}


@pytest.mark.parametrize("value, kind", [(np.nan, np.float32), (-np.inf, np.float16), (1e300, np.float64)], ids=str)
@pytest.mark.parametrize("name", WRITERS)
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, name, value, kind):
    tensors = {"a": np.ones(3, kind), "b": np.array([1, value, 2, value], kind)}
    WRITERS[name](tmp_path / name, tensors)
    with pytest.raises(UserError, match=rf"{name}: 2 of 4 values of b.* are nan or infinite.*give an earlier"):
        files.read(tmp_path / name)


def test_truncated_safetensors_is_damaged(tmp_path):
    path = tmp_path / "w.safetensors"
    files.write(path, {"a": np.ones(1000, np.float32)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match="damaged"):
        files.read(path)


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(UserError, match="written as .safetensors"):
        files.write(tmp_path / "w.pth", {"a": np.ones(1)})


def test_without_torch_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "w.pth").write_bytes(b"anything")
    with pytest.raises(UserError, match="pip install torch"):
        files.read(tmp_path / "w.pth")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_checkpoint_of_mmcv(torch, tmp_path, legacy):
    """As MMDetection writes it: tensors under `state_dict`, beside `meta` (plain containers) and the optimiser."""
    meta = dict(mmdet_version="2.7.0", config="a = 1", CLASSES=("cat", "dog"), epoch=12, iter=7, env_info=None)
    weights = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)).state_dict()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1).state_dict()
    torch.save(dict(meta=meta, state_dict=weights, optimizer=optimizer), tmp_path / "w.pth",
               _use_new_zipfile_serialization=not legacy)
    read = files.read(tmp_path / "w.pth")
    assert list(read) == list(weights)
    assert all(np.array_equal(read[name], weights[name].numpy()) for name in weights)


def test_flat_torch_file_with_views_and_half_precision(torch, tmp_path):
    content = dict(a=torch.arange(6.0).reshape(2, 3).t(), b=torch.nn.Parameter(torch.ones(2)),
                   c=torch.ones(3).bfloat16(), d=torch.ones(3).half())
    torch.save(content, tmp_path / "w.bin")
    read = files.read(tmp_path / "w.bin")
    assert {array.dtype for array in read.values()} == {np.dtype(np.float32)}
    assert np.array_equal(read["a"], content["a"].numpy())


@pytest.mark.parametrize("make", [
    lambda torch: torch.eye(3).to_sparse(), lambda torch: torch.empty(3, device="meta"),
    lambda torch: torch.quantize_per_tensor(torch.ones(3), .1, 0, torch.qint8)], ids=["sparse", "meta", "quantised"])
def test_tensors_that_are_not_plain_are_named(torch, tmp_path, make):
    torch.save({"a": torch.ones(2), "layer.weight": make(torch)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w.pth: (layer.weight is no plain tensor|refused: it holds)"):
        files.read(tmp_path / "w.pth")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_file_that_would_run_code_is_refused(torch, tmp_path, legacy):
    torch.save(dict(state_dict=dict(a=torch.ones(2)), extra=Malicious(tmp_path / "ran")), tmp_path / "w.pth",
               _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UserError, match=f"refused: it holds {os.name}.mkdir") as error:
        files.read(tmp_path / "w.pth")
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bare_pickle_that_would_run_code_is_refused(torch, tmp_path):
    for protocol in range(6):
        (tmp_path / "w.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "ran"), protocol))
        with pytest.raises(UserError):
            files.read(tmp_path / "w.pth")
        assert not (tmp_path / "ran").exists()


def test_module_in_place_of_tensors_is_refused(torch, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UserError, match="refused: it holds torch.nn.modules.linear.Linear"):
        files.read(tmp_path / "w.pth")


def test_damaged_torch_files(torch, tmp_path):
    torch.save(dict(a=torch.ones(20000)), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("x", "y")
    for content in (b"", b"hello", whole[:len(whole) // 2], (tmp_path / "other.pth").read_bytes()):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(UserError, match="w.pth: is damaged or no PyTorch file"):
            files.read(tmp_path / "w.pth")


@pytest.mark.parametrize("content, word", [([1, 2], "list"), (dict(epoch=3, a=1), "epoch, a"), ({}, "no tensor")])
def test_torch_file_without_tensors(torch, tmp_path, content, word):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=word):
        files.read(tmp_path / "w.pth")
