"""Which clips a stream holds, by fixed-size digests of their ids: small and quick for millions of clips.

A merged index on disk spares reading every file; it is derived, and made anew when many files are not in it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .files import list_files
from .folder import index_path, segments_folder, stream_files
from .indexfile import Entries, MergedIndex, join, read_merged, write_merged
from .rows import Failure, encode
from .segment import read_contents, read_failures
from .sidecar import check_file
from .spec import StreamSpec
from .view import require_fingerprint, settled

# The merged index is written anew when more than this is missing from it, and more than a 16th of what it has.
_MISSING_FILES = 64
_MISSING_ROWS = 16_384


@dataclass(frozen=True, eq=False)
class Table:
    """Clips and their sources."""

    digests: NDArray[np.uint64]
    """[m, 2], see `digests`; each once, sorted by the first word, then by the second."""
    sources: NDArray[np.int64]
    """[m, 2], size in bytes and mtime in nanoseconds of each clip's video."""

    def __post_init__(self) -> None:
        # Each word's column in one piece: searching would copy it every time.
        object.__setattr__(self, "digests", np.asfortranarray(self.digests))

    def __len__(self) -> int:
        return len(self.digests)

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the row of each digest [n, 2], or -1 where the table lacks it: int64 [n]."""
        first, second = self.digests[:, 0], self.digests[:, 1]
        found = np.full(len(keys), -1, np.int64)
        rows = np.searchsorted(first, keys[:, 0])
        pending = np.arange(len(keys))
        while len(pending):  # once, unless two clips share the first word of their digests
            pending = pending[rows[pending] < len(self)]
            pending = pending[first[rows[pending]] == keys[pending, 0]]
            equal = second[rows[pending]] == keys[pending, 1]
            found[pending[equal]] = rows[pending[equal]]
            pending = pending[~equal]
            rows[pending] += 1
        return found


@dataclass(frozen=True, eq=False)
class StreamIndex:
    """Which clips a stream holds."""

    done: Table
    """Clips with features."""
    failed: Table
    """Clips that failed and have no features."""


def digests(clip_ids: Sequence[str]) -> NDArray[np.uint64]:
    """Return 16 bytes of BLAKE2b of each clip id, as two little-endian words: [n, 2]."""
    return _digests(map(encode, clip_ids))


def load_index(root: Path, spec: StreamSpec) -> StreamIndex:
    """Return which clips a stream holds, and bring its merged index up to date if need and permission are there.

    Raises:
        DamageError: If a file is damaged.
        VanishedError: If another process removed a file meanwhile; see `settled`.
    """
    return _resolve(_merged(root, spec))


def load_failures(root: Path, spec: StreamSpec) -> list[Failure]:
    """Return the newest failure of each clip without features, sorted by clip id.

    Raises:
        DamageError: If a file is damaged.
        VanishedError: If another process removed a file meanwhile; see `settled`.
    """
    merged = _merged(root, spec)
    failed = _resolve(merged).failed
    files = np.unique(merged.failures.files[_last(merged.failures)]).tolist()
    names = [merged.files[number][0] for number in files]
    found = {failure.clip_id: failure for name in names for failure in read_failures(root / spec.modality / name)}
    clip_ids = sorted(found)
    return [found[clip_ids[i]] for i in np.flatnonzero(failed.find(digests(clip_ids)) >= 0)]


def refresh_index(root: Path, spec: StreamSpec) -> None:
    """Bring the merged index of a stream of many segments up to date if need and permission are there.

    Raises:
        UserError: If a file is damaged or cannot be read.
        MachineError: If the disk fails.
    """
    if len(list_files(segments_folder(root, spec.modality))) > _MISSING_FILES:
        settled(root, lambda: _merged(root, spec))


def _merged(root: Path, spec: StreamSpec) -> MergedIndex:
    """Return what all files of a stream hold, from the merged index and from the files that are not in it."""
    paths = stream_files(root, spec.modality)
    files = [(f"{path.parent.name}/{path.name}", check_file(path).sha256) for path in paths]
    old = read_merged(index_path(root, spec.modality), spec.fingerprint)
    numbers = {file: number for number, file in enumerate(files)}
    kept = np.array([numbers.get(file, -1) for file in old.files], np.int32)
    rows, failures = old.rows.renumbered(kept), old.failures.renumbered(kept)
    missing = sorted(set(range(len(files))).difference(kept.tolist()))
    if not missing:
        return MergedIndex(files, rows, failures)
    read = [_read_entries(paths[number], number, spec) for number in missing]
    merged = MergedIndex(
        files, join([rows, *(part for part, _ in read)]), join([failures, *(part for _, part in read)])
    )
    num_rows, num_files = len(rows.files), len(files) - len(missing)
    if len(missing) > max(_MISSING_FILES, num_files // 16) or len(merged.rows.files) - num_rows > max(
        _MISSING_ROWS, num_rows // 16
    ):
        with suppress(OSError):  # who may only read a cache reads it without
            write_merged(index_path(root, spec.modality), spec.fingerprint, merged)
    return merged


def _read_entries(path: Path, number: int, spec: StreamSpec) -> tuple[Entries, Entries]:
    """Return the rows and the failures of a file."""
    contents = read_contents(path)
    require_fingerprint(path, contents.fingerprint, spec)
    failed = [encode(failure.clip_id) for failure in contents.failures]
    sources = [(failure.source_size, failure.source_mtime_ns) for failure in contents.failures]
    return (
        _entries(number, contents.clip_ids, contents.sources),
        _entries(number, failed, np.array(sources, np.int64).reshape(-1, 2)),
    )


def _entries(number: int, clip_ids: Sequence[bytes], sources: NDArray[np.int64]) -> Entries:
    return Entries(_digests(clip_ids).T, sources, np.full(len(clip_ids), number, np.int32))


def _resolve(merged: MergedIndex) -> StreamIndex:
    """Let for each clip its first row count, or else its last failure."""
    done, failed = _table(merged.rows, _first(merged.rows)), _table(merged.failures, _last(merged.failures))
    alone = done.find(failed.digests) < 0
    return StreamIndex(done, Table(failed.digests[alone], failed.sources[alone]))


def _table(entries: Entries, wanted: NDArray[np.bool_]) -> Table:
    if wanted.all():
        return Table(entries.words.T, entries.sources)
    return Table(entries.words[:, wanted].T, entries.sources[wanted])


def _first(entries: Entries) -> NDArray[np.bool_]:
    """Return whether each entry is the first one of its clip."""
    first = np.ones(len(entries.files), np.bool_)
    first[1:] = (entries.words[:, 1:] != entries.words[:, :-1]).any(axis=0)
    return first


def _last(entries: Entries) -> NDArray[np.bool_]:
    last = np.ones(len(entries.files), np.bool_)
    last[:-1] = _first(entries)[1:]
    return last


def _digests(encoded: Iterable[bytes]) -> NDArray[np.uint64]:
    joined = b"".join([hashlib.blake2b(text, digest_size=16).digest() for text in encoded])
    return np.frombuffer(joined, "<u8").astype(np.uint64, copy=False).reshape(-1, 2)
