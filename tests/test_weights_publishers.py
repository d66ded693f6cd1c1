"""ResNets as Detectron, Detectron2, MMDetection and Keras publish them: names, layouts, input; and what is refused."""
import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from htd_jax.convert import convert
from htd_jax.errors import UserError
from htd_jax.weights import files, keras, loading, pickles, publishers

STAGES = ((1, 3), (2, 4), (3, 6), (4, 3))


@pytest.fixture
def resnet():
    """Some layers of a ResNet-50 by torchvision's names, for RGB; norms with folded statistics."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    shapes = {"conv1": (8, 3, 7, 7)}
    for layer, count in STAGES:
        for block in range(count):
            shapes |= {f"layer{layer}.{block}.conv{i}": (8, 8, 3, 3) for i in (1, 2, 3)}
        shapes[f"layer{layer}.0.downsample.0"] = (8, 8, 1, 1)
    tensors = {}
    for name, shape in shapes.items():
        norm = publishers_norm(name)
        tensors |= {f"{name}.weight": normal(*shape), f"{norm}.weight": normal(8), f"{norm}.bias": normal(8),
                    f"{norm}.running_mean": np.zeros(8, np.float32),
                    f"{norm}.running_var": np.ones(8, np.float32) - np.float32(1e-5)}
    return tensors


def publishers_norm(conv):
    return conv[:-1] + "1" if "downsample" in conv else conv.replace("conv", "bn")


def for_bgr(tensors):
    """The inverse of `fold_bgr` where the means agree."""
    kernel = tensors["conv1.weight"] / np.float32([58.395, 57.12, 57.375])[None, :, None, None]
    return tensors | {"conv1.weight": kernel[:, ::-1]}


def detectron(name):
    """Caffe2's name, or None for statistics, which these files do not have."""
    module, _, leaf = name.rpartition(".")
    if leaf.startswith("running"):
        return None
    *block, last = module.split(".") if "downsample" not in module else module.rsplit(".", 2)[0].split(".") + ["x"]
    norm = "bn" in last or module.endswith("downsample.1")
    suffix = ("_bn_s" if norm else "_w") if leaf == "weight" else "_bn_b"
    if not block:
        return f"res_conv1{suffix}" if norm else f"conv1{suffix}"
    branch = "branch1" if last == "x" else "branch2" + "abc"[int(last[-1]) - 1]
    return f"res{int(block[0][-1]) + 1}_{block[1]}_{branch}{suffix}"


def detectron2(name):
    module, _, leaf = name.rpartition(".")
    parts = module.split(".")
    if len(parts) == 1:
        return f"stem.conv1.{'norm.' * (parts[0] == 'bn1')}{leaf}"
    norm = "norm." * (parts[2].startswith("bn") or parts[-1] == "1" and parts[2] == "downsample")
    conv = "shortcut" if parts[2] == "downsample" else "conv" + parts[2][-1]
    return f"res{int(parts[0][-1]) + 1}.{parts[1]}.{conv}.{norm}{leaf}"


def keras_name(name):
    module, _, leaf = name.rpartition(".")
    parts = module.split(".")
    norm = parts[-1].startswith("bn") or parts[-1] == "1" and len(parts) == 4
    leaf = dict(weight="gamma", bias="beta", running_mean="moving_mean", running_var="moving_variance")[leaf] if norm \
        else "kernel"
    kind = "bn" if norm else "conv"
    if len(parts) == 1:
        return f"conv1_{kind}/{leaf}"
    number = 0 if parts[2] == "downsample" else parts[2][-1]
    return f"conv{int(parts[0][-1]) + 1}_block{int(parts[1]) + 1}_{number}_{kind}/{leaf}"


def first_keras_name(name):
    """Of the first versions: res2a_branch2a, bn_conv1."""
    new, _, leaf = keras_name(name).partition("/")
    kind = "bn" if new.endswith("bn") else "res"
    if new.startswith("conv1"):
        return f"{'bn_' * (kind == 'bn')}conv1/{leaf}"
    stage, block, number, _ = new.split("_")
    branch = ("1", "2a", "2b", "2c")[int(number)]
    return f"{kind}{stage[-1]}{'abcdef'[int(block.removeprefix('block')) - 1]}_branch{branch}/{leaf}"


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


def with_prefix(tensors):
    return {f"backbone.{name}": array for name, array in tensors.items()}


@pytest.mark.parametrize("nested", ["model", "blobs", None])
def test_detectrons_pickle(resnet, tmp_path, nested):
    arrays = {detectron(name): array for name, array in for_bgr(resnet).items() if detectron(name)}
    arrays |= {"fc1000_w": np.ones((3, 8), np.float32), "conv1_w_momentum": np.ones(3, np.float32)}
    content = {nested: arrays, "__author__": "Caffe2"} if nested else arrays
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(content, protocol=2))
    assert_same(loading.load_tensors(tmp_path / "R-50.pkl"), with_prefix(resnet))


def test_convolutions_biases_go_into_the_means(resnet):
    arrays = {detectron(name): array for name, array in for_bgr(resnet).items() if detectron(name)}
    arrays["res3_0_branch1_b"] = np.arange(8, dtype=np.float32)
    found = publishers.to_torchvision(arrays)
    np.testing.assert_array_equal(found["layer2.0.downsample.1.running_mean"], -np.arange(8, dtype=np.float32))
    assert "layer2.0.downsample.0.bias" not in found


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up."])
def test_detectron2s_names(resnet, prefix):
    arrays = {prefix + detectron2(name): array for name, array in for_bgr(resnet).items()}
    extra = {"backbone.fpn_lateral2.weight": np.ones(2)} if prefix else {"stem.fc.weight": np.ones(2)}
    found = publishers.to_torchvision(arrays | extra)
    assert found.pop("detectron2.backbone.fpn_lateral2.weight", None) is not None or not prefix
    assert_same(found, resnet)


def test_statistics_that_are_not_folded_are_torchvisions_and_for_rgb(resnet):
    torchvision = resnet | {"bn1.running_mean": np.ones(8, np.float32)}
    assert_same(publishers.to_torchvision({detectron2(n): a for n, a in torchvision.items()}), torchvision)


def as_keras(resnet, name):
    layout = lambda array: array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    return {name(key): layout(array) for key, array in for_bgr(resnet).items()}


@pytest.mark.parametrize("name", [keras_name, first_keras_name])
def test_kerass_names(resnet, name):
    """Its epsilon is 1.001e-5 and its mean another by half a grey level, which goes into the stem's norm."""
    bias = {name("conv1.weight").replace("kernel", "bias"): np.ones(8, np.float32)}
    found = publishers.to_torchvision(as_keras(resnet, name) | bias | {"fc1000/kernel": np.ones((8, 3))})
    rgb = for_bgr(resnet)["conv1.weight"][:, ::-1]
    offset = np.einsum("oihw,i->o", rgb, np.subtract((123.675, 116.28, 103.53), (123.68, 116.779, 103.939)))
    expected = {key: a + np.float32(1e-8) if key.endswith("var") else a for key, a in resnet.items()}
    assert_same(found, expected | {"bn1.running_mean": -1 - offset})


@pytest.mark.parametrize("kind", ["weights", "whole model", "keras 3"])
def test_kerass_files(resnet, tmp_path, kind):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: Keras' files cannot be tested")
    arrays = as_keras(resnet, keras_name)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for key, array in arrays.items():
            layer, leaf = key.split("/")
            if kind == "keras 3":
                index = ("kernel", "gamma", "beta", "moving_mean", "moving_variance").index(leaf)
                group = f"layers/{'batch_normalization' if index else 'conv2d'}_{layer}/vars"
                file[f"{group}/{max(index - 1, 0)}"] = array
                file[group].attrs["name"] = layer
            else:
                file[f"{'model_weights/' * (kind == 'whole model')}{layer}/{layer}/{leaf}:0"] = array
        file["optimizer_weights/iteration:0"] = np.zeros(1)
    assert_same(files.read(tmp_path / "w.h5"), arrays)


def test_kerass_file_that_names_no_layers(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is not installed: Keras' files cannot be tested")
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.ones(3)
    with pytest.raises(UserError, match="does not name its layers; load it in Keras"):
        keras.read(tmp_path / "w.weights.h5")


def test_mmdetections_caffe_names_by_request(resnet, tmp_path):
    """They are torchvision's: only the user can say that their stem takes BGR."""
    files.write(tmp_path / "caffe.safetensors", for_bgr(resnet))
    convert(tmp_path / "caffe.safetensors", tmp_path / "rgb.safetensors", backbone=True, bgr=True)
    found = {k: a for k, a in files.read(tmp_path / "rgb.safetensors").items() if "num_batches" not in k}
    assert_same(found, with_prefix(resnet))
    with pytest.raises(UserError, match="--bgr writes a .safetensors file"):
        convert(tmp_path / "caffe.safetensors", tmp_path / "run", bgr=True)


def test_caffe_weights_come_back_from_detectrons_names(shared):
    """Of real weights: the stem that `fold_bgr` makes is the one that this file has."""
    real = files.read(shared / "weights/resnet50_caffe.safetensors")
    arrays = {detectron2(name): array for name, array in for_bgr(real).items()}
    arrays["stem.conv1.norm.running_mean"] = np.zeros(64, np.float32)
    assert_same(publishers.to_torchvision(arrays), real | {"bn1.running_mean": np.zeros(64, np.float32)})


class Runs:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps(OrderedDict(a=np.ones(2), b=Runs(tmp_path / "made"))))
    with pytest.raises(UserError, match=r"w\.pkl: refused: it would call .*mkdir.*save_file"):
        files.read(path)
    assert not (tmp_path / "made").exists()


def by_numpy_1(data):
    """A small pickle with the names that modules had in numpy 1; its one frame gets its new length."""
    for part in (b"multiarray", b"numeric"):
        old, new = b"numpy._core." + part, b"numpy.core." + part
        data = data.replace(bytes([len(old)]) + old, bytes([len(new)]) + new).replace(old, new)
    framed = data[2:3] == b"\x95"
    return data[:3] + struct.pack("<Q", len(data) - 11) + data[11:] if framed else data


@pytest.mark.parametrize("version", [lambda data: data, by_numpy_1], ids=["numpy 2", "numpy 1"])
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_are_read(tmp_path, protocol, version):
    fixed = np.arange(3.0)
    fixed.flags.writeable = False  # pickled as bytes, others as bytearrays
    arrays = {"c": np.arange(6, dtype=np.float32).reshape(2, 3), "fortran": np.ones((2, 3), np.float32, order="F"),
              "strided": np.arange(8, dtype=np.float32)[::2], "half": np.ones(2, np.float16), "fixed": fixed,
              "scalar": np.array(3, np.int64), "big endian": np.arange(2, dtype=">f4")}
    data = version(pickle.dumps(arrays, protocol))
    assert (b"numpy.core" in data) == (version is by_numpy_1)
    (tmp_path / "w.pkl").write_bytes(data)
    read = files.read(tmp_path / "w.pkl")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def test_arrays_outside_of_their_pickle_are_refused(tmp_path):
    data = pickle.dumps({"a": np.ones(3)}, 5, buffer_callback=lambda buffer: False)
    (tmp_path / "w.pkl").write_bytes(data)
    with pytest.raises(UserError, match="w.pkl: is damaged or no pickle"):
        files.read(tmp_path / "w.pkl")


@pytest.mark.parametrize("tensors", [
    {"conv1_conv/kernel": np.zeros((7, 7, 3, 8))}, {"stem.conv1.weight": np.zeros((3, 3))},
    {"conv1_w": np.zeros((8, 3, 7, 7)), "conv1_b": np.zeros(7), "res_conv1_bn_s": np.ones(8)}], ids=min)
def test_part_of_a_resnet_is_refused(tensors):
    with pytest.raises(UserError, match="R.pkl: its tensors are not those of a whole ResNet: .*; give the file as"):
        loading.canonical(tensors, "R.pkl")


@pytest.mark.parametrize("content, message", [(b"no pickle", "damaged or no pickle"), (b"", "damaged or no pickle"),
                                              (pickle.dumps([1]), "has no numpy arrays"),
                                              (pickle.dumps({"model": {"a": "b"}}), "has no numpy arrays")])
def test_bad_pickles(tmp_path, content, message):
    (tmp_path / "w.pkl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        pickles.read(tmp_path / "w.pkl")
