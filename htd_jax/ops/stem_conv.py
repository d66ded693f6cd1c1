"""The stem's convolution for a TPU, which finds 3 channels too few to work on: blocks of 2 x 2 cells are 12."""
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def conv_of_blocks(x: Float[Array, "B H W C"], kernel: Float[Array, "7 7 C O"]) -> Float[Array, "B _ _ O"]:
    """7x7 convolution of stride 2, three zeros on each side.

    Of blocks it is a 4x4 convolution of stride 1; the first row and column of the first blocks have no weight. A zero
    row or column more changes nothing where H or W is odd. First two rows are put together, then two columns: at once,
    the blocks' axes would be moved one by one.
    """
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
    batch, height, width, channels = x.shape
    rows = jnp.concatenate([x[:, 0::2], x[:, 1::2]], axis=-1)
    blocks = rows.reshape(batch, height // 2, width // 2, 4 * channels)
    kernel = jnp.pad(kernel.astype(x.dtype), ((1, 0), (1, 0), (0, 0), (0, 0))).reshape(4, 2, 4, 2, channels, -1)
    kernel = kernel.transpose(0, 2, 3, 1, 4, 5).reshape(4, 4, 4 * channels, -1)
    return jax.lax.conv_general_dilated(blocks, kernel, (1, 1), ((2, 1), (2, 1)),
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))
