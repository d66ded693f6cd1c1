"""The loss of stage 1's regression, whose gradient is computed along with it.

BA is expensive and only positives need it. They come first in their slots, so a loop takes some slots at a time, as far
as there are positives. The loss is a sum over RoIs: its gradient by one part needs no other part. So the loop computes
both at once, and nothing of a part is kept for a backward pass, or computed again in it.
"""
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from htd_jax.models.ba import BA
from htd_jax.models.loss_terms import masked_sum, smooth_l1
from htd_jax.ops.pyramid_crops import of_own_level

BETA = 1.0
AT_ONCE = 16  # slots of each image


def ba_loss(ba: BA, crops: Float[Array, "B 4 P 7 7 C"], levels: Int[Array, "B P"], context: Float[Array, "B C"],
            targets: Float[Array, "B P 4"], positive: Bool[Array, "B P"]) -> Float[Array, ""]:
    """Sum of smooth L1 between BA's deltas and `targets` where `positive`: the first slots of each image.

    `crops` are of all levels, of which `levels` are the RoIs' own. It is differentiable, once, by `ba`, `crops` and
    `context`.
    """
    graphdef, state = nnx.split(ba)

    def loss(shared, crops, levels, targets, positive):
        state, context = shared
        merged = jnp.moveaxis(crops, 1, 0).reshape(4, -1, *crops.shape[3:])
        own, context = of_own_level(merged, levels.reshape(-1)), jnp.repeat(context, levels.shape[1], axis=0)
        deltas = nnx.merge(graphdef, state)(merged, own, context).reshape(targets.shape)
        return masked_sum(smooth_l1(deltas - targets, BETA).sum(axis=-1), positive)

    slots = positive.shape[1]
    size = max(1, min(AT_ONCE, slots))
    missing = -slots % size if slots else size  # up to whole parts, and to one where there is no slot
    filled = lambda x, axis: jnp.pad(x, [(0, missing if k == axis else 0) for k in range(x.ndim)])
    run = _on_each_device(functools.partial(_summed, loss, size), len(crops))
    return run((state, context), filled(crops, 2), *(filled(x, 1) for x in (levels, targets, positive)))


def _on_each_device(total, images):
    """Each device takes the parts that its own images need, and the gradients of `ba` are added up once, at the end."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or images % mesh.size:
        return total
    split, everywhere = PartitionSpec(mesh.axis_names), PartitionSpec()
    return jax.shard_map(lambda *inputs: jax.lax.psum(total(*inputs), mesh.axis_names), mesh=mesh,
                         in_specs=((everywhere, split), *[split] * 4), out_specs=everywhere, check_vma=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _summed(loss: Callable, size: int, shared: Any, crops: Array, levels: Array, targets: Array, positive: Array):
    """The sum of `loss` over parts of `size` slots, up to the last that has a positive."""
    part = _parts(size, crops, levels, targets, positive)
    return jax.lax.fori_loop(0, _number(size, positive), lambda k, total: total + loss(shared, *part(k)),
                             jnp.float32(0))


def _with_gradient(loss, size, shared, crops, *others):
    part = _parts(size, crops, *others)

    def add(k, found):
        total, by_shared, by_crops = found
        crops, *others = part(k)
        value, (more, of_part) = jax.value_and_grad(loss, argnums=(0, 1))(shared, crops, *others)
        by_crops = jax.lax.dynamic_update_slice_in_dim(by_crops, of_part, k * size, axis=2)
        return total + value, jax.tree.map(jnp.add, by_shared, more), by_crops

    nothing = jnp.float32(0), jax.tree.map(jnp.zeros_like, shared), jnp.zeros_like(crops)
    total, *gradients = jax.lax.fori_loop(0, _number(size, others[-1]), add, nothing)
    return total, gradients


def _scaled(loss, size, gradients, factor):
    by_shared, by_crops = jax.tree.map(lambda x: (factor * x).astype(x.dtype), gradients)
    return by_shared, by_crops, None, None, None


_summed.defvjp(_with_gradient, _scaled)


def _parts(size, crops, *others):
    """k -> the slots of part k."""
    of = lambda x, k, axis: jax.lax.dynamic_slice_in_dim(x, k * size, size, axis)
    return lambda k: (of(crops, k, 2), *(of(x, k, 1) for x in others))


def _number(size, positive):
    """How many parts there are up to the last that has a positive."""
    return jnp.max(jnp.where(positive, jnp.arange(positive.shape[1])[None] // size + 1, 0))
