"""Studies on disk: what `amfir study` wrote, checked before anything is drawn."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...cache.errors import UserError

FORMAT = 1
"""Highest `format` of study.json and result.json that this version reads; files without one are of the first."""

_NUMBERS = ("way", "shot", "accuracy", "ci95")
_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "table1": (("method", "title", "arrangement"), _NUMBERS),
    "table2": (("base", "method", "title"), (*_NUMBERS, "difference", "difference_ci95")),
    "figure2": (("method", "modality"), ("shot", "episode", "free_energy")),
    "figure3": (("method", "title"), _NUMBERS),
    "figure4": (("strategy", "title"), _NUMBERS),
    "figure5": (("method", "title"), _NUMBERS),
    "reliability": (("criterion",), ("shot", "selection_accuracy")),
    "robustness": (("harm", "modality", "fusion"), ("level", "shot", "accuracy", "ci95")),
    "transfer": (("source", "target", "method"), ("shot", "accuracy", "ci95")),
    "examples": (("clip_id", "label", "right"), ()),
}
"""Keys of a study's rows: texts, then numbers (or null). Others may be there."""
_PLACES = frozenset({"way", "shot", "level", "episode"})
"""Those of the numbers that are never null: they say what a row is about."""

_PATH = re.compile(r"(?:file://|(?<![\w./]))/(?:[^\s/'\",;:=()]+/)+([^\s/'\",;:=()]*)")
"""An absolute path of two parts or more; the last is kept."""


@dataclass(frozen=True)
class StudyResult:
    """A result.json."""

    name: str
    """The study."""
    title: str
    """Heading."""
    folder: Path
    """Where its pictures are."""
    settings: Mapping[str, Any]
    """What all its numbers have in common."""
    rows: tuple[Mapping[str, Any], ...]
    """Its numbers; None for what is missing, never NaN."""
    skipped: tuple[str, ...]
    """What was left out."""
    notes: tuple[str, ...]
    """What a reader has to know."""
    extra: Mapping[str, Any]
    """What rows cannot hold."""
    failures: tuple[str, ...] = ()
    """What went wrong in it."""


@dataclass(frozen=True)
class StudyFolder:
    """An OUT of `amfir study`."""

    name: str
    """Name of the folder."""
    info: Mapping[str, Any]
    """study.json."""
    results: Mapping[str, StudyResult]
    """By name of the study."""
    stale: tuple[str, ...] = ()
    """Studies on disk that were made with other settings than study.json's."""


def read_folder(folder: Path) -> StudyFolder:
    """Read study.json and every result.json.

    Args:
        folder: What `amfir study --out` named.

    Raises:
        UserError: If there are none, or one is damaged, too new, or lacks a key.
    """
    if not (folder / "study.json").is_file():
        what = f"no study.json in {str(folder)!r}" if folder.is_dir() else f"no folder {str(folder)!r}"
        raise UserError(f"{what}; name a folder that `amfir study --out` wrote")
    info = _read_json(folder / "study.json")
    _object(info, "config", folder / "study.json")
    files = sorted(folder.glob("*/result.json"))
    if not files:
        raise UserError(f"no study is finished in {str(folder)!r}; run `amfir study` with the same --out first")
    known = info.get("studies")
    fitting = [file for file in files if not isinstance(known, dict) or file.parent.name in known]
    if not fitting:
        raise UserError(
            f"no study in {str(folder)!r} was made with the settings of its study.json; "
            "run `amfir study` with the same --out again"
        )
    results = [_read_result(file) for file in fitting]
    stale = tuple(file.parent.name for file in files if file not in fitting)
    return StudyFolder(printable(folder.resolve().name), info, {result.name: result for result in results}, stale)


def clean(value: Any) -> Any:
    """Return a JSON value that can be shown.

    Numbers that are none become None, absolute paths are shortened, what UTF-8 cannot hold is escaped.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return without_paths(printable(value))
    if isinstance(value, Mapping):
        return {without_paths(printable(str(key))): clean(item) for key, item in value.items()}
    return [clean(item) for item in value] if isinstance(value, Sequence) else value


def printable(text: str) -> str:
    r"""Escape what UTF-8 cannot hold: bytes of a file name that were none of its letters.

    >>> printable("a\udcff.mp4")
    'a\\udcff.mp4'
    """
    return text.encode("utf-8", "backslashreplace").decode()


def without_paths(text: str) -> str:
    """Shorten absolute paths to their last part: where things lay says more of a machine than of a result.

    >>> without_paths("amfir study /home/me/features --split=/tmp/split.toml random:0 s3://a/b")
    'amfir study features --split=split.toml random:0 s3://a/b'
    """
    if re.fullmatch(r"/[^\s/]+/?", text):
        return text.strip("/")
    return _PATH.sub(lambda match: match[1] or match[0].rstrip("/").rpartition("/")[2], text)


def _read_result(file: Path) -> StudyResult:
    data = _read_json(file)
    name = file.parent.name
    rows = _listed(data, "rows", dict, file)
    _check_rows(rows, name, file)
    return StudyResult(
        name,
        str(data.get("title") or name),
        file.parent,
        _object(data, "settings", file),
        tuple(rows),
        tuple(map(str, _listed(data, "skipped", str, file))),
        tuple(map(str, _listed(data, "notes", str, file))),
        _object(data, "extra", file),
        tuple(map(str, _listed(data, "failures", str, file))),
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = clean(json.loads(file.read_bytes()))
    except OSError as error:
        raise UserError(f"cannot read {str(file)!r} ({error.strerror}); mend its permissions") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"damaged JSON ({error}); {str(file)!r}; delete it and run `amfir study` again") from None
    if not isinstance(data, dict):
        raise UserError(f"not a JSON object; {str(file)!r}; delete it and run `amfir study` again")
    if data.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"format {data['format']!r} is not the {FORMAT} that this amfir reads; {str(file)!r}; "
            "use the amfir that wrote it, or run `amfir study` again"
        )
    return data


def _listed(data: Mapping[str, Any], key: str, kind: type, file: Path) -> list[Any]:
    found = data.get(key) or []
    if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
        raise UserError(f"{key!r} is no list as studies write it; {str(file)!r}; delete it and run `amfir study` again")
    return found


def _object(data: Mapping[str, Any], key: str, file: Path) -> Mapping[str, Any]:
    found = data.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(
            f"{key!r} is no object ({repr(found)[:60]}); {str(file)!r}; delete it and run `amfir study` again"
        )
    return found


def _check_rows(rows: Sequence[Mapping[str, Any]], study: str, file: Path) -> None:
    texts, numbers = _KEYS.get(study, ((), ()))
    for place, row in enumerate(rows):
        wrong = [key for key in texts if not isinstance(row.get(key), str)]
        wrong += [key for key in numbers if key not in row or not _is_number(row[key], key)]
        if wrong:
            raise UserError(
                f"no usable {wrong[0]!r} in row {place} ({row.get(wrong[0])!r}); {str(file)!r}; "
                "delete it and run `amfir study` again"
            )


def _is_number(value: Any, key: str) -> bool:
    if value is None:
        return key not in _PLACES
    return isinstance(value, (int, float)) and not isinstance(value, bool)
