"""The best of many numbers without a sort of them all, which accelerators' compilers take long over.

XLA sorts what `lax.top_k` is given: 200,000 numbers for 1000 of them, and unrolls the sort for a TPU, which takes its
compiler 10 to 20 s each time. Here the last number wanted is found by counting, two of its bits at a time; those that
reach it are put together by their place; and only they are sorted. The result is the same, ties included.
"""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BITS = 2  # found at a time
ROW = 256  # numbers whose places are counted at once
FEW = 2048  # so many are best sorted


def top_k(x: Float[Array, "N"], k: int) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """`lax.top_k` of float32: the `k` greatest by falling size and their indices, the first of equals first."""
    if len(x) <= FEW:
        return tuple(jax.lax.top_k(x, k))
    return jax.lax.platform_dependent(x, cpu=lambda x: tuple(jax.lax.top_k(x, k)), default=lambda x: by_counting(x, k))


def best(x: Float[Array, "N"], k: int) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """What `top_k` gives, in any order that has the first of equals first: for what is sorted later on."""
    if k == len(x):
        return x, jnp.arange(k, dtype=jnp.int32)
    if len(x) <= FEW:
        return tuple(jax.lax.top_k(x, k))
    return jax.lax.platform_dependent(x, cpu=lambda x: tuple(jax.lax.top_k(x, k)), default=lambda x: in_place(x, k))


def by_counting(x: Float[Array, "N"], k: int) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """`top_k`, for accelerators."""
    found, index = in_place(x, k)
    values, order = jax.lax.top_k(found, k)
    return values, index[order]


def in_place(x: Float[Array, "N"], k: int) -> tuple[Float[Array, "k"], Int[Array, "k"]]:
    """`best` in the order of `x`, for accelerators."""
    index = places(among_best(x, k), k)
    return x[index], index


def among_best(x: Float[Array, "N"], number: int | Int[Array, ""]) -> Bool[Array, "N"]:
    """Whether each of `x` is among the `number` greatest, the first of equals first."""
    keys = _ordered(x)
    last = _bisect(lambda least: (keys[None, :] >= least[:, None]).sum(axis=1), number, 32)
    equals, more = keys == last, number - (keys > last).sum()
    behind = jnp.arange(len(x), 0, -1, dtype=jnp.uint32)  # falls along x, so that the first are the greatest
    end = _bisect(lambda least: (equals[None, :] & (behind[None, :] >= least[:, None])).sum(axis=1), more,
                  len(x).bit_length())
    return (keys > last) | (equals & (behind >= end))


def _ordered(x):
    """uint32 in the order that `lax.top_k` gives the float32 `x`: 0 above -0, nan above all."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _bisect(count, number, bits):
    """The greatest uint32 of `bits` bits of which count([it]) is at least `number`; count falls as numbers grow."""
    steps = -(-bits // BITS)
    digits = jnp.arange(1, 1 << BITS, dtype=jnp.uint32)

    def step(k, found):
        shift = jnp.uint32(BITS) * (steps - 1 - k).astype(jnp.uint32)
        enough = count(found + (digits << shift)) >= number
        return found + (enough.sum().astype(jnp.uint32) << shift)

    return jax.lax.fori_loop(0, steps, step, jnp.uint32(0))


def places(chosen: Bool[Array, "N"], slots: int) -> Int[Array, "slots"]:
    """Ascending indices of those `chosen`, then N - 1: first the row of each is found, then its place in it."""
    rows = jnp.pad(chosen, (0, -len(chosen) % ROW)).reshape(-1, ROW)
    ends = jnp.cumsum(rows.sum(axis=1))
    slot = jnp.arange(slots)
    row = (ends[None, :] <= slot[:, None]).sum(axis=1)
    before = jnp.where(ends[None, :] <= slot[:, None], ends[None, :], 0).max(axis=1)
    found = jnp.take(rows, row, axis=0, mode="clip").astype(jnp.bfloat16)
    ranks = jnp.matmul(found, jnp.triu(jnp.ones((ROW, ROW), jnp.bfloat16)), preferred_element_type=jnp.float32)
    column = (ranks <= (slot - before)[:, None]).sum(axis=1)
    return jnp.minimum(row * ROW + column, len(chosen) - 1)
