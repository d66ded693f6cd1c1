"""What convert.py and doctor.py share: a command line whose --config may be left out."""
import sys

from absl import flags

from htd_jax import cli
from htd_jax.errors import UserError


def run(main, doc):
    """As `cli.run`, but without --config in the command line `main` is called all the same; its config is then None."""
    if any(argument.lstrip("-").startswith(("config", "h")) for argument in sys.argv[1:] if argument.startswith("-")):
        return cli.run(main, doc)
    try:
        return main(flags.FLAGS(sys.argv)[1:])
    except (UserError, flags.Error) as error:
        sys.exit(cli.fail(error))
