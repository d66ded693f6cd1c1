"""What XLA is asked for beyond its defaults on each platform: 'cpu', 'gpu', 'tpu'."""
import os

import jax

# By default XLA:CPU runs early what could run late. HTD-R50, two images of 800x1344: 2.2 GiB of temporary buffers.
_CPU_STEP = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
if jax.__version_info__ < (0, 11):
    # There this pass removes optimisation barriers before the scheduler sees them: 2.9 GiB. Later versions schedule as
    # well with the pass, and without it cannot compile a barrier in a small loop.
    _CPU_STEP["xla_disable_hlo_passes"] = "cse_barrier_expander"

# Vector memory of one operation on a TPU, 16384 by default. With less, XLA makes smaller tiles and less code of them:
# it compiles in little more than half of the time, and the program takes a few percent longer.
_TPU_MEMORY = "xla_tpu_scoped_vmem_limit_kib"
_TPU = {_TPU_MEMORY: "8192"}


def step_options(platform: str) -> dict[str, str] | None:
    """Compiler options of the training step."""
    return _of(platform, cpu=_CPU_STEP, tpu=_TPU)


def detect_options(platform: str) -> dict[str, str] | None:
    """Compiler options of the detection."""
    return _of(platform, tpu=_TPU)


def _of(platform, **options):
    """What the user asked the TPU's compiler for stays."""
    asked = platform == "tpu" and _TPU_MEMORY in os.environ.get("LIBTPU_INIT_ARGS", "")
    return None if asked else options.get(platform)
