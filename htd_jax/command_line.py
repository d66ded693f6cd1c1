"""A command line as people write it, made into the one that absl and ml_collections understand."""
import os
import re

from htd_jax import config as config_lib


def normalised(argv: list[str]) -> list[str]:
    """`argv` with `~` expanded in every value, and each tuple given once.

    Of a tuple given twice the last one stays, as of every other key; ml_collections would append.
    """
    return [*argv[:1], *_last_of_each_tuple([_home(argument) for argument in argv[1:]])]


def _home(argument):
    flag, value = re.match(r"(--?[\w.]+=)?(.*)", argument, re.S).groups()
    return (flag or "") + os.path.expanduser(value)


def _last_of_each_tuple(arguments):
    """Without the values of keys whose default is a tuple that come again later; a value may be an argument itself."""
    keys = {key for key, value in config_lib.flatten(config_lib.default_config()).items() if isinstance(value, tuple)}
    keys.add("data.short_range")
    spans, k = [], 0
    while k < len(arguments):
        override = re.match(r"--?config\.([\w.]+)(=?)", arguments[k])
        key = override[1] if override and override[1] in keys else None
        length = 2 if key and not override[2] else 1
        spans.append((key, arguments[k:k + length]))
        k += length
    last = {key: number for number, (key, _) in enumerate(spans)}
    return [part for number, (key, parts) in enumerate(spans) if key is None or last[key] == number for part in parts]
