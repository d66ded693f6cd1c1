"""RoI crops by the kernels of accelerators, and the gradient of the pyramid: for one image, under `vmap`, for many.

Each kernel is a JAX primitive over a batch of images. So it takes all of them in one call however they were mapped, and
it is traced when a program is lowered for its device, not for every device that could have run the program.
"""
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from htd_jax.ops.crop_products import BINS
from htd_jax.ops.gpu import roi_align as gpu, roi_align_backward as gpu_backward
from htd_jax.ops.tpu import roi_align as tpu, roi_align_backward as tpu_backward
from htd_jax.ops.windows import Items


def takes(device: str, pyramid: Sequence[Float[Array, "*_ _ _ C"]]) -> bool:
    """Whether the kernels of `device` can pool from `pyramid`."""
    channels, dtype = pyramid[0].shape[-1], pyramid[0].dtype
    if device == "tpu":
        return tpu.fits([level.shape[-3:-1] for level in pyramid], channels, dtype)
    return gpu.fits(channels)


def crops_by_tiles(pyramid: Sequence[Float[Array, "_ _ C"]], parts: Sequence[Items], device: str,
                   interpret: bool = False) -> list[Float[Array, "_ 7 7 C"]]:
    """The crops of each of `parts` from a pyramid; 0 unless active. Only the pyramid has a gradient.

    `device`: whose kernels, 'tpu' or 'gpu'; `interpret`: run them on whatever device is there, slowly.
    """
    batch = jax.tree.map(lambda x: x[None], (list(pyramid), jax.lax.stop_gradient(parts)))
    return [crops[0] for crops in _crops(Kernels(device, interpret), tuple(x.shape[:2] for x in pyramid), *batch)]


class Kernels(NamedTuple):
    device: str
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _crops(kernels, shapes, pyramid, parts):
    return _crops_kernel.bind(*pyramid, *jax.tree.leaves(parts), **kernels._asdict(), count=len(parts))


def _crops_forward(kernels, shapes, pyramid, parts):
    return _crops(kernels, shapes, pyramid, parts), parts


def _crops_backward(kernels, shapes, parts, gradients):
    fixed = dict(kernels._asdict(), count=len(parts), shapes=shapes)
    return _gradients_kernel.bind(*gradients, *jax.tree.leaves(parts), **fixed), None


_crops.defvjp(_crops_forward, _crops_backward)


def _split(arrays, count):
    """What comes before the arrays of `count` parts, and the parts."""
    size = len(Items._fields)
    first = len(arrays) - count * size
    return arrays[:first], [Items(*arrays[k:k + size]) for k in range(first, len(arrays), size)]


def _run_crops(*arrays, device, interpret, count):
    return {"tpu": tpu, "gpu": gpu}[device].crops(*_split(arrays, count), interpret)


def _run_gradients(*arrays, device, interpret, count, shapes):
    return {"tpu": tpu_backward, "gpu": gpu_backward}[device].gradients(*_split(arrays, count), shapes, interpret)


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
    """`run` on the devices of the mesh it is traced under, each with its own images: no compiler splits a kernel."""
    mesh, run = jax.sharding.get_abstract_mesh(), functools.partial(run, **fixed)
    if not mesh.empty and mesh.size > 1 and len(arrays[0]) % mesh.size == 0:
        images = PartitionSpec(mesh.axis_names)
        run = jax.shard_map(run, mesh=mesh, in_specs=images, out_specs=images, check_vma=False)
    return run(*arrays)


def _shapes_of_crops(*arrays, count, **_):
    (finest, *_), parts = _split(arrays, count)
    return [(*part.levels.shape, BINS, BINS, finest.shape[-1]) for part in parts]


def _shapes_of_gradients(gradient, *_, shapes, **__):
    return [(gradient.shape[0], *shape, gradient.shape[-1]) for shape in shapes]


_crops_kernel = _kernel("roi_align_tiles", _run_crops, _shapes_of_crops)
_gradients_kernel = _kernel("roi_align_tiles_backward", _run_gradients, _shapes_of_gradients)
