"""HTD object detection in JAX. `from htd_jax import Detector` is all that using a trained model takes.

Names are imported when first asked for, so that tools which need no model start without one.
"""

__all__ = ["Detection", "Detector"]


def __getattr__(name):
    if name in __all__:
        from htd_jax import detector
        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
