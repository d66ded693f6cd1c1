"""RoI crops by the kernels of accelerators, and the gradient of the pyramid: for one image, under `vmap`, for many.

A kernel takes a batch's images in one call, split over devices as the batch is.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from htd_jax.ops.gpu import roi_align as gpu, roi_align_backward as gpu_backward
from htd_jax.ops.tpu import roi_align as tpu, roi_align_backward as tpu_backward

KERNELS = {"tpu": (tpu.crops, tpu_backward.gradients), "gpu": (gpu.crops, gpu_backward.gradients)}


class Kernels(NamedTuple):
    """`device`: of `KERNELS`; `interpret`: run them on whatever device is there, slowly; `shapes`: (h, w) of the levels."""

    device: str
    interpret: bool
    shapes: tuple

    @property
    def crops(self):
        return functools.partial(KERNELS[self.device][0], interpret=self.interpret)

    @property
    def gradients(self):
        return functools.partial(KERNELS[self.device][1], shapes=self.shapes, interpret=self.interpret)


def takes(device, pyramid):
    """Whether the kernels of `device` can pool from `pyramid`."""
    channels, dtype = pyramid[0].shape[-1], pyramid[0].dtype
    if device == "tpu":
        return tpu.fits([level.shape[-3:-1] for level in pyramid], channels, dtype)
    return gpu.fits(channels)


def crops_by_tiles(pyramid, corners, levels, active, device, interpret=False):
    """Crops `[N, 7, 7, C]` at `corners [N, 4]` (in cells) on `levels [N]` of `pyramid` (each `[H, W, C]`).

    Those that are not `active [N]` are 0. Only the pyramid has a gradient.
    """
    kernels = Kernels(device, interpret, tuple(level.shape[:2] for level in pyramid))
    return _crops(kernels, list(pyramid), jax.lax.stop_gradient(corners), levels, active)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _crops(kernels, pyramid, *items):
    return _of_batch(kernels.crops)(pyramid, *items)


def _crops_forward(kernels, pyramid, *items):
    return _crops(kernels, pyramid, *items), items


def _crops_backward(kernels, items, gradient):
    return [*_of_batch(kernels.gradients)(gradient, *items)], None, None, None


_crops.defvjp(_crops_forward, _crops_backward)


def _of_batch(function):
    """`function` of arrays of a batch as one of an image's, which `vmap` turns back into one of a batch's."""

    @jax.custom_batching.custom_vmap
    def of_image(*arguments):
        batch = jax.tree.map(lambda x: x[None], arguments)
        return jax.tree.map(lambda x: x[0], function(*batch))

    @of_image.def_vmap
    def of_images(size, batched, *arguments):
        repeat = lambda x, here: x if here else jnp.broadcast_to(x, (size, *x.shape))
        result = _split_by_images(function, size)(*jax.tree.map(repeat, arguments, tuple(batched)))
        return result, jax.tree.map(lambda _: True, result)

    return of_image


def _split_by_images(function, size):
    """`function` of arrays of `size` images on the devices of the mesh it is traced under: each takes its own images.

    The compiler cannot split a kernel itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or size % mesh.size:
        return function
    images = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, mesh=mesh, in_specs=images, out_specs=images, check_vma=False)
