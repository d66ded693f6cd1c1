"""The persistent compilation cache: a second start finds what the first has compiled."""
import os
import pathlib

import jax
from ml_collections import ConfigDict


def use_cache(config: ConfigDict) -> None:
    """Sets JAX's cache folder to config.compilation_cache ('': none), unless JAX_COMPILATION_CACHE_DIR is set."""
    if config.compilation_cache and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(config.compilation_cache).expanduser()))
