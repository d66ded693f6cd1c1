"""The detector: Flax NNX modules and the two pure functions over them, `losses` and `detect`."""
