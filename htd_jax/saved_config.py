"""The configuration of a run, as --config takes it: `saved_config.py:RUN/config.json`, `saved_config.py:CHECKPOINT`."""
import json

from ml_collections import ConfigDict

from htd_jax import checkpoint_files, config as config_lib, paths


def get_config(path: str) -> ConfigDict:
    """Reads a config.json, or the one of a workdir or a saved step; UserError where it cannot be used."""
    if paths.of(path).is_dir():
        return config_lib.from_json(json.dumps(checkpoint_files.find(path, "config", dict)))
    return config_lib.from_json(paths.of(path).read_text(encoding="utf-8"))
