"""Clips in a CSV `path,label[,split]`, local or remote, read row by row."""

import csv
import os
import posixpath
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

from ..cache.errors import UserError
from ..extract.clips import Clip
from ..extract.remote import as_place, cause_of, file_system, folder_of, scheme_of
from .repeats import first_repeat
from .source_folder import first_few

PARTS = ("train", "val", "test")

NAMED_FILES = 3
"""How many of the missing files an error names."""


class CsvSource:
    """The clips of a CSV, in its order.

    Relative paths start at the CSV's folder; the id is the path as written, normalised. A path may be a URL, which is
    its own id. The first complete iteration also makes sure that no id occurs twice, and that the packages for the URLs
    are installed.

    Args:
        source: The CSV; as a `str`, a URL.
    """

    def __init__(self, source: Path | str) -> None:
        self._source = source
        self._folder = folder_of(source) if isinstance(source, str) else os.path.abspath(source.parent)
        self._checked = False

    def __iter__(self) -> Iterator[Clip]:
        census = None if self._checked else _Census()
        for row in _rows(self._source):
            clip = _clip(row, self._folder)
            if census:
                census.take(clip, row)
            yield clip
        if census:
            self._refuse(census)
            self._checked = True

    def require(self, clips: Iterable[Clip]) -> None:
        """Make sure that the files of some of these clips are there, as far as they are local.

        Raises:
            UserError: Counting those that are missing, and naming the first few with their lines.
        """
        clips = list(clips)
        missing = {clip.id for clip in clips if scheme_of(str(clip.place)) is None and not _is_there(str(clip.place))}
        if missing:
            named = (f"line {line}: {clip_id!r}" for clip_id, line in self._places() if clip_id in missing)
            raise UserError(
                f"{len(missing)} of {len(clips)} files are missing "
                f"({first_few(list(islice(named, NAMED_FILES + 1)), NAMED_FILES)}); listed in {self._source}; "
                f"mend the paths (relative ones start at {self._folder})"
            )

    def _refuse(self, census: "_Census") -> None:
        """Raise if the list as a whole is bad."""
        if not census.hashes:
            raise UserError(f"no clips; {self._source} has a header and no rows; write one row a clip: path,label")
        if repeat := first_repeat(census.hashes, self._places):
            clip_id, first, second = repeat
            raise UserError(f"{clip_id!r} is listed twice; lines {first} and {second} of {self._source}; drop one")

    def _places(self) -> Iterator[tuple[str, int]]:
        return ((_clip(row, self._folder).id, row.line) for row in _rows(self._source))


def csv_split(source: Path) -> dict[str, list[str]] | None:
    """Read the class split from a CSV's `split` column.

    Returns:
        Sorted class names of each part (train, val, test) that occurs, or None without such a column.

    Raises:
        UserError: If a part is unknown or a class lies in two parts.
    """
    parts: dict[str, str] = {}
    has_column = False
    for row in _rows(source, ("path", "id")):  # lists of imported features name their clips by id
        if row.part is None:
            continue
        has_column = True
        if not row.part:
            continue
        if row.part not in PARTS:
            raise UserError(f"unknown split {row.part!r}; line {row.line} of {source}; write train, val or test")
        if parts.setdefault(row.label, row.part) != row.part:
            raise UserError(
                f"class {row.label!r} is in {parts[row.label]!r} and in {row.part!r}; line {row.line} of {source}; "
                "few-shot splits divide classes, so give all its clips one split"
            )
    if not has_column:
        return None
    return {
        part: sorted(label for label, of in parts.items() if of == part) for part in PARTS if part in parts.values()
    }


class _Row(NamedTuple):
    """One row of a dataset's CSV."""

    line: int
    """Where the row starts, from 1."""
    path: str
    label: str
    part: str | None
    """Stripped `split`; None if the CSV has no such column."""


class _Census:
    """What the first complete iteration gathers, in little memory."""

    def __init__(self) -> None:
        self.hashes = array("q")
        self._schemes: set[str] = set()

    def take(self, clip: Clip, row: _Row) -> None:
        """Look at a clip.

        Raises:
            UserError: If it lies where nothing can be opened.
        """
        self.hashes.append(hash(clip.id))
        place = str(clip.place)
        if (scheme := scheme_of(place)) and scheme not in self._schemes:
            self._schemes.add(scheme)
            _try_scheme(place, row)


def _try_scheme(url: str, row: _Row) -> None:
    try:
        file_system(url)
    except UserError as error:
        raise UserError(f"line {row.line}: {error}") from error
    except Exception as error:  # file systems raise errors of their own kinds
        raise UserError(f"cannot reach {url!r} ({cause_of(error)}); line {row.line}; mend the address") from error


def _is_there(path: str) -> bool:
    """Whether something has this name, a dangling link included (the extractor reports that one)."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a zero byte in the name
        return False


def _clip(row: _Row, folder: str) -> Clip:
    """Return the clip of a row in a CSV that lies in a folder. An absolute path is local, wherever the CSV lies."""
    path = row.path
    if "://" in path:
        place = as_place(path)
        if isinstance(place, str):
            return Clip(path, place, row.label)
        path = str(place)
    clip_id = posixpath.normpath(path)
    if path[0] == "/":
        return Clip(clip_id, path, row.label)
    scheme = scheme_of(folder)
    if scheme is None:
        return Clip(clip_id, f"{folder}/{path}", row.label)
    # "a/../b" is for the file system to resolve where there are links; servers have none, and some no "..".
    return Clip(clip_id, f"{scheme}:/{posixpath.normpath(f'{folder[len(scheme) + 2 :]}/{path}')}", row.label)


def _rows(source: Path | str, names: Sequence[str] = ("path",)) -> Iterator[_Row]:
    """Read the rows of a CSV; names that are no UTF-8 keep their bytes, as everywhere in Python's file functions."""
    with _open_text(source) as file:
        reader = csv.reader(file, strict=True)
        try:
            columns = _columns(next(reader, []), source, names)
            start = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield _row(cells, columns, start, source)
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"not a readable CSV ({error}); line {reader.line_num} of {source}; mend the row"
            ) from error


@contextmanager
def _open_text(source: Path | str) -> Iterator[TextIO]:
    if isinstance(source, Path):
        with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file
        return
    try:
        files, name = file_system(source)
        with files.open(name, "r", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file
    except (UserError, csv.Error):
        raise
    except Exception as error:  # file systems raise errors of their own kinds
        raise UserError(
            f"cannot read the list {source!r}; {cause_of(error)}; mend the address or the access"
        ) from error


class _Columns(NamedTuple):
    """Where the cells stand in a row."""

    number: int
    path: int
    label: int
    split: int | None


def _columns(cells: list[str], source: Path | str, names: Sequence[str]) -> _Columns:
    header = [cell.strip().lower() for cell in cells]
    name = next((name for name in names if name in header), names[0])
    for column in (name, "label"):
        if header.count(column) != 1:
            raise UserError(
                f"the header {','.join(cells)!r} has {header.count(column)} columns called {column!r}; "
                f"line 1 of {source}; start the file with path,label or path,label,split"
            )
    split = header.index("split") if "split" in header else None
    return _Columns(len(header), header.index(name), header.index("label"), split)


def _row(cells: list[str], columns: _Columns, line: int, source: Path | str) -> _Row:
    if len(cells) != columns.number:
        raise UserError(
            f"{len(cells)} cells where the header has {columns.number}; line {line} of {source}; "
            "put names with commas into double quotes"
        )
    path, label = cells[columns.path], cells[columns.label].strip()
    if not path or not label:
        raise UserError(
            f"empty {'label' if path else 'path'}; line {line} of {source}; give every clip a path and a class"
        )
    return _Row(line, path, label, None if columns.split is None else cells[columns.split].strip())
