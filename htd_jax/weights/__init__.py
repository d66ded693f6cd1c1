"""Weights of the original PyTorch implementation and of its backbones: names, files, loading."""
