"""Files of named tensors: .safetensors and .pkl with numpy alone, .pth through torch, .h5 through h5py.

No code in a file is ever run: a `.pth` is read by torch's restricted unpickler, a `.pkl` by `pickles`' own. They know
tensors or arrays and plain containers, and refuse anything else.
"""
import os
import pathlib

import ml_dtypes
import numpy as np
import safetensors.numpy

from htd_jax import paths
from htd_jax.errors import UserError
from htd_jax.weights import keras, pickles

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES, ".pkl", ".h5", ".hdf5")
INSTALL_TORCH = "pip install torch --index-url https://download.pytorch.org/whl/cpu"

_NESTED = ("state_dict", "model")  # where training programs put the tensors, beside their own state


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` file; a `.pth`, `.pt` or `.bin` that torch saved (zip or legacy); a `.pkl` of numpy arrays
    (Detectron, Detectron2); or Keras' `.h5`.

    In a `.pth` the tensors lie at the top or under `state_dict` or `model`. Floating-point tensors become float32.
    Raises UserError where the file is missing, of another kind, damaged, holds anything but tensors and plain
    containers, has a value that is not finite, or needs torch or h5py and that is absent.
    """
    if paths.in_bucket(path):
        raise UserError(f"{path}: is no run; files of weights are read from a disk: copy it there")
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file {path.suffix!r}; weights come as {', '.join(SUFFIXES)}")
    readers = {".safetensors": _read_safetensors, ".pkl": pickles.read, ".h5": keras.read, ".hdf5": keras.read}
    tensors = readers.get(path.suffix, _read_torch)(path)
    if not tensors:
        raise UserError(f"{path}: holds no tensor")
    return {name: _finite(name, array, path) for name, array in tensors.items()}


def write(path: str | os.PathLike, tensors: dict[str, np.ndarray]) -> None:
    """Writes a `.safetensors` file, which appears whole or not at all.

    Raises UserError where the suffix is another, or the folder cannot be written to.
    """
    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: weights are written as .safetensors, not {path.suffix!r}")
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    # safetensors copies memory as it lies: a transposed view would be written scrambled.
    whole = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(whole, part, metadata={"format": "pt"})
        part.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {_first_line(error)}") from error


def _finite(name, array, path):
    """The array, in float32 where it has a floating point; UserError where it holds nan or infinity."""
    if array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16:
        with np.errstate(over="ignore"):  # a float64 may be beyond float32
            array = array.astype(np.float32, copy=False)
    if bad := array.size - np.isfinite(array).sum():
        raise UserError(f"{path}: {bad} of {array.size} values of {name} are nan or infinite: the training that wrote "
                        "them had diverged; give an earlier checkpoint")
    return array


def _read_safetensors(path):
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged or no .safetensors file: {_first_line(error)}") from error


def _read_torch(path):
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path}: reading {path.suffix} needs PyTorch (its CPU build will do): {INSTALL_TORCH}; "
                        "a .safetensors file needs none") from error
    tensors = _state_dict(_unpickle(path, torch), path, torch)
    return {name: _in_numpy(name, value, path) for name, value in tensors.items()}


def _in_numpy(name, value, path):
    try:
        return (value.float() if value.is_floating_point() else value).detach().numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:  # sparse, quantised, without values
        raise UserError(f"{path}: {name} is no plain tensor: {_first_line(error)}; save dense floats") from error


def _unpickle(path, torch):
    """Loads the file without running code in it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for damaged files, and the pickle's own besides
        if "weights_only" in str(error):  # torch's message for everything that would call a function
            _, named, rest = str(error).partition("GLOBAL ")
            culprit = rest.split()[0] if named else "Python objects"
            raise UserError(f"{path}: refused: it holds {culprit}, not tensors alone, and would run code when loaded; "
                            "save the state_dict alone, where the file was made") from error
        raise UserError(f"{path}: is damaged or no PyTorch file: {_first_line(error)}") from error


def _state_dict(content, path, torch):
    """Returns {name: tensor} from what was in the file."""
    for key in _NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; a dict of named tensors is needed")
    others = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(f"{path}: has no tensors under {' or '.join(_NESTED)}, and none at {', '.join(others[:10])}")
    return {str(name): value for name, value in content.items()}


def _first_line(error):
    return f"{type(error).__name__} {next(iter(str(error).splitlines()), '')}".strip()
