"""Where the images of an annotation file are, though exporters spell paths in their own ways."""
import difflib
import logging
import os
import urllib.parse
from collections.abc import Sequence

from htd_jax.errors import UserError

log = logging.getLogger(__name__)

# Each is tried on top of those before it.
_SPELLINGS = (
    ("as written", lambda name, tree: name),
    ("with / for \\", lambda name, tree: name.replace("\\", "/")),
    ("URL-decoded", lambda name, tree: urllib.parse.unquote(name)),
    ("without leading folders", lambda name, tree: tree.tail(name)),
    ("in another case", lambda name, tree: tree.in_its_case(name)),
)


def locate(names: Sequence[str], folder: str | os.PathLike, annotations: str | os.PathLike) -> list[str]:
    """The names under which the files lie in `folder`: as written or, where *all* are found so, in another spelling.

    Raises UserError, which names `annotations`, the first missing file and the nearest name that there is.
    """
    if not os.path.isdir(folder):
        raise UserError(f"image folder {folder} (for {annotations}) does not exist")
    tree, found = _Tree(folder), list(names)
    for spelling, change in _SPELLINGS:
        found = [change(name, tree) for name in found]
        if all(map(tree.has, found)) and len(set(found)) == len(set(names)):
            if found != list(names):
                log.info("%s: image files are taken %s, as in %s", annotations, spelling, found[0])
            return found
    missing = [name for name in names if not tree.has(name)]
    raise UserError(f"image file {missing[0]} of {annotations} is not in {folder}"
                    + f", nor are {len(missing) - 1} others of {len(names)}" * (len(missing) > 1)
                    + tree.hint(missing[0]))


class _Tree:
    """A folder with what is in it, listed once a sub-folder."""

    def __init__(self, folder):
        self._folder, self._listings = folder, {}

    def has(self, name):
        folder, base = os.path.split(os.path.join(self._folder, name))
        return base in self._listing(folder)

    def tail(self, name):
        """The longest end of a path that exists, or the path itself."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        tails = ("/".join(parts[k:]) for k in range(len(parts)))
        return next((tail for tail in tails if self.has(tail)), "/".join(parts[-1:]) or name)

    def in_its_case(self, name):
        """The one file whose name differs in case alone, or the name itself."""
        folder, base = os.path.split(name)
        alike = self._listing(os.path.join(self._folder, folder) if folder else self._folder).folded(base)
        return os.path.join(folder, alike[0]) if len(alike) == 1 else name

    def hint(self, name):
        listed = [*self._listing(self._folder)]
        near = difflib.get_close_matches(os.path.basename(name), listed, n=1, cutoff=.5) or sorted(listed)[:1]
        return f"; the nearest name there is {near[0]}" if near else "; that folder is empty"

    def _listing(self, folder):
        folder = os.fspath(folder)
        if folder not in self._listings:
            self._listings[folder] = _Listing(os.listdir(folder) if os.path.isdir(folder) else ())
        return self._listings[folder]


class _Listing(set):
    """Names of files; and those that are equal but for case."""

    def folded(self, name):
        if not hasattr(self, "_by_fold"):
            self._by_fold = {}
            for entry in self:
                self._by_fold.setdefault(entry.casefold(), []).append(entry)
        return self._by_fold.get(name.casefold(), [])
