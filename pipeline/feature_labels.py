"""Which class each imported clip has: a CSV `id,label[,split][,file]`, or else the first folder of its id."""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ..cache.errors import UserError, pick
from .datasets import PARTS
from .feature_source import FeatureSource
from .source_folder import first_few

COLUMNS = ("id", "label", "split", "file")
_FORM = "start the file with id,label"


@dataclass(frozen=True, order=True)
class FeatureClip:
    """A clip whose features somebody else computed."""

    id: str
    """Name within the dataset, the same in all modalities."""
    name: str
    """What its source calls it."""
    label: str
    """Name of its class."""


def label_clips(source: FeatureSource, labels: Path | None, place: Path) -> list[FeatureClip]:
    """Return the clips that are to be imported, sorted by id.

    Args:
        source: The features.
        labels: A CSV; clips that it does not name are left out. None: the first folder of the id is the class.
        place: Where the features lie, for the errors.

    Raises:
        UserError: If the CSV is bad, or a clip has no class, or two have one id.
    """
    clips = sorted(_by_list(source, labels, place) if labels else _by_folder(source, place))
    for first, second in pairwise(clips):
        if first.id == second.id:
            both = f"{first.name!r} and {second.name!r}"
            raise UserError(f"{both} are both the clip {first.id!r}; in {place}; rename or drop one")
    return clips


def _by_folder(source: FeatureSource, place: Path) -> list[FeatureClip]:
    clips = [FeatureClip(clip_id, name, clip_id.partition("/")[0]) for name, clip_id in _ids(source)]
    if strays := [clip.name for clip in clips if "/" not in clip.id]:
        raise UserError(
            f"{len(strays)} of {len(clips)} clips lie in no class folder ({first_few(strays)}); in {place}; "
            "put clips into one folder a class, or give their classes with --labels FILE.csv"
        )
    return clips


def _by_list(source: FeatureSource, labels: Path, place: Path) -> list[FeatureClip]:
    by_id: dict[str, list[str]] = {}
    for name, clip_id in _ids(source):
        by_id.setdefault(clip_id, []).append(name)
    names = set(source.names)
    clips: dict[str, tuple[FeatureClip, int]] = {}
    missing: list[str] = []
    for row in _rows(labels):
        if row.id in clips:
            lines = f"lines {clips[row.id][1]} and {row.line} of {labels}"
            raise UserError(f"{row.id!r} is listed twice; {lines}; drop one")
        found = by_id.get(row.id, []) if row.file is None else [row.file] if row.file in names else []
        if len(found) > 1:
            both = " and ".join(map(repr, found[:2]))
            raise UserError(f"{both} are both the clip {row.id!r}; in {place}; rename or drop one")
        if not found:
            missing.append(f"line {row.line}: {row.file or row.id!r}")
        clips[row.id] = FeatureClip(row.id, found[0] if found else "", row.label), row.line
    if not clips:
        raise UserError(f"no clips; {labels} has a header and no rows; write one row a clip: id,label")
    if missing:
        raise UserError(
            f"{len(missing)} of {len(clips)} clips have no features ({first_few(missing, 3)}); listed in {labels}; "
            f"an id is the path below {place} without its suffix, such as {source.clip_id(source.names[0])!r}"
        )
    return [clip for clip, _ in clips.values()]


def _ids(source: FeatureSource) -> Iterator[tuple[str, str]]:
    return ((name, source.clip_id(name)) for name in source.names)


@dataclass(frozen=True)
class _Row:
    """One row of the list."""

    line: int
    """Where it starts, from 1."""
    id: str
    label: str
    file: str | None
    """Name in the source, if it does not follow from the id."""


def _rows(path: Path) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        columns = _columns(next(reader, []), path)
        start = reader.line_num + 1
        for cells in reader:
            if cells:
                yield _row(cells, columns, start, path)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"not a readable CSV ({error}); line {reader.line_num} of {path}; mend the row") from error


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the list ({error.strerror}); {path}; name a CSV with id,label") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"byte {data[error.start]:#04x} is not UTF-8; line {line} of {path}; save the list as UTF-8"
        ) from error


def _columns(cells: list[str], path: Path) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    for name in header:
        if name not in COLUMNS:
            known = dict.fromkeys(COLUMNS)
            try:
                pick(known, name, "column")
            except UserError as error:
                raise UserError(f"{error}; line 1 of {path}; {_FORM}") from None
    for name in COLUMNS:
        if header.count(name) > 1 or (name in COLUMNS[:2] and name not in header):
            raise UserError(f"{header.count(name)} columns called {name!r}; line 1 of {path}; {_FORM}")
    return header


def _row(cells: list[str], columns: list[str], line: int, path: Path) -> _Row:
    if len(cells) != len(columns):
        raise UserError(
            f"{len(cells)} cells where the header has {len(columns)}; line {line} of {path}; "
            "put names with commas into double quotes"
        )
    row = dict(zip(columns, cells, strict=True))
    label, part = row["label"].strip(), row.get("split", "").strip()
    if not row["id"] or not label:
        raise UserError(
            f"empty {'label' if row['id'] else 'id'}; line {line} of {path}; give every clip an id and a class"
        )
    if part and part not in PARTS:
        raise UserError(f"unknown split {part!r}; line {line} of {path}; write train, val or test")
    return _Row(line, row["id"], label, row.get("file") or None)
