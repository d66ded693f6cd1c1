"""HTD object detection in JAX. `from htd_jax import Detector` is all that a trained model needs.

Names are imported on first use, so that tools which need no model start without one.
"""

__all__ = ["Detection", "Detector", "ImageDetections"]


def __getattr__(name: str) -> type:
    if name in __all__:
        from htd_jax import detector
        return getattr(detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
