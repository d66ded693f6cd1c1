"""Paths as users write them: on a disk, or gs://BUCKET/... in Google Cloud Storage, through etils.epath and gcsfs.

An object of a bucket appears whole or not at all. Nothing can be appended to it, so files are written anew; there are
no folders to make, and no locks.
"""
import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from etils import epath

from htd_jax.errors import UserError, one_line

Path = pathlib.Path | epath.Path  # a disk's is always pathlib's

_BUCKETS = "gs://"
_EXTRA = 'pip install ".[gcs]" in a clone, or pip install gcsfs'


def of(path: str | os.PathLike) -> Path:
    """What a user wrote, `~` expanded. Raises UserError for another store, or where the extra is missing."""
    text = os.fspath(path)
    if in_bucket(text):
        _find_gcsfs(text)
        return epath.Path(text)
    if "://" in text:
        raise UserError(f"{text}: paths are those of a disk, or {_BUCKETS}BUCKET/...")
    return pathlib.Path(os.path.expanduser(text))


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is of a bucket, not of a disk."""
    return os.fspath(path).startswith(_BUCKETS)


def absolute(path: str | os.PathLike, links: bool = True) -> Path:
    """`of`, absolute; without `links` they are resolved."""
    path = of(path)
    if in_bucket(path):
        return path
    return path.absolute() if links else pathlib.Path(os.path.realpath(path))  # `resolve` fails at a loop of links


def check(path: str | os.PathLike) -> None:
    """Raises UserError unless the bucket of a path is there and can be reached; says nothing of a disk."""
    path = of(path)
    if not in_bucket(path):
        return
    bucket = epath.Path(_BUCKETS + "".join(path.parts[2:3]))
    if bucket == epath.Path(_BUCKETS):
        raise UserError(f"{path} names no bucket: {_BUCKETS}BUCKET/...")
    try:
        bucket.stat()
    except FileNotFoundError:
        raise UserError(f"{path}: there is no bucket {bucket}, or these credentials may not see it") from None
    except Exception as error:  # gcsfs, aiohttp and google.auth raise many kinds
        raise UserError(f"{path}: {bucket} cannot be reached: {type(error).__name__} {one_line(error)}; credentials "
                        "are the machine's, or those of gcloud auth application-default login") from error


def make_folder(path: Path) -> None:
    """Makes a folder with its parents where it is missing; raises OSError, or UserError as `check` does."""
    check(path)
    if not in_bucket(path):
        path.mkdir(parents=True, exist_ok=True)


def write(path: Path, content: str | bytes, whole: bool = False) -> None:
    """Writes a file, text as UTF-8; raises OSError. `whole`: on a disk, too, it appears whole or not at all."""
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        with os_errors():
            path.write_bytes(data)
    elif whole:
        new = path.with_suffix(".new")
        new.write_bytes(data)
        new.replace(path)
    else:
        path.write_bytes(data)


@contextlib.contextmanager
def os_errors() -> Iterator[None]:
    """Whatever a store's client raises within becomes an OSError."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:  # gcsfs, aiohttp and Google's own raise many kinds
        raise OSError(errno.EIO, f"{type(error).__name__} {one_line(error)}") from error


def _find_gcsfs(path):
    # One way to the store, whether TensorFlow is installed or not, and without what gcsfs calls experimental.
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import gcsfs  # noqa: F401
        from fsspec.config import conf
    except ImportError:
        raise UserError(f"{path}: {_BUCKETS} needs the extra gcs: {_EXTRA}") from None
    # Other hosts, and TensorStore beside us, write here: no listing may be an old one.
    conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
