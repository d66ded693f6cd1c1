"""A CPU's compiler takes the training step and the detection in every shape we promise, and in little memory.

CI runs this at both ends of the supported versions: on jax 0.10 the step turns a pass of the compiler off.
"""
import jax
import pytest
import tiny

from configs import demo, htd_r50
from htd_jax import config as config_lib, mesh as mesh_lib
from htd_jax.aot import programs

GIB = 2**30
TEMPORARY = 2.46 * GIB  # of a step of HTD-R50 with two images of 800x1344: 2.24 measured, and a tenth


def small():
    config = config_lib.default_config()
    config.update_from_flattened_dict(tiny.SETTINGS)
    return config


CASES = {
    "tiny": (small, 4, (64, 64)),
    "odd": (small, 3, (96, 352)),
    "demo": (demo.get_config, None, (224, 224)),
    "full size": (htd_r50.get_config, 2, (800, 1344)),
}


@pytest.mark.parametrize("lower", [programs.lower_train, programs.lower_detect])
@pytest.mark.parametrize("case", CASES)
def test_compiles(case, lower):
    make, batch_size, shape = CASES[case]
    config = make()
    config.model.num_classes = config.model.num_classes or 80
    if batch_size:
        config.batch_size = config.test.batch_size = batch_size
    compiled = lower(config, mesh_lib.make_mesh(jax.devices("cpu")[:1]), shape).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert 0 < temporary < TEMPORARY, f"{temporary / GIB:.2f} GiB"
