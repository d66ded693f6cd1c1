"""Trains HTD, from the start or from the newest checkpoint of the workdir.

Example:
  python train.py --config configs/htd_r50.py --workdir runs/r50
  python train.py --config configs/htd_r50.py --workdir runs/small --config.batch_size=2 \\
      --config.data.scale='(512, 320)'
"""
from absl import flags

from htd_jax import cli


def main(arguments: list[str]) -> None:
    args = flags.FLAGS
    cli.check(arguments, workdir=args.workdir)
    from htd_jax.training import loop  # after the command line is checked: the imports take seconds

    loop.train(args.config, args.workdir)


def command() -> None:
    """The program `train.py` or htd-train."""
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of checkpoints and logs; training resumes from the newest.")
    cli.run(main, __doc__)


if __name__ == "__main__":
    command()
