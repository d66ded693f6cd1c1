"""Operators: pure functions on the arrays of one image. They know nothing of modules, files or configs.

The names of axes and arrays are those of `htd_jax.models`, without the axis of images.
"""
