"""Convolution of few images for a TPU: as matrix products.

Its compiler wants eight images or more. Of fewer it cuts each image in strips, and takes the maps apart and together
again wherever something else, such as a gather, stands between two convolutions: that takes longer than the work.
"""
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from htd_jax.ops.conv import conv

ENOUGH = 8  # images that the compiler works on as they are


def conv_beside_gathers(x: Float[Array, "B H W I"], kernel: Float[Array, "kh kw _ O"], strides: Sequence[int],
                        padding: Sequence[tuple[int, int]], *, feature_group_count: int,
                        **more: Any) -> Float[Array, "B Ho Wo O"]:
    """`conv`; of few images, on a TPU, as a product."""
    plain = lambda x, kernel: conv(x, kernel, strides, padding, feature_group_count=feature_group_count, **more)
    if len(x) >= ENOUGH or feature_group_count > 1:
        return plain(x, kernel)
    product = lambda x, kernel: conv_as_product(x, kernel, strides, padding)
    return jax.lax.platform_dependent(x, kernel, tpu=product, default=plain)


def conv_as_product(x: Float[Array, "B H W I"], kernel: Float[Array, "kh kw I O"], strides: Sequence[int],
                    padding: Sequence[tuple[int, int]]) -> Float[Array, "B Ho Wo O"]:
    """Convolution as one product with the cells that each output reads side by side."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    seen = jnp.concatenate([_of_tap(x, tap, kernel.shape, strides) for tap in np.ndindex(kernel.shape[:2])], axis=-1)
    rows = seen.reshape(-1, seen.shape[-1]) @ kernel.reshape(-1, kernel.shape[-1])
    return rows.reshape(*seen.shape[:3], -1)


def _of_tap(x, tap, kernel_shape, strides):
    """The cells of the padded `x` that a tap reads, one for each output."""
    slices = [slice(start, size - length + start + 1, stride)
              for start, size, length, stride in zip(tap, x.shape[1:3], kernel_shape, strides)]
    return x[:, slices[0], slices[1]]
