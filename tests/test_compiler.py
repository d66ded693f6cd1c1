"""Options for compilers: each platform gets its own, and what a user asked for stays."""
import pytest

from htd_jax import compiler

TILES = "xla_tpu_scoped_vmem_limit_kib"


def test_each_platform_gets_its_own():
    assert "xla_cpu_scheduler_type" in compiler.step_options("cpu")
    assert compiler.detect_options("cpu") is None
    assert compiler.step_options("gpu") is compiler.detect_options("gpu") is None


@pytest.mark.parametrize("options", [compiler.step_options, compiler.detect_options])
def test_a_tpu_gets_smaller_tiles_than_by_default(options):
    assert int(options("tpu")[TILES]) < 16384


@pytest.mark.parametrize("options", [compiler.step_options, compiler.detect_options])
def test_what_the_user_asked_for_stays(options, monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--{TILES}=16384 --other=1")
    assert options("tpu") is None
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--other=1")
    assert options("tpu")
