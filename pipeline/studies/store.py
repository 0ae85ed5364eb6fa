"""What studies leave on disk.

    OUT/study.json               what was asked for, of what, by which commands; which studies below belong together
    OUT/trained/                 the runs that all of them share, see `compare_store`
    OUT/NAME/result.json         rows, what was left out, notes: a study is finished when that is there
    OUT/NAME/episodes.parquet    raw results, a row for each episode of each measurement

A result carries the fingerprint of all that it depends on and the digests of the files beside it: one that is damaged,
or belongs to another cache, split or setting, is made again. Nothing is changed in place.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...cache.files import file_errors
from .base import EpisodeBlock, Result, Study
from .kept import write_bytes

RESULT = "result.json"
EPISODES = "episodes.parquet"

FORMAT = 1
"""Of study.json and result.json; a change that old readers would misread raises it."""

SCHEMA = pa.schema(
    [
        ("method", pa.dictionary(pa.int32(), pa.string())),
        ("way", pa.int32()),
        ("shot", pa.int32()),
        ("seed", pa.int32()),
        ("condition", pa.dictionary(pa.int32(), pa.string())),
        ("queries", pa.int32()),
        ("episode", pa.int32()),
        ("right", pa.int32()),
    ]
)
"""Columns of episodes.parquet: the fields of `EpisodeBlock`, and the place of the episode in its order."""


@dataclass(frozen=True)
class Finished:
    """A study as it lies on disk."""

    content: Mapping[str, Any]
    """What result.json holds."""
    kept: bool = False
    """Whether it was there before."""

    @property
    def failures(self) -> list[str]:
        """What went wrong in it."""
        return list(self.content["failures"])


class StudyStore:
    """The folder of the studies.

    Args:
        out: The folder; made when something is saved.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def find(self, name: str, fingerprint: str) -> Finished | None:
        """A study that was made of the very same things; None if there is none, or it failed, or a file is damaged."""
        content = self._read(name)
        if content.get("fingerprint") != fingerprint or content.get("failures") != []:
            return None
        found = Finished(content, kept=True)
        return found if self._whole(self.out / name, content) else None

    def save(
        self, name: str, study: Study, result: Result, *, fingerprint: str, settings: Mapping[str, Any], seconds: float
    ) -> Finished:
        """Keep what a study found, instead of what was there.

        Args:
            name: Its name.
            study: Its entry in the registry.
            result: What it found.
            fingerprint: Of all that it depends on.
            settings: What it was asked for, for readers.
            seconds: What it took.

        Raises:
            UserError: If the folder cannot be written.
            MachineError: If the disk is full or fails.
        """
        folder = self.out / name
        extra = dict(result.extra)
        files = {EPISODES: to_parquet(result.episodes), **extra.pop("files", {})}
        content = plain(
            {
                "format": FORMAT,
                "study": name,
                "title": study.title,
                "settings": settings,
                "rows": result.rows,
                "skipped": result.skipped,
                "notes": result.notes,
                "failures": result.failures,
                "extra": extra,
                "seconds": seconds,
                "fingerprint": fingerprint,
                "files": {file: _digest(data) for file, data in files.items()},
            }
        )
        stale = set(self._listed(name)) - set(files)
        with file_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # The old result goes first: it must never stand beside files of the new one.
            (folder / RESULT).unlink(missing_ok=True)
            for file in stale:
                (folder / file).unlink(missing_ok=True)
            for file, data in files.items():
                write_bytes(folder / file, data)
            write_bytes(folder / RESULT, _json(content))
        return Finished(content)

    def note(
        self, facts: Mapping[str, Any], command: str, names: Sequence[str], fingerprint: Callable[[str], str]
    ) -> None:
        """Write study.json.

        Args:
            facts: What was asked for, and of what.
            command: The command line; earlier ones of this folder are kept before it.
            names: Of all studies.
            fingerprint: What a study's is with these settings. Studies on disk that have it are listed; others were
                made with other settings, and belong to another report.
        """
        path = self.out / "study.json"
        commands = [line for line in _load(path).get("commands", []) if line != command]
        made = {name: self._read(name).get("fingerprint") for name in names}
        studies = {name: f"{name}/{RESULT}" for name, found in made.items() if found and found == fingerprint(name)}
        with file_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
            write_bytes(
                path, _json(plain({"format": FORMAT, **facts, "commands": [*commands, command], "studies": studies}))
            )

    def _read(self, name: str) -> dict[str, Any]:
        return _load(self.out / name / RESULT)

    def _listed(self, name: str) -> list[str]:
        """The files that a result says stand beside it; plain names only, whatever a damaged one says."""
        files = self._read(name).get("files")
        return [file for file in files if Path(file).name == file] if isinstance(files, dict) else []

    def _whole(self, folder: Path, content: Mapping[str, Any]) -> bool:
        files = content.get("files")
        lists = all(isinstance(content.get(name), list) for name in ("rows", "skipped", "failures"))
        if (
            not isinstance(files, dict)
            or EPISODES not in files
            or not lists
            or not isinstance(content.get("title"), str)
        ):
            return False
        try:
            return all(_digest((folder / file).read_bytes()) == digest for file, digest in files.items())
        except OSError:
            return False


def to_parquet(blocks: Sequence[EpisodeBlock]) -> bytes:
    """Raw results as a Parquet file of `SCHEMA`, blocks in their order."""
    lengths = [len(block.right) for block in blocks]
    columns = {
        name: pa.array(np.repeat([getattr(block, name) for block in blocks], lengths)) if blocks else pa.array([])
        for name in ("method", "way", "shot", "seed", "condition", "queries")
    }
    columns["episode"] = pa.array(np.concatenate([np.arange(0), *map(np.arange, lengths)]))
    columns["right"] = pa.array(np.concatenate([np.zeros(0, np.int64), *(block.right for block in blocks)]))
    table = pa.table({field.name: columns[field.name].cast(field.type) for field in SCHEMA}, schema=SCHEMA)
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def plain(value: Any) -> Any:
    """The same in JSON's types; what is no number, such as an accuracy of nothing, becomes null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def fingerprint_of(facts: Mapping[str, Any]) -> str:
    """Digest of JSON-able facts."""
    return _digest(json.dumps(plain(facts), sort_keys=True).encode())


def _load(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none, or it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
