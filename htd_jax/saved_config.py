"""The configuration of a run, as --config takes it: `saved_config.py:RUN/config.json`."""
import pathlib

from ml_collections import ConfigDict

from htd_jax import config as config_lib


def get_config(path: str) -> ConfigDict:
    """Reads a config.json; UserError where it cannot be used."""
    return config_lib.from_json(pathlib.Path(path).read_text(encoding="utf-8"))
