"""The stem for a TPU, which works on 128 channels at a time: blocks of 4 x 4 pixels are 48, their 2 x 2 outputs 256."""
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BLOCK, OUTPUTS = 4, 2  # pixels and outputs along the side of a block


def stem_of_blocks(images: Float[Array, "B H W C"], kernel: Float[Array, "7 7 C O"], offset: Float[Array, "O"],
                   padded: Int[Array, "B 2"] | None) -> Float[Array, "B h w O"]:
    """7x7 convolution of stride 2, `offset`, ReLU, zeros beyond `padded` pixels, 3x3 max pooling of stride 2."""
    height, width = images.shape[1:3]
    filled = jnp.pad(images, ((0, 0), (0, -height % BLOCK), (0, -width % BLOCK), (0, 0)))
    maps = conv_of_blocks(filled, kernel) + jnp.tile(offset, OUTPUTS**2)[None, None, None]
    ends = jnp.array([[height, width]]) if padded is None else padded
    maps = jnp.where(_inside(maps.shape, ends), jax.nn.relu(maps), 0).astype(images.dtype)  # nothing is below 0
    return pool_of_blocks(pool_of_blocks(maps, axis=1), axis=2)


def conv_of_blocks(x: Float[Array, "B H W C"], kernel: Float[Array, "7 7 C O"]) -> Float[Array, "B h w _"]:
    """7x7 convolution of stride 2, three zeros on each side, H and W multiples of 4; of a block four times O outputs.

    Of blocks it is a 3x3 convolution. First four rows are put together, then four columns: at once, the blocks' axes
    would be moved one by one.
    """
    batch, height, width, channels = x.shape
    rows = jnp.concatenate([x[:, k::BLOCK] for k in range(BLOCK)], axis=-1)
    blocks = rows.reshape(batch, height // BLOCK, width // BLOCK, BLOCK**2 * channels)
    return jax.lax.conv_general_dilated(blocks, _kernel_of_blocks(kernel.astype(x.dtype)), (1, 1), "SAME",
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _kernel_of_blocks(kernel):
    """`[3, 3, 16 C, 4 O]`: in 12 x 12 pixels, an output's kernel begins at 1, or at 3 for the second of a block."""
    placed = [jnp.pad(kernel, (*((1 + 2 * k, 4 - 2 * k) for k in corner), (0, 0), (0, 0)))
              for corner in np.ndindex(OUTPUTS, OUTPUTS)]
    kernel = jnp.concatenate(placed, axis=-1)
    kernel = kernel.reshape(3, BLOCK, 3, BLOCK, *kernel.shape[2:]).transpose(0, 2, 3, 1, 4, 5)
    return kernel.reshape(3, 3, -1, kernel.shape[-1])


def _inside(shape, ends):
    """Whether each output of blocks, `shape [B, h, w, 4 O]`, stands for a pixel before `ends [B, 2]`."""
    outputs = np.indices((OUTPUTS, OUTPUTS, shape[3] // OUTPUTS**2)).reshape(3, -1)
    rows, columns = (BLOCK * jnp.arange(count)[None, :, None] + OUTPUTS * k[None, None] < end[:, None, None]
                     for count, k, end in zip(shape[1:3], outputs, ends.T))
    return rows[:, :, None] & columns[:, None]


def pool_of_blocks(x: Float[Array, "B h w _"], axis: int) -> Float[Array, "B h w _"]:
    """Pooling along an axis: of each block both outputs, halves of its channels, and the last of the block before."""
    before = jnp.pad(x, [(int(k == axis), 0) for k in range(x.ndim)])
    before = jax.lax.slice_in_dim(before, 0, x.shape[axis], axis=axis)
    (first, last), (_, last_before) = (jnp.split(part, OUTPUTS, axis=-1) for part in (x, before))
    return jnp.maximum(jnp.maximum(first, last), last_before)
