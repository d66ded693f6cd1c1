"""Annotations of arrays are checked while tests trace."""
import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from htd_jax.models.sfa import SFA
from htd_jax.ops.boxes import pairwise_iou


@pytest.mark.parametrize("shape, dtype", [((2, 5), float), ((2, 4), int), ((4,), float)], ids=str)
def test_a_wrong_array_is_an_error(shape, dtype):
    wrong = jnp.zeros(shape, dtype)
    with pytest.raises(TypeCheckError, match="pairwise_iou"):
        jax.eval_shape(pairwise_iou, jnp.zeros((3, 4)), wrong)


def test_methods_of_modules_are_checked():
    with pytest.raises(TypeCheckError, match="SFA.__call__"):
        SFA.__call__(None, jnp.zeros((2, 4, 4, 8)), jnp.zeros((3, 2), int))


def test_arrays_of_unequal_rank_meet_nowhere():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.zeros((2, 3)) + jnp.zeros(3)
