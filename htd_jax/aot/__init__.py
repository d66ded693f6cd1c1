"""The real training step and detection, compiled for accelerators that are not there: `python -m htd_jax.aot`."""
from htd_jax.aot.compile import compile_for
from htd_jax.aot.programs import BOXES, batch_of, largest_bucket

__all__ = ["BOXES", "batch_of", "compile_for", "largest_bucket"]
