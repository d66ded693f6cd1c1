"""Where a command's configuration is: a recipe by its name, a run's config.json, or the one a checkpoint brings."""
import argparse
import os
import pathlib

from htd_jax import paths
from htd_jax.errors import UserError

_HERE = pathlib.Path(__file__).resolve().parent
_FOLDERS = _HERE / "configs", _HERE.parent / "configs"  # in an installed package, in a clone
_SAVED = _HERE / "saved_config.py"


def path_of(config: str | os.PathLike) -> str:
    """The file of a recipe: `config` itself, or the one of this package that `htd_r50` or `configs/htd_r50.py` means.

    A name that is neither a file nor a recipe is returned as it is.
    """
    given = pathlib.Path(config)
    if given.exists() or str(given.parent) not in (".", "configs"):
        return str(config)
    found = (folder / f"{given.name.removesuffix('.py')}.py" for folder in _FOLDERS)
    return str(next((path for path in found if path.is_file()), config))


def complete(argv: list[str]) -> list[str]:
    """A command line whose --config can be read: a recipe by its path, a config.json, or else the checkpoint's own.

    Raises UserError where --config is left out and --checkpoint does not exist.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("config", "checkpoint"):
        parser.add_argument(f"--{name}", f"-{name}", nargs="?")
    given, rest = parser.parse_known_args(argv[1:])
    config = path_of(given.config) if given.config else _folder(given.checkpoint)
    config = f"{_SAVED}:{config}" if config and (config.endswith(".json") or paths.of(config).is_dir()) else config
    named = [f"--{name}={value}" for name, value in (("config", config), ("checkpoint", given.checkpoint)) if value]
    return [*argv[:1], *named, *rest]


def _folder(checkpoint):
    """The checkpoint itself where it is a workdir or one saved step, which have a configuration; else None."""
    if not checkpoint or checkpoint.startswith("hf:"):
        return None
    paths.check(checkpoint)
    if not paths.of(checkpoint).exists():
        raise UserError(f"--checkpoint {checkpoint}: no such file or folder")
    return checkpoint if paths.of(checkpoint).is_dir() else None
