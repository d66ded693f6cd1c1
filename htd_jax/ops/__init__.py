"""Operators: pure functions on the arrays of one image. They know nothing of modules, files or configs."""
