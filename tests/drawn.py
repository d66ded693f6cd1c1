"""Strategies of hypothesis for the arrays that operators take. Shapes are fixed, so that an operator compiles once."""
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_st

KINDS = ("any", "integer", "point", "line", "outside", "huge", "inverted")


def floats(shape, low, high):
    """Arrays of float32."""
    return numpy_st.arrays(np.float32, shape, elements=st.floats(low, high, width=32, allow_subnormal=False))


@st.composite
def boxes(draw, count, side=256, kinds=KINDS, reach=4000):
    """float32 `[count, 4]` around an image of `side` pixels, each of one of `kinds`; huge ones of `reach` pixels."""
    corner, extent = (draw(floats((count, 2), low, side)) for low in (-side / 8, 0))
    kind = np.array(draw(st.lists(st.sampled_from(kinds), min_size=count, max_size=count)))
    corner, extent = (np.where((kind == "integer")[:, None], np.round(x), x) for x in (corner, extent))
    extent[kind == "point"] = 0
    extent[kind == "line", draw(st.integers(0, 1))] = 0
    corner[kind == "outside"] += draw(st.sampled_from((-4, 4))) * np.float32(side)
    corner[kind == "huge"] -= reach / 2
    extent[kind == "huge"] += reach / 2
    extent[kind == "inverted"] *= -1
    return np.concatenate([corner, corner + extent], axis=1).astype(np.float32)


@st.composite
def whole_boxes(draw, count, side=24):
    """float32 `[count, 4]` with whole coordinates, also negative ones: IoUs are exact, many are equal, some boxes are
    the same and some have no area."""
    corner = draw(numpy_st.arrays(np.int32, (count, 2), elements=st.integers(-side // 2, side)))
    extent = draw(numpy_st.arrays(np.int32, (count, 2), elements=st.integers(0, side)))
    return np.concatenate([corner, corner + extent], axis=1).astype(np.float32)


def scores(shape):
    """float32 of few values, so that ties are the rule; also 0, 1 and -0."""
    return numpy_st.arrays(np.float32, shape, elements=st.sampled_from((0, -0.0, .01, .05, .3, .5, .7, .99, 1)))


seeds = st.integers(0, 2**32 - 1)
