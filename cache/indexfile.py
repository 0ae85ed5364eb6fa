"""A stream's merged index on disk: which clips its files held when it was written.

It can be made from the files again, so whatever is wrong with it, it is taken for missing. The layout:

- 64 bytes: BLAKE2b of all that follows
- one line of JSON, filled up with spaces to a multiple of 8 bytes: format, fingerprint, files, numbers of entries
- rows: words uint64 [2, m], sources int64 [m, 2]; failures: the same; then files int32 [m] of both
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .sidecar import replace_file

_FORMAT = 1
_HASH_BYTES = 64


@dataclass(frozen=True, eq=False)
class Entries:
    """The rows, or the failures, of many files, sorted by digest, then by file, then by their order in the file."""

    words: NDArray[np.uint64]
    """[2, m], first and second word of each digest."""
    sources: NDArray[np.int64]
    """[m, 2], size and mtime of the video."""
    files: NDArray[np.int32]
    """[m], number of the file."""

    def renumbered(self, numbers: NDArray[np.int32]) -> "Entries":
        """Return the entries with other file numbers, which must not change the order of the files.

        Args:
            numbers: The new number of each file, or -1, which drops its entries.
        """
        files = numbers[self.files]
        kept = files >= 0
        if kept.all():
            return Entries(self.words, self.sources, files)
        return Entries(self.words[:, kept], self.sources[kept], files[kept])


@dataclass(frozen=True, eq=False)
class MergedIndex:
    """What all files of a stream hold."""

    files: list[tuple[str, str]]
    """Name, with its folder, and SHA-256 of each file, the one to believe first."""
    rows: Entries
    """Of clips with features."""
    failures: Entries
    """Of clips that failed."""


def join(parts: Sequence[Entries]) -> Entries:
    """Return the entries of all parts, sorted; parts that share a file number keep their order."""
    words = np.concatenate([part.words for part in parts], axis=1)
    files = np.concatenate([part.files for part in parts])
    order = np.lexsort((files, words[1], words[0]))
    sources = np.concatenate([part.sources for part in parts])
    return Entries(words[:, order], sources[order], files[order])


def write_merged(path: Path, fingerprint: str, merged: MergedIndex) -> None:
    """Write a merged index; it appears at once and whole, in the place of an older one.

    Raises:
        OSError: If it cannot be written.
    """
    rows, failures = merged.rows, merged.failures
    head = {"format": _FORMAT, "fingerprint": fingerprint, "files": merged.files}
    line = json.dumps({**head, "rows": len(rows.files), "failures": len(failures.files)}).encode()
    pieces = [line + b" " * (-(len(line) + 1) % 8) + b"\n"]
    for part in (rows, failures):
        pieces += [part.words.astype("<u8", copy=False).tobytes(), part.sources.astype("<i8", copy=False).tobytes()]
    pieces += [part.files.astype("<i4", copy=False).tobytes() for part in (rows, failures)]
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for piece in pieces:
        digest.update(piece)
    replace_file(path, [digest.digest(), *pieces])


def read_merged(path: Path, fingerprint: str) -> MergedIndex:
    """Return the merged index at `path`, or an empty one if there is none, or a damaged or foreign one.

    Args:
        path: The file.
        fingerprint: Of the stream's spec.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return _empty()
    if hashlib.blake2b(memoryview(data)[_HASH_BYTES:], digest_size=_HASH_BYTES).digest() != data[:_HASH_BYTES]:
        return _empty()
    end = data.index(b"\n", _HASH_BYTES) + 1
    head = json.loads(data[_HASH_BYTES:end])
    if (head["format"], head["fingerprint"]) != (_FORMAT, fingerprint):
        return _empty()
    column = _Columns(data, end)
    words_and_sources = [
        (column.take("<u8", (2, head[name])), column.take("<i8", (head[name], 2))) for name in ("rows", "failures")
    ]
    rows, failures = (
        Entries(words, sources, column.take("<i4", (len(sources),))) for words, sources in words_and_sources
    )
    return MergedIndex([(name, sha256) for name, sha256 in head["files"]], rows, failures)


class _Columns:
    """Gives array after array out of one piece of memory, without a copy."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self._start = start

    def take(self, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        array = np.frombuffer(self._data, dtype, int(np.prod(shape)), self._start).reshape(shape)
        self._start += array.nbytes
        return array.astype(array.dtype.newbyteorder("="), copy=False)


def _empty() -> MergedIndex:
    none = Entries(np.empty((2, 0), np.uint64), np.empty((0, 2), np.int64), np.empty(0, np.int32))
    return MergedIndex([], none, none)
