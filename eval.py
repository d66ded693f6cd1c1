"""Scores a checkpoint: `python eval.py --help`. Installed as a package, the same program is htd-eval."""
from htd_jax.eval import command

if __name__ == "__main__":
    command()
