"""Clips in a folder with one folder a class, local or remote."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..cache.errors import UserError
from ..extract.clips import Clip
from ..extract.remote import cause_of, file_system, scheme_of

SIDE_SUFFIXES = frozenset(
    ".7z .cfg .csv .db .gz .htm .html .ini .json .log .md .md5 .pdf .py .rar .rst .sh .sha256 .srt .tar .toml .tsv"
    " .txt .url .vtt .xml .yaml .yml .zip".split()
)
"""Files with these suffixes lie beside videos and are passed over."""

SIDE_NAMES = frozenset({"license", "licence", "makefile", "readme"})


class FolderSource:
    """The clips of a folder, sorted by id. The names of the folders on the way to a clip are all that is kept.

    The label is the name of the first-level folder; deeper folders may follow, and the id is the path relative to the
    root. Symbolic links are followed wherever they lead, since data sets are often built of links (git-annex, DVC, the
    Hugging Face cache); a link that leads nowhere stays a candidate, so that it is reported and not lost. A folder that
    contains itself through a link is entered once.

    Args:
        root: The folder; as a `str`, a URL.
    """

    def __init__(self, root: Path | str) -> None:
        self._root = os.path.join(root if isinstance(root, str) else os.path.abspath(root), "")

    def __iter__(self) -> Iterator[Clip]:
        top = list_folder(self._root)
        strays = [name for name, is_folder in top.entries if not is_folder and not _is_side_file(name)]
        if strays:
            raise UserError(
                f"{len(strays)} {'file lies' if len(strays) == 1 else 'files lie'} in no class folder "
                f"({first_few(strays)}); in {self._root}; put clips into one folder a class"
            )
        empty = True
        for label, is_folder in top.entries:
            if is_folder:
                for clip in _walk(f"{self._root}{label}/", f"{label}/", label, frozenset({top.identity})):
                    empty = False
                    yield clip
        if empty:
            raise UserError(f"no clips; in {self._root}; it should hold one folder a class with videos inside")


class Listing(NamedTuple):
    """What a folder holds."""

    identity: tuple[int, int] | str
    """The same for one folder under two names, where there are links."""
    entries: list[tuple[str, bool]]
    """Names that are not hidden and whether they are folders, in the order of the ids below them."""


def list_folder(folder: str) -> Listing:
    """List a local or remote folder, whose name ends with a slash.

    Raises:
        UserError: If it cannot be listed.
    """
    identity, entries = _list_remote(folder) if scheme_of(folder) else _list_local(folder)
    # With its slash, a folder stands where the ids of its clips stand.
    shown = [(name + "/" if is_folder else name, is_folder) for name, is_folder in entries if not name.startswith(".")]
    return Listing(identity, [(name.removesuffix("/"), is_folder) for name, is_folder in sorted(shown)])


def first_few(items: list[str], count: int = 5) -> str:
    """Return the first items as a text."""
    return ", ".join(items[:count]) + (", ..." if len(items) > count else "")


def _list_local(folder: str) -> tuple[tuple[int, int], list[tuple[str, bool]]]:
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            return (status.st_dev, status.st_ino), [(entry.name, _is_folder(entry)) for entry in entries]
    except OSError as error:
        raise UserError(f"cannot list the folder {folder!r}; {error.strerror}; mend its permissions") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or through a folder that may not be entered: the extractor reports it
        return False


def _list_remote(folder: str) -> tuple[str, list[tuple[str, bool]]]:
    try:
        files, path = file_system(folder)
        infos = files.ls(path, detail=True)
        files.invalidate_cache()  # some file systems remember every listing
    except UserError:
        raise
    except Exception as error:  # file systems raise errors of their own kinds
        raise UserError(f"cannot list the folder {folder!r}; {cause_of(error)}; mend the address or access") from error
    # Some list a folder among its own files, and give the name of a folder with a slash or without.
    names = {str(info["name"]).rstrip("/"): info["type"] == "directory" for info in infos}
    names.pop(path.rstrip("/"), None)
    return folder, [(name.rpartition("/")[2], is_folder) for name, is_folder in names.items()]


def _walk(folder: str, prefix: str, label: str, ancestors: frozenset[tuple[int, int] | str]) -> Iterator[Clip]:
    """Yield the clips below a folder, whose path relative to the root is `prefix`."""
    listing = list_folder(folder)
    if listing.identity in ancestors:  # a link back to a folder that we are inside of
        return
    for name, is_folder in listing.entries:
        if is_folder:
            yield from _walk(f"{folder}{name}/", f"{prefix}{name}/", label, ancestors | {listing.identity})
        elif not _is_side_file(name):
            yield Clip(prefix + name, folder + name, label)


def _is_side_file(name: str) -> bool:
    # os.path.splitext would take a second for a million names.
    _, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" in SIDE_SUFFIXES if dot else name.lower() in SIDE_NAMES
