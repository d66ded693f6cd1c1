"""The grid of anchors of the region proposal network."""
import numpy as np

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)  # height / width
SCALE = 8


def level_anchors(height, width, stride):
    """Anchors of one level: float32 numpy `[height * width * 3, 4]`, order y, x, ratio.

    Centred on `(x * stride, y * stride)`, without the half pixel that others add;
    width `stride * 8 / sqrt(r)` and height `stride * 8 * sqrt(r)` for each height/width ratio r.
    They are constants of the shape, hence numpy: computed once while tracing.
    """
    roots = np.sqrt(np.asarray(RATIOS, np.float32))
    half_w, half_h = stride * SCALE / roots / 2, stride * SCALE * roots / 2
    base = np.stack([-half_w, -half_h, half_w, half_h], axis=-1).astype(np.float32)
    x, y = np.meshgrid(np.arange(width) * stride, np.arange(height) * stride)
    shifts = np.stack([x, y, x, y], axis=-1).astype(np.float32)
    return (shifts[:, :, None] + base).reshape(-1, 4)


def grid_anchors(shapes, strides=STRIDES):
    """List of `level_anchors` for the `(height, width)` of each level, P2..P6."""
    return [level_anchors(h, w, stride) for (h, w), stride in zip(shapes, strides)]


def cells_inside(shapes, padded, strides=STRIDES):
    """Whether each anchor's cell lies in the first `padded` (h, w) pixels: bool `[anchors]`, all levels joined.

    `padded` may be traced; it is the padding the original would have had, where the array has more.
    """
    import jax.numpy as jnp

    rows = []
    for (h, w), stride in zip(shapes, strides):
        y = jnp.arange(h)[:, None] * stride < padded[0]
        x = jnp.arange(w)[None, :] * stride < padded[1]
        rows.append(jnp.repeat((y & x).reshape(-1), len(RATIOS)))
    return jnp.concatenate(rows)
