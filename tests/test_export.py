"""The exported program, run without the project's code, gives what the detector gives."""
import json
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from test_detector import small, stand_in, write_weights

from htd_jax import export
from htd_jax.errors import UserError
from htd_jax.evaluation import restored
from htd_jax.models import functional


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors", small())


def exported(weights, folder):
    export.export(small(), weights, folder, (64, 96), batch_size=2)
    return jax.export.deserialize(bytearray((folder / "detect.stablehlo").read_bytes()))


def assert_runs_as_the_detector(program, weights):
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), np.uint8)
    size = np.int32([(64, 96), (30, 50)])
    found = program.call(image, size)
    config = small()
    state = restored.restore(config, weights)
    padded = np.int32([(64, 96), (32, 64)])
    batch = dict(image=image, size=size, padded=padded, scale=np.ones((2, 2), np.float32))
    expected = jax.jit(functional.functions(config).detect)((state,), batch)
    for name, value in expected.items():
        # 5e-4 pixels is what two compilations of one float32 program differ by (docs/fidelity.md).
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=5e-4, err_msg=name)
    assert (jnp.where(found["valid"][1][:, None], found["boxes"][1], 0) <= jnp.array([[50, 30, 50, 30]])).all()
    return found["valid"].sum()


def test_program_and_labels(weights, tmp_path):
    program = exported(weights, tmp_path / "new")
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    labels = json.loads((tmp_path / "new" / "labels.json").read_text())
    assert [row["label"] for row in labels["labels"]] == list(range(5))
    assert labels["image"]["shape"] == [2, 64, 96, 3]


def test_program_takes_images_of_any_size_within_its_own(weights, tmp_path, monkeypatch):
    """With a function of the pixels in the place of `detect`, which takes a minute to compile."""
    monkeypatch.setattr(functional, "detect", stand_in)
    assert assert_runs_as_the_detector(exported(weights, tmp_path), weights) == 4


@pytest.mark.slow
def test_program_of_the_real_detector(weights, tmp_path):
    assert assert_runs_as_the_detector(exported(weights, tmp_path), weights) > 10


@pytest.mark.parametrize("shape, batch_size, words", [
    ((100, 96), 1, "--image"), ((64,), 1, "--image"), ((64, 96), 0, "--batch")])
def test_bad_shapes_are_named(weights, tmp_path, shape, batch_size, words):
    with pytest.raises(UserError, match=words):
        export.export(small(), weights, tmp_path, shape, batch_size)


def test_output_that_cannot_be_written_is_named(weights, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    program = types.SimpleNamespace(serialize=lambda: b"")
    monkeypatch.setattr(export.jax.export, "export", lambda *_, **__: lambda *_: program)
    with pytest.raises(UserError, match="file/out"):
        export.export(small(), weights, tmp_path / "file" / "out", (64, 96))
