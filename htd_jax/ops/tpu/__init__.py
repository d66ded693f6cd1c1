"""Kernels that only a TPU runs. What each computes is said by the operator it belongs to."""
