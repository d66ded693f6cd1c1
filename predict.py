"""Detects objects in images: `python predict.py --help`. Installed as a package, the same program is htd-predict."""
from htd_jax.predict import command

if __name__ == "__main__":
    command()
