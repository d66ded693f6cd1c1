"""Trains HTD: `python train.py --help`. Installed as a package, the same program is htd-train."""
from htd_jax.train import command

if __name__ == "__main__":
    command()
