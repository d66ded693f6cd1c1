"""Trains HTD, from the start or from the newest checkpoint of the workdir.

Example:
  python train.py --config configs/htd_r50.py --workdir runs/r50
  python train.py --config configs/htd_r50.py --workdir runs/small --config.batch_size=2 --config.data.scale='(512, 320)'
"""
from absl import flags

from htd_jax import cli
from htd_jax.errors import UserError

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints and logs; started again on it, training goes on.")


def main(arguments):
    if arguments:
        raise UserError(f"unexpected argument {arguments[0]!r}; keys are set as --config.KEY=VALUE")
    if not _WORKDIR.value:
        raise UserError("--workdir is missing; for example --workdir runs/r50")
    from htd_jax.training import loop  # after the command line is known to be good: the imports take seconds
    loop.train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, __doc__)
