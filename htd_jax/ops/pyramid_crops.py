"""RoIAlign on a feature pyramid: the level of each RoI, crops of its own level or of all, and where padded maps end."""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from htd_jax.ops.crop_tiles import crops_by_tiles, takes
from htd_jax.ops.edges import extended
from htd_jax.ops.roi_align import roi_align
from htd_jax.ops.windows import Items, of_level

STRIDES = (4, 8, 16, 32)  # of P2..P5, in pixels
# auto: the device's own; portable: that without kernels; products: anywhere; tpu, gpu: kernels, interpreted if need be
FORMS = "auto", "portable", "products", "tpu", "gpu"
DEVICES = dict(tpu="tpu", gpu="cuda")  # what JAX calls the device of a form's kernels
FINEST = 56  # a RoI of this many pixels or less (geometric mean of the sides, up to twice it) lies on P2


Pyramid = Sequence[Float[Array, "_ _ C"]]  # P2..P5 of one image


def roi_levels(rois: Float[Array, "N 4"]) -> Int[Array, "N"]:
    """Level of each RoI, 0 for P2: floor(log2(sqrt(w * h) / 56 + 1e-6)), clamped to 0..3."""
    sizes = jnp.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
    return jnp.clip(jnp.floor(jnp.log2(sizes / FINEST + 1e-6)), 0, len(STRIDES) - 1).astype(jnp.int32)


def extend_edges(pyramid: Sequence[Float[Array, "B _ _ C"]],
                 padded: Int[Array, "B 2"]) -> list[Float[Array, "B _ _ C"]]:
    """P2..P5 of a batch whose cells just beyond `padded` repeat the last within.

    So a RoI at the edge of an image with more padding reads what the border rule would give it at the end of a map.
    """
    return [extended(features, -(-padded // stride)) for features, stride in zip(pyramid, STRIDES)]


def crop_own_level(pyramid: Pyramid, rois: Float[Array, "N 4"], form: str = "auto") -> Float[Array, "N 7 7 C"]:
    """Crops of `rois`, each from its own level. `form`: how they are computed, one of `FORMS`."""
    levels = roi_levels(rois)

    def by_levels(pyramid, rois, levels, form):
        crops = sum(roi_align(features, rois, stride, levels == k, form)
                    for k, (features, stride) in enumerate(zip(pyramid, STRIDES)))
        return jax.lax.optimization_barrier(crops)  # or XLA keeps all four terms until the backward pass

    def by_tiles(crop, rois, levels):
        return crop((rois, levels, levels >= 0))[0]

    return _in_form(form, by_levels, by_tiles, pyramid, rois, levels)


def crop_all_levels(pyramid: Pyramid, rois: Float[Array, "N 4"], own: Float[Array, "N 7 7 C"],
                    form: str = "auto") -> Float[Array, "4 N 7 7 C"]:
    """Crops of `rois` from every level, of which `own`, of `crop_own_level`, is one.

    Kernels pool it again, which costs less than to put it in its place.
    """
    levels = roi_levels(rois)

    def by_levels(pyramid, rois, own, levels, form):
        others = [roi_align(features, rois, stride, levels != k, form)
                  for k, (features, stride) in enumerate(zip(pyramid, STRIDES))]
        return _with_own(others, own, levels)

    def by_tiles(crop, rois, _, levels):
        return _by_level(crop(_on_all_levels(rois, levels >= 0))[0])

    return _in_form(form, by_levels, by_tiles, pyramid, rois, own, levels)


def crop_own_and_all_levels(pyramid: Pyramid, rois: Float[Array, "N 4"], where: Bool[Array, "P"], form: str = "auto"
                            ) -> tuple[Float[Array, "N 7 7 C"], Float[Array, "4 P 7 7 C"]]:
    """`crop_own_level` of all `rois`, and `crop_all_levels` of the first P, 0 unless `where`.

    As one call for each level, or for all, whose backward pass makes one gradient of its map in place of two.
    """
    levels, count = roi_levels(rois), len(rois)

    def by_levels(pyramid, rois, levels, where, form):
        first = slice(len(where))
        pooled, first_levels = jnp.concatenate([rois, rois[first]]), levels[first]
        crops = [roi_align(features, pooled, stride, jnp.concatenate([levels == k, where & (first_levels != k)]),
                           form)
                 for k, (features, stride) in enumerate(zip(pyramid, STRIDES))]
        own = jax.lax.optimization_barrier(sum(part[:count] for part in crops))
        return own, _with_own([part[count:] for part in crops], jnp.where(_spread(where), own[first], 0), first_levels)

    def by_tiles(crop, rois, levels, where):
        own, every = crop((rois, levels, levels >= 0), _on_all_levels(rois[:len(where)], where))
        return own, _by_level(every)

    return _in_form(form, by_levels, by_tiles, pyramid, rois, levels, where)


def of_own_level(crops: Float[Array, "4 N 7 7 C"], levels: Int[Array, "N"]) -> Float[Array, "N 7 7 C"]:
    """Of the `crops` of all levels those of each RoI's own."""
    return sum(jnp.where(_spread(levels == k), part, 0) for k, part in enumerate(crops))


def _on_all_levels(rois, where):
    """`rois` on all levels, level by level: rois, levels, and `where`."""
    count = len(STRIDES)
    return jnp.tile(rois, (count, 1)), jnp.repeat(jnp.arange(count, dtype=jnp.int32), len(rois)), jnp.tile(where, count)


def _by_level(crops):
    return crops.reshape(len(STRIDES), -1, *crops.shape[1:])


def _with_own(others, own, levels):
    """`[4, N, 7, 7, C]`: the crops of each level in `others`, but those that `own` holds."""
    return jnp.stack([jnp.where(_spread(levels == k), own, part) for k, part in enumerate(others)])


def _spread(where):
    return where[:, None, None, None]


def _in_form(form, by_levels, by_tiles, pyramid, *items):
    """What `by_levels(pyramid, *items, form)` or `by_tiles(crop, *items)` gives: the one place that chooses a form.

    `crop(*parts)` pools parts `(rois, levels, active)` with a kernel, and gives the crops of each. A pyramid that does
    not fit into a TPU's vector memory, or of too few channels for a GPU's, is pooled by products.
    """
    def levels_form(pyramid, *items):
        return by_levels(pyramid, *items, "products" if form == "products" else "auto")

    def kernels(device, interpret=False):
        def run(pyramid, *items):
            crop = lambda *parts: crops_by_tiles(pyramid, list(map(_in_cells, parts)), device, interpret)
            return by_tiles(crop, *items)
        return run if takes(device, pyramid) else levels_form

    if form in ("products", "portable"):
        return levels_form(pyramid, *items)
    if form == "auto":
        forms = dict(tpu=kernels("tpu"), cuda=kernels("gpu"), default=levels_form)
    else:
        forms = {DEVICES[form]: kernels(form), "default": kernels(form, interpret=True)}
    return jax.lax.platform_dependent(list(pyramid), *items, **forms)


def _in_cells(part):
    """A part's corners in cells of their levels, where cell 0's centre is at 0, in place of its RoIs."""
    rois, levels, active = part
    return Items(rois / of_level(map(float, STRIDES), levels)[:, None] - 0.5, levels, active)
