"""Which clips a dataset has: a folder per class, or a CSV `path,label[,split]`.

Only names are read here. Whether a file is a video is for the extractor to find out, which answers with a reason code;
so every file is a candidate unless its name says that it accompanies videos (hidden files, notes, lists, archives).
"""

import csv
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..cache.errors import UserError
from ..extract.clips import Clip

SIDE_SUFFIXES = frozenset(
    ".7z .cfg .csv .db .gz .htm .html .ini .json .log .md .md5 .pdf .py .rar .rst .sh .sha256 .srt .tar .toml .tsv"
    " .txt .url .vtt .xml .yaml .yml .zip".split()
)
"""Files with these suffixes lie beside videos and are passed over."""

SIDE_NAMES = frozenset({"license", "licence", "makefile", "readme"})

PARTS = ("train", "val", "test")


def list_clips(source: Path) -> list[Clip]:
    """List the clips of a dataset, sorted by id.

    A folder holds one folder a class. The label is the name of that first-level folder; deeper folders may follow, and
    the id is the posix path relative to `source`. Symbolic links are followed wherever they lead, since data sets are
    often built of links (git-annex, DVC, the Hugging Face cache); a link that leads nowhere stays a candidate, so that
    it is reported and not lost. A folder that contains itself through a link is entered once.

    A CSV has a header with `path` and `label`. Relative paths start at the CSV's folder; the id is the path as written,
    normalised.

    Raises:
        UserError: If `source` is missing, has no clips or clips outside a class folder, or if a row of the CSV is bad.
    """
    if source.is_dir():
        return _folder_clips(source)
    if not source.exists():
        raise UserError(f"no such data set: {str(source)!r}; name a folder with one folder a class, or a CSV file")
    if source.suffix.lower() != ".csv":
        raise UserError(f"{str(source)!r} is neither a folder nor a .csv file; name a folder with one folder a class")
    return _csv_clips(source)


def csv_split(source: Path) -> dict[str, list[str]] | None:
    """Read the class split from a CSV's `split` column.

    Returns:
        Sorted class names of each part (train, val, test) that occurs, or None without such a column.

    Raises:
        UserError: If a part is unknown or a class lies in two parts.
    """
    parts: dict[str, str] = {}
    has_column = False
    for row in _rows(source):
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


def _folder_clips(source: Path) -> list[Clip]:
    root = Path(os.path.abspath(source))
    ids = sorted(_walk(root, "", frozenset()))
    strays = [clip_id for clip_id in ids if "/" not in clip_id]
    if strays:
        raise UserError(
            f"{len(strays)} {'file lies' if len(strays) == 1 else 'files lie'} in no class folder "
            f"({_first_few(strays)}); in {source}; put clips into one folder a class"
        )
    if not ids:
        raise UserError(f"no clips; in {source}; it should hold one folder a class with videos inside")
    return [Clip(clip_id, root / clip_id, clip_id.partition("/")[0]) for clip_id in ids]


def _walk(folder: Path, prefix: str, ancestors: frozenset[tuple[int, int]]) -> Iterator[str]:
    """Yield the relative paths of all candidates under `folder`."""
    try:
        status = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"cannot list the folder {str(folder)!r}; {error.strerror}; mend its permissions") from error
    here = (status.st_dev, status.st_ino)
    if here in ancestors:  # a link back to a folder that we are inside of
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", ancestors | {here})
        elif not _is_side_file(entry.name):
            yield prefix + entry.name


def _is_side_file(name: str) -> bool:
    stem, suffix = os.path.splitext(name.lower())
    return suffix in SIDE_SUFFIXES or (not suffix and stem in SIDE_NAMES)


def _csv_clips(source: Path) -> list[Clip]:
    folder = Path(os.path.abspath(source.parent))
    clips: dict[str, Clip] = {}
    lines: dict[str, int] = {}
    missing = []
    for row in _rows(source):
        clip_id = posixpath.normpath(row.path)
        if clip_id in clips:
            raise UserError(f"{clip_id!r} is listed twice; lines {lines[clip_id]} and {row.line} of {source}; drop one")
        path = folder / row.path
        if not _is_there(path):
            missing.append(f"line {row.line}: {row.path!r}")
        clips[clip_id] = Clip(clip_id, path, row.label)
        lines[clip_id] = row.line
    if missing:
        raise UserError(
            f"{len(missing)} of {len(clips)} files are missing ({_first_few(missing, 3)}); listed in {source}; "
            f"mend the paths (relative ones start at {folder})"
        )
    if not clips:
        raise UserError(f"no clips; {source} has a header and no rows; write one row a clip: path,label")
    return [clips[clip_id] for clip_id in sorted(clips)]


def _is_there(path: Path) -> bool:
    """Whether something has this name, a dangling link included (the extractor reports that one)."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a zero byte in the name
        return False


@dataclass(frozen=True)
class _Row:
    """One row of a dataset's CSV."""

    line: int
    """Where the row starts, from 1."""
    path: str
    label: str
    part: str | None
    """Stripped `split`; None if the CSV has no such column."""


def _rows(source: Path) -> Iterator[_Row]:
    """Read the rows of a CSV; names that are no UTF-8 keep their bytes, as everywhere in Python's file functions."""
    with source.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = _header(next(reader, []), source)
            start = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield _row(cells, header, start, source)
                start = reader.line_num + 1
        except csv.Error as error:
            raise UserError(
                f"not a readable CSV ({error}); line {reader.line_num} of {source}; mend the row"
            ) from error


def _header(cells: list[str], source: Path) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    for column in ("path", "label"):
        if header.count(column) != 1:
            raise UserError(
                f"the header {','.join(cells)!r} has {header.count(column)} columns called {column!r}; "
                f"line 1 of {source}; start the file with path,label or path,label,split"
            )
    return header


def _row(cells: list[str], header: list[str], line: int, source: Path) -> _Row:
    if len(cells) != len(header):
        raise UserError(
            f"{len(cells)} cells where the header has {len(header)}; line {line} of {source}; "
            "put names with commas into double quotes"
        )
    cell = dict(zip(header, cells, strict=True))
    label = cell["label"].strip()
    for column, value in (("path", cell["path"]), ("label", label)):
        if not value:
            raise UserError(f"empty {column}; line {line} of {source}; give every clip a path and a class")
    part = cell.get("split")
    return _Row(line, cell["path"], label, None if part is None else part.strip())


def _first_few(items: list[str], count: int = 5) -> str:
    return ", ".join(items[:count]) + (", ..." if len(items) > count else "")
