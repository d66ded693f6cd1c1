"""Kernels that only a GPU runs. What each computes is said by the operator it belongs to."""
