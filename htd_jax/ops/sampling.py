"""Choosing the anchors and proposals that a loss looks at (the original's RandomSampler)."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

RULES = ("random", "first", "stride")


class Sample(NamedTuple):
    """S slots: `index` into the candidates, positives first, each part ascending."""

    index: Int[Array, "*B S"]
    positive: Bool[Array, "*B S"]
    valid: Bool[Array, "*B S"]


def sample(assigned: Int[Array, "N"], count: int, max_positive: int, rule: str = "random",
           key: Key[Array, ""] | None = None) -> Sample:
    """`Sample` of `count` slots from an assignment (see `matching`).

    At most `max_positive` positives; background fills the rest as far as it goes. `rule` says which: `random`
    (needs `key`), `first` in index order, or `stride` (candidate i * n // k); the last two repeat exactly.
    """
    if rule not in RULES:
        raise ValueError(f"sampling (={rule!r}) must be one of {', '.join(RULES)}")
    keys = (None, None) if key is None else jax.random.split(key)
    positives, n_pos = _choose(assigned > 0, min(max_positive, count), count, rule, keys[0])
    negatives, n_neg = _choose(assigned == 0, count - n_pos, count, rule, keys[1])
    slot = jnp.arange(count)
    index = jnp.where(slot < n_pos, positives, jnp.roll(negatives, n_pos))
    valid = slot < n_pos + n_neg
    return Sample(jnp.where(valid, index, 0), slot < n_pos, valid)


def _choose(candidates, wanted, slots, rule, key):
    """Ascending indices `[slots]` of at most `wanted` of the `candidates [N]` (bool), and their number."""
    total = candidates.sum()
    number = jnp.minimum(total, wanted)
    if rule == "random":
        index = _random_indices(candidates, number, slots, key)
    else:
        rank = jnp.cumsum(candidates) - 1
        if rule == "first":
            chosen = rank < number
        else:
            i = -(-rank * number // jnp.maximum(total, 1))  # the i whose i * total // number could be this rank
            chosen = (i * total // jnp.maximum(number, 1) == rank) & (i < number)
        index = jnp.nonzero(candidates & chosen, size=slots, fill_value=candidates.shape[0])[0]
    return index.astype(jnp.int32), number


def _random_indices(candidates, number, slots, key):
    """Ascending indices of `number` candidates drawn without replacement, then the array's length."""
    length = candidates.shape[0]
    # A barrier, for a TPU's compiler takes 20 s to merge drawing into top_k, and it runs no faster for it.
    draw = jax.lax.optimization_barrier(jnp.where(candidates, jax.random.uniform(key, (length,)), -1.0))
    index = jax.lax.top_k(draw, min(slots, length))[1]
    index = jnp.pad(index, (0, slots - index.shape[0]), constant_values=length)
    return jnp.sort(jnp.where(jnp.arange(slots) < number, index, length))
