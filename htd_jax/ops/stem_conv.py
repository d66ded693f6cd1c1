"""The stem's convolution for a TPU, which finds 3 channels too few to work on: two columns side by side are 6."""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def conv_of_pairs(x: Float[Array, "B H W C"], kernel: Float[Array, "7 7 C O"]) -> Float[Array, "B _ _ O"]:
    """7x7 convolution of stride 2, three zeros on each side, W even.

    Of pairs of columns it is a 7x4 convolution of stride (2, 1); the first column of the first pair has no weight.
    """
    batch, height, width, channels = x.shape
    kernel = jnp.pad(kernel.astype(x.dtype), ((0, 0), (1, 0), (0, 0), (0, 0))).reshape(7, 4, 2 * channels, -1)
    return jax.lax.conv_general_dilated(x.reshape(batch, height, width // 2, 2 * channels), kernel, (2, 1),
                                        ((3, 3), (2, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
