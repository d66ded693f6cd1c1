"""Pickles of numpy arrays, as Detectron and Detectron2 publish weights, read without running code in them."""
import os
import pathlib
import pickle
import re

import numpy as np

from htd_jax.errors import UserError, one_line

# All that arrays need, by protocols 0 to 5. None of these calls what a file names or gives it a way to.
_ALLOWED = {"numpy._core.multiarray._reconstruct", "numpy._core.multiarray.scalar", "numpy._core.numeric._frombuffer",
            "numpy.ndarray", "numpy.dtype", "_codecs.encode", "collections.OrderedDict"}
_NESTED = ("model", "blobs")  # where Detectron2 and Detectron put the arrays


class _Refused(Exception):
    """The name of what a pickle would call."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        today = re.sub(r"^numpy\.core\b", "numpy._core", module)  # where it lies since numpy 2
        if f"{today}.{name}" not in _ALLOWED:
            raise _Refused(f"{module}.{name}")
        return super().find_class(today, name)


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads the arrays of a pickle, at its top or under `model` or `blobs`; momenta are left out.

    Raises UserError where the file is damaged, holds no arrays, or would call anything but numpy's reconstruction.
    """
    path = pathlib.Path(path)
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except _Refused as refused:
        raise UserError(f"{path}: refused: it would call {refused} when loaded; where it was made, save its arrays "
                        "alone by safetensors.numpy.save_file(arrays, 'weights.safetensors')") from None
    except Exception as error:  # a damaged pickle raises whatever its bytes lead to
        raise UserError(f"{path}: is damaged or no pickle: {one_line(error)}") from error
    nested = content if isinstance(content, dict) else {}
    content = next((nested[key] for key in _NESTED if isinstance(nested.get(key), dict)), nested)
    arrays = {str(name): np.asarray(value) for name, value in content.items()
              if isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and not str(name).endswith("_momentum")}
    if not arrays:
        raise UserError(f"{path}: has no numpy arrays under {' or '.join(_NESTED)}, and none at its top")
    return arrays
