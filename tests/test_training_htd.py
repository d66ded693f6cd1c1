"""Training the real detector, small: starting from weights, what is frozen, any number of devices."""
import os
import subprocess
import sys

import numpy as np
import pytest
import stand_in
import tiny
from flax import traverse_util

from htd_jax import checkpoints, mesh
from htd_jax.errors import UserError
from htd_jax.models import functional
from htd_jax.training import loop, optimizer
from htd_jax.training.state import initial_state


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "data"
    tiny.write_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A workdir after two steps, both saved: norm `frozen_bn`, one stage frozen."""
    workdir = tmp_path_factory.mktemp("runs") / "first"
    loop.train(settings(data, total_steps=2, checkpoint_every=1), workdir)
    return workdir


def settings(data, **keys):
    return tiny.config(data, **{"model__norm": "frozen_bn", "model__frozen_stages": 1, "data__val__annotations": "",
                                "batch_size": 4} | keys)


def flat(workdir):
    return traverse_util.flatten_dict(checkpoints.restore_params(workdir))


def test_frozen_tensors_stay_and_the_others_move(trained):
    before, after = flat(trained / "checkpoints" / "1"), flat(trained)
    moved = {".".join(map(str, path)) for path in before if (before[path] != after[path]).any()}
    assert not any(name.startswith(("backbone.stem", "backbone.layer1")) for name in moved)
    assert not any(name.endswith((".mean", ".var")) for name in moved)
    assert {"backbone.layer2.0.conv1.kernel", "backbone.layer2.0.bn1.scale", "neck.lateral_convs.0.bias",
            "rpn.conv.kernel", "sfa.fc.kernel", "stage0.fc_cls.kernel", "pgraph.fc_cls.bias"} <= moved


def test_init_from_another_run(data, trained, tmp_path):
    config = settings(data, init_from=str(trained), model__num_classes=2)
    functions = functional.functions(config)
    with checkpoints.Checkpoints(tmp_path) as empty:
        step, state = initial_state(functions, optimizer.sgd(config, lambda _: 0.1), config, mesh.make_mesh(), empty)
    assert step == 0
    started = traverse_util.flatten_dict(state["params"]) | traverse_util.flatten_dict(state["frozen"])
    for path, value in flat(trained).items():
        np.testing.assert_array_equal(started[path], value)


def test_init_from_that_does_not_fit(data, trained, tmp_path):
    with pytest.raises(UserError, match="does not fit the model.*of another shape"):
        loop.train(settings(data, model__fc_channels=16, init_from=str(trained)), tmp_path / "run")
    with pytest.raises(UserError, match="nowhere.safetensors"):
        loop.train(settings(data, init_from="nowhere.safetensors"), tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, dict(model__norm="frozen_bn", model__frozen_stages=1, remat=True, ema=0.9)])
def test_eight_devices_and_one_are_the_same_run(data, tmp_path, keys):
    for count in (1, 8):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
        subprocess.run([sys.executable, "train.py", "--config", "configs/htd_r50.py",
                        "--workdir", tmp_path / str(count),
                        *tiny.flags(data, **keys)], cwd=stand_in.ROOT, env=environment, check=True, timeout=900)
    one, eight = flat(tmp_path / "1"), flat(tmp_path / "8")
    assert one.keys() == eight.keys()
    for path in one:
        # Of norms, since a ReLU whose input is 0 but for rounding lets single entries through on one side alone.
        assert np.linalg.norm(one[path] - eight[path]) <= 1e-4 * np.linalg.norm(one[path]), path
