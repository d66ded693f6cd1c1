"""RoI crops by the kernels of accelerators, and the gradient of the pyramid: for one image, under `vmap`, for many.

Each kernel is a JAX primitive over a batch of images. So it takes all of them in one call however they were mapped, and
it is traced when a program is lowered for its device, not for every device that could have run the program.
"""
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import PartitionSpec

from htd_jax.ops.crop_products import BINS
from htd_jax.ops.gpu import roi_align as gpu, roi_align_backward as gpu_backward
from htd_jax.ops.tpu import roi_align as tpu, roi_align_backward as tpu_backward


def takes(device, pyramid):
    """Whether the kernels of `device` can pool from `pyramid`."""
    channels, dtype = pyramid[0].shape[-1], pyramid[0].dtype
    if device == "tpu":
        return tpu.fits([level.shape[-3:-1] for level in pyramid], channels, dtype)
    return gpu.fits(channels)


def crops_by_tiles(pyramid, corners, levels, active, device, interpret=False):
    """Crops `[N, 7, 7, C]` at `corners [N, 4]` (in cells) on `levels [N]` of `pyramid` (each `[H, W, C]`).

    Those that are not `active [N]` are 0. Only the pyramid has a gradient. `device`: whose kernels, 'tpu' or 'gpu';
    `interpret`: run them on whatever device is there, slowly.
    """
    batch = jax.tree.map(lambda x: x[None], (list(pyramid), jax.lax.stop_gradient(corners), levels, active))
    return _crops(Kernels(device, interpret), tuple(level.shape[:2] for level in pyramid), *batch)[0]


class Kernels(NamedTuple):
    device: str
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _crops(kernels, shapes, pyramid, *items):
    return _crops_kernel.bind(*pyramid, *items, **kernels._asdict())[0]


def _crops_forward(kernels, shapes, pyramid, *items):
    return _crops(kernels, shapes, pyramid, *items), items


def _crops_backward(kernels, shapes, items, gradient):
    return _gradients_kernel.bind(gradient, *items, **kernels._asdict(), shapes=shapes), None, None, None


_crops.defvjp(_crops_forward, _crops_backward)


def _run_crops(*arrays, device, interpret):
    (*pyramid, corners, levels, active) = arrays
    return [{"tpu": tpu, "gpu": gpu}[device].crops(pyramid, corners, levels, active, interpret)]


def _run_gradients(*arrays, device, interpret, shapes):
    return {"tpu": tpu_backward, "gpu": gpu_backward}[device].gradients(*arrays, shapes, interpret)


def _kernel(name, run, shapes_of):
    """A primitive of arrays that all have the images first; `shapes_of(*arrays, **fixed)` is what `run` gives."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(lambda *arrays, **fixed: jax.jit(functools.partial(primitive.bind, **fixed))(*arrays))
    primitive.def_abstract_eval(
        lambda *arrays, **fixed: [ShapedArray(shape, arrays[0].dtype) for shape in shapes_of(*arrays, **fixed)])
    batching.primitive_batchers[primitive] = functools.partial(_as_more_images, primitive)
    mlir.register_lowering(primitive, mlir.lower_fun(functools.partial(_split_by_images, run), multiple_results=True))
    return primitive


def _as_more_images(primitive, arrays, axes, **fixed):
    size = next(x.shape[axis] for x, axis in zip(arrays, axes) if axis is not None)
    mapped = [jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
              for x, axis in zip(arrays, axes)]
    results = primitive.bind(*[x.reshape(-1, *x.shape[2:]) for x in mapped], **fixed)
    return [x.reshape(size, -1, *x.shape[1:]) for x in results], [0] * len(results)


def _split_by_images(run, *arrays, **fixed):
    """`run` on the devices of the mesh it is traced under: each takes its own images. No compiler splits a kernel."""
    mesh, run = jax.sharding.get_abstract_mesh(), functools.partial(run, **fixed)
    if not mesh.empty and mesh.size > 1 and len(arrays[0]) % mesh.size == 0:
        images = PartitionSpec(mesh.axis_names)
        run = jax.shard_map(run, mesh=mesh, in_specs=images, out_specs=images, check_vma=False)
    return run(*arrays)


_crops_kernel = _kernel("roi_align_tiles", _run_crops, lambda *arrays, **_: [
    (*arrays[-1].shape, BINS, BINS, arrays[0].shape[-1])])
_gradients_kernel = _kernel("roi_align_tiles_backward", _run_gradients, lambda gradient, *_, shapes, **__: [
    (gradient.shape[0], *shape, gradient.shape[-1]) for shape in shapes])
