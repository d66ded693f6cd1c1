"""RoIAlign on a feature pyramid: the level of each RoI, crops of its own level or of all, and where padded maps end."""
import functools

import jax
import jax.numpy as jnp

from htd_jax.ops.crop_tiles import crops_by_tiles, takes
from htd_jax.ops.roi_align import roi_align
from htd_jax.ops.windows import of_level

STRIDES = (4, 8, 16, 32)  # of P2..P5, in pixels
FORMS = "auto", "products", "tpu", "gpu"  # auto: the device's own; else of any device, kernels interpreted if need be
DEVICES = dict(tpu="tpu", gpu="cuda")  # what JAX calls the device of a form's kernels
FINEST = 56  # a RoI of this many pixels or less (geometric mean of the sides, up to twice it) lies on P2


def roi_levels(rois, levels=len(STRIDES)):
    """Level int32 `[N]` of each RoI `[N, 4]`: floor(log2(sqrt(w * h) / 56 + 1e-6)), clamped to 0..levels-1."""
    sizes = jnp.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
    return jnp.clip(jnp.floor(jnp.log2(sizes / FINEST + 1e-6)), 0, levels - 1).astype(jnp.int32)


def extend_edges(pyramid, padded):
    """P2..P5 (each `[B, H, W, C]`) whose cells just beyond `padded [B, 2]` (h, w in pixels) repeat the last within.

    So a RoI at the edge of an image with more padding reads what the border rule would give it at the end of a map.
    """
    return [_extend_edge(_extend_edge(features, 1, padded[:, 0], stride), 2, padded[:, 1], stride)
            for features, stride in zip(pyramid, STRIDES)]


def _extend_edge(features, axis, end, stride):
    beyond = jnp.arange(features.shape[axis]) == -(-end[:, None] // stride)
    return _repeated(axis, features, jnp.expand_dims(beyond, (3 - axis, 3)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _repeated(axis, features, here):
    """`features` whose cells `here` are what the ones before them along `axis` are."""
    return jnp.where(here, jnp.roll(features, 1, axis), features)


def _repeated_backward(axis, here, gradient):
    """In one pass over the map: derived from the above, it would be three, with copies of the map between them."""
    before = jnp.roll(here, -1, axis)
    return jnp.where(here, 0, gradient) + jnp.where(before, jnp.roll(gradient, -1, axis), 0), None


_repeated.defvjp(lambda axis, features, here: (_repeated(axis, features, here), here), _repeated_backward)


def crop_own_level(pyramid, rois, form="auto"):
    """Crops `[N, 7, 7, C]` of `rois [N, 4]`, each from its own level of `pyramid` (P2..P5, each `[H, W, C]`).

    `form`: how they are computed, one of `FORMS`.
    """
    levels = roi_levels(rois)

    def by_levels(pyramid, rois, levels, form):
        crops = sum(roi_align(features, rois, stride, levels == k, form)
                    for k, (features, stride) in enumerate(zip(pyramid, STRIDES)))
        return jax.lax.optimization_barrier(crops)  # or all four terms are held until the backward pass

    def by_tiles(crop, rois, levels):
        return crop(rois, levels, levels >= 0)

    return _in_form(form, by_levels, by_tiles, pyramid, rois, levels)


def crop_all_levels(pyramid, rois, own, form="auto"):
    """Crops `[4, N, 7, 7, C]` of `rois [N, 4]` from every level of `pyramid` (P2..P5).

    `own [N, 7, 7, C]` is what `crop_own_level` gives: one of the four, which is not pooled again.
    """
    levels = roi_levels(rois)

    def by_levels(pyramid, rois, levels, form):
        return jnp.stack([roi_align(features, rois, stride, levels != k, form)
                          for k, (features, stride) in enumerate(zip(pyramid, STRIDES))])

    def by_tiles(crop, rois, levels):
        return _by_level(crop(*_on_other_levels(rois, levels, levels >= 0)))

    return _with_own(_in_form(form, by_levels, by_tiles, pyramid, rois, levels), own, levels)


def crop_own_and_all_levels(pyramid, rois, where, form="auto"):
    """`crop_own_level` of `rois [N, 4]`, and `crop_all_levels` of the first P where `where` bool [P].

    Elsewhere the latter is 0 but for the own level. As one call for each level, or for all, whose backward pass makes one gradient of its map in place of two.
    """
    levels, count = roi_levels(rois), len(rois)

    def by_levels(pyramid, rois, levels, where, form):
        first = slice(len(where))
        both = jnp.concatenate([rois, rois[first]])
        crops = [roi_align(features, both, stride, jnp.concatenate([levels == k, where & (levels[first] != k)]), form)
                 for k, (features, stride) in enumerate(zip(pyramid, STRIDES))]
        own = jax.lax.optimization_barrier(sum(part[:count] for part in crops))
        return own, jnp.stack([part[count:] for part in crops])

    def by_tiles(crop, rois, levels, where):
        first = slice(len(where))
        own, others = (rois, levels, levels >= 0), _on_other_levels(rois[first], levels[first], where)
        crops = crop(*map(jnp.concatenate, zip(own, others)))
        return crops[:count], _by_level(crops[count:])

    own, others = _in_form(form, by_levels, by_tiles, pyramid, rois, levels, where)
    return own, _with_own(others, own[:len(where)], levels[:len(where)])


def _on_other_levels(rois, levels, where):
    """Items, level by level, of `rois` on all levels: rois, levels, and which are wanted: not those on the own one."""
    every = jnp.arange(len(STRIDES), dtype=levels.dtype)
    wanted = where[None] & (levels[None] != every[:, None])
    return jnp.tile(rois, (len(STRIDES), 1)), jnp.repeat(every, len(rois)), wanted.reshape(-1)


def _by_level(crops):
    return crops.reshape(len(STRIDES), -1, *crops.shape[1:])


def _with_own(others, own, levels):
    """`[4, N, 7, 7, C]`: the crops of each level in `others`, but those that `own` holds."""
    here = lambda k: (levels == k)[:, None, None, None]
    return jnp.stack([jnp.where(here(k), own, part) for k, part in enumerate(others)])


def _in_form(form, by_levels, by_tiles, pyramid, *items):
    """What `by_levels(pyramid, *items, form)` or `by_tiles(crop, *items)` gives: the one place that chooses a form.

    `crop(rois, levels, active)` pools items with a kernel. A pyramid that does not fit into a TPU's vector memory, or
    of too few channels for a GPU's, is pooled by products.
    """
    def levels_form(pyramid, *items):
        return by_levels(pyramid, *items, "products" if form == "products" else "auto")

    def kernels(device, interpret=False):
        def run(pyramid, *items):
            def crop(rois, levels, active):
                corners = rois / of_level(map(float, STRIDES), levels)[:, None] - 0.5
                return crops_by_tiles(pyramid, corners, levels, active, device, interpret)
            return by_tiles(crop, *items)
        return run if takes(device, pyramid) else levels_form

    if form == "products":
        return levels_form(pyramid, *items)
    if form == "auto":
        forms = dict(tpu=kernels("tpu"), cuda=kernels("gpu"), default=levels_form)
    else:
        forms = {DEVICES[form]: kernels(form), "default": kernels(form, interpret=True)}
    return jax.lax.platform_dependent(list(pyramid), *items, **forms)
