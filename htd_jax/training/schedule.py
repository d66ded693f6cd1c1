"""The learning rate at each step: linear warm-up, then steps down at the milestones, or half a cosine."""
from collections.abc import Callable

import jax.numpy as jnp
from ml_collections import ConfigDict

from htd_jax import config as config_lib


def first_step(start: int, epochs: float | None, steps_per_epoch: int) -> int:
    """The step from which epochs count, so that at `start` the run has seen `epochs`; None: as many as `start` says.

    0, unless the batch size or the data have changed since: an epoch is images seen, not steps done.
    """
    return 0 if epochs is None else start - round(epochs * steps_per_epoch)


def total_steps(config: ConfigDict, steps_per_epoch: int, first: int = 0) -> int:
    """The number of updates of the whole run; total_steps wins over total_epochs, which count from step `first`."""
    return config.total_steps if config.total_steps is not None else first + config.total_epochs * steps_per_epoch


def learning_rate(config: ConfigDict, steps_per_epoch: int, first: int = 0) -> Callable:
    """Builds the schedule from lr (or base_lr, base_batch, batch_size), warmup_steps, warmup_factor, and milestones
    or, with schedule = 'cosine', the length of the run.

    Milestones are in epochs, which count from step `first`.
    Returns:
        A function of `step`, the number of updates done before (int or int32 array), to the rate, float32:
        `lr * (1 - (1 - step / warmup_steps) * (1 - warmup_factor))` in the warm-up (computed in a form that loses no
        digits at the start), divided by 10 once for each milestone whose epochs are complete. Both apply where they
        meet, as in mmcv. Cosine: times (1 + cos(pi t)) / 2, t going from 0 after the warm-up to 1 at the end.
    """
    rate = config_lib.learning_rate(config)
    total = total_steps(config, steps_per_epoch, first)
    decay = _cosine(config, total) if config.schedule == "cosine" else _steps(config, steps_per_epoch, first)

    def schedule(step):
        warm = jnp.minimum(step / config.warmup_steps, 1.0) if config.warmup_steps else 1.0
        return rate * decay(step) * (config.warmup_factor + warm * (1 - config.warmup_factor))

    return schedule


def _steps(config, steps_per_epoch, first):
    boundaries = jnp.asarray([first + round(m * steps_per_epoch) for m in config.milestones], jnp.int32)
    return lambda step: 0.1 ** jnp.sum(step >= boundaries).astype(jnp.float32)


def _cosine(config, total):
    first = min(config.warmup_steps, total - 1)
    return lambda step: (1 + jnp.cos(jnp.pi * jnp.clip((step - first) / (total - first), 0, 1))) / 2
