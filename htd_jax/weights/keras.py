"""Keras' HDF5 files of weights: `.h5` of Keras 2 (weights or whole models) and `.weights.h5` of Keras 3."""
import os
import re

import numpy as np

from htd_jax.errors import UserError, one_line

# Last part of a variable's name -> today's name of it.
_LEAVES = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}
_LEAF = re.compile(r"(kernel|bias|gamma|beta|moving_mean|moving_variance|running_mean|running_std|W|b)(_\d+)?(:0)?$")
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")  # order of variables in Keras 3
_LAYER = ("kernel", "bias")


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads {"LAYER/VARIABLE": array}, with kernels as Keras lays them out, (height, width, in, out).

    Raises UserError where h5py is absent, or the file is damaged or names no layers.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: h5py is needed to read Keras' files: pip install h5py") from error
    found = {}

    def visit(name, node):
        if isinstance(node, h5py.Dataset) and node.dtype.kind in "fiu" and (key := _key(name, node, path)):
            found[key] = np.asarray(node)

    try:
        with h5py.File(path) as file:
            file.visititems(visit)
    except OSError as error:
        raise UserError(f"{path}: is damaged or no HDF5 file: {one_line(error)}") from error
    if not found:
        raise UserError(f"{path}: holds no layer's weights")
    return found


def _key(name, node, path):
    """LAYER/VARIABLE of a dataset, or None where it is no weight of a layer."""
    parts = name.split("/")
    if parts[-2:-1] == ["vars"]:
        return _keras3_key(parts, node, path)
    leaf = _LEAF.search(parts[-1])
    layer = parts[1] if parts[0] == "model_weights" else parts[0]
    return f"{layer}/{_LEAVES.get(leaf[1], leaf[1])}" if leaf and layer != "optimizer_weights" else None


def _keras3_key(parts, node, path):
    """From layers/CLASS_NUMBER/vars/INDEX: the layer's own name is an attribute, the variable's is its place."""
    if parts[0] != "layers":
        return None  # of the optimiser
    layer = node.parent.attrs.get("name") or node.parent.parent.attrs.get("name")
    if layer is None:
        raise UserError(f"{path}: does not name its layers; load it in Keras and write it by model.save('weights.h5')")
    variables = _NORM if "normalization" in parts[1] else _LAYER
    return f"{layer}/{variables[int(parts[-1])]}" if int(parts[-1]) < len(variables) else None
