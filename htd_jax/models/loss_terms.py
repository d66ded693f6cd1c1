"""Terms of the losses that the RPN and the two stages share."""
import jax.numpy as jnp
import optax


def smooth_l1(difference, beta):
    """Elementwise .5 d^2 / beta below `beta`, |d| - .5 beta above."""
    return optax.huber_loss(difference, delta=beta) / beta


def masked_sum(values, mask):
    """Sum of `values` where `mask`; what is masked may be infinite or nan."""
    return jnp.where(mask, values, 0).sum()
