"""What train.py, eval.py and predict.py share: the --config flag, and bad input as one line on stderr with status 2."""
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable

from absl import flags
from ml_collections import config_flags

from htd_jax import command_line, config as config_lib, paths, recipes
from htd_jax.errors import UserError
from htd_jax.training import prefetch

_HELP = {"-h", "-help", "--help", "--helpshort", "--helpfull"}
_MISSING = "--config is missing; for example --config configs/htd_r50.py"
_EXAMPLES = dict(checkpoint="runs/r50", workdir="runs/r50", output="exported")


def define_config() -> flags.FlagHolder:
    """Defines --config FILE and, with it, --config.KEY=VALUE; returns the holder, whose `.value` is the ConfigDict."""
    return config_flags.DEFINE_config_file("config", None, "A file of configs/; --config.KEY=VALUE sets its keys.")


def run(main: Callable[[list[str]], object], doc: str, config_required: bool = True) -> None:
    """Parses sys.argv, calls `main(positional arguments)` and ends the process: with 2 after bad input of any kind,
    with 130 after Ctrl-C.

    Args:
        main: called once --config has been read and checked. May raise UserError.
        doc: what --help prints before the flags; has an example.
        config_required: whether --config must be given. Where it need not and is not, its value is None.
    """
    if _HELP & set(sys.argv[1:]):
        module = sys.argv[0] if main.__module__ == "__main__" else main.__module__
        print(doc.strip(), flags.FLAGS.module_help(module), sep="\n")
        return
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="replace")  # a name that the terminal cannot show ends no program
    logging.basicConfig(format="%(message)s")
    logging.getLogger("htd_jax").setLevel(logging.INFO)
    try:
        sys.argv[:] = recipes.complete(command_line.normalised(sys.argv))  # ml_collections, too, reads sys.argv
        main(_parse(sys.argv, config_required))
        status = 0
    except UserError as error:
        status = fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        _leave(130)
    if prefetch.hangs():
        _leave(status)
    if status:
        sys.exit(status)


def fail(error: UserError) -> int:
    """Prints the error as one line on stderr; returns the exit status for it."""
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    return 2


def check(arguments: list[str], **required: str | None) -> None:
    """Raises UserError where there are positional arguments, a required flag has no value, or it is a path of a bucket
    that cannot be reached."""
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}; keys are set as --config.KEY=VALUE")
    for name, value in required.items():
        if not value:
            raise UserError(_required(name))
        paths.check(value)


def _leave(status):
    """Ends the process at once. Its usual end waits for all threads, and one that reads from a dead disk never ends."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


def _parse(argv, config_required):
    """Returns the positional arguments; whatever absl, ml_collections or the config file raise becomes a UserError."""
    _check_override_names(argv[1:])
    if config_required and not any(re.match(r"--?config(=|$)", argument) for argument in argv[1:]):
        raise UserError(_without_config(argv))  # absl would call its keys unknown flags
    try:
        rest = flags.FLAGS(argv)[1:]
        config = flags.FLAGS.config
        if config is not None:
            config_lib.validate(config_lib.expand_home(config))
        elif config_required:
            raise UserError(_MISSING)
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(str(error).replace("flag --", "--") + _as_key(error)) from error
    except Exception as error:  # the config file is Python and may raise anything
        raise UserError(_unusable_config(error)) from error
    return rest


def _without_config(argv):
    """A checkpoint may bring a configuration: of a program that takes one, that is what to give first."""
    if "checkpoint" in flags.FLAGS and not any(argument.startswith("--checkpoint=") for argument in argv):
        return _required("checkpoint")
    return _MISSING


def _required(name):
    return f"--{name} is missing; for example --{name} {_EXAMPLES[name]}"


def _as_key(error):
    """How to set what was given as a flag of its own, where it is a key."""
    name = getattr(error, "flagname", None)
    return f"; keys are set as --config.{name}=VALUE" * (name in config_lib.flatten(config_lib.default_config()))


def _check_override_names(arguments):
    """Unknown keys are named here, whole and with their value: ml_collections names only the last part."""
    known = config_lib.flatten(config_lib.default_config())
    for argument in arguments:
        override = re.match(r"--?(?:no)?config\.([^=]*)(.*)", argument)
        if override and override[1] not in known:
            hint = config_lib.suggestion(override[1], known)
            raise UserError(f"--config.{override[1]}{override[2]}: there is no such key{hint}")


def _unusable_config(error):
    lines = str(error).split("\n")
    if isinstance(error, OSError):
        return f"--config cannot be read: {lines[-1].strip()}"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"--config cannot be used: {type(error).__name__}: {lines[0]} ({frame.filename}, line {frame.lineno})"
