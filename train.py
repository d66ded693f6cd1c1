"""Trains HTD, from the start or from the newest checkpoint of the workdir.

Example:
  python train.py --config configs/htd_r50.py --workdir runs/r50
  python train.py --config configs/htd_r50.py --workdir runs/small --config.batch_size=2 \\
      --config.data.scale='(512, 320)'
"""
from absl import flags

from htd_jax import cli

_CONFIG = cli.define_config()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of checkpoints and logs; training resumes from the newest.")


def main(arguments: list[str]) -> None:
    cli.check(arguments, workdir=_WORKDIR.value)
    from htd_jax.training import loop  # after the command line is checked: the imports take seconds

    loop.train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    cli.run(main, __doc__)
