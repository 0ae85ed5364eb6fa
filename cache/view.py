"""What the files of a stream say together: each clip once, whatever was written twice, failed first or is packed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import MachineError
from .files import file_errors
from .folder import stream_files
from .rows import Failure, Index
from .segment import read_features, read_index
from .sidecar import DamageError, VanishedError
from .spec import StreamSpec

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class View:
    """Files of a stream at one moment, without their features."""

    paths: Sequence[Path]
    """The files, the one to believe first."""
    indices: list[Index]
    """Of each file."""
    rows: NDArray[np.int64]
    """Of each clip, sorted by clip id, the row that counts; the files' rows are numbered through."""
    failures: list[Failure]
    """The failure that counts for each clip without a row, sorted by clip id."""

    def merged(self, spec: StreamSpec) -> Index:
        """Return one index of the rows and failures that count."""
        clip_ids = list(chain.from_iterable(index.clip_ids for index in self.indices))
        labels = list(chain.from_iterable(index.labels for index in self.indices))
        # Joined to an empty array first, since a stream may have no file.
        sources = [np.empty((0, 2), np.int64), *(index.sources for index in self.indices)]
        times = [np.empty((0, spec.views, spec.frames)), *(index.times for index in self.indices)]
        checksums = [np.empty((0, 16), np.uint8), *(index.checksums for index in self.indices)]
        return Index(
            fingerprint=spec.fingerprint,
            clip_ids=[clip_ids[row] for row in self.rows.tolist()],
            labels=[labels[row] for row in self.rows.tolist()],
            sources=np.concatenate(sources)[self.rows],
            times=np.concatenate(times)[self.rows],
            checksums=np.concatenate(checksums)[self.rows],
            failures=self.failures,
        )

    def features(self) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yield place in `rows` and features [V, T, ...] of each row that counts, file by file, in bounded memory.

        Raises:
            DamageError: If a row does not match its checksum.
            VanishedError: If a pack removed a file meanwhile; see `settled`.
        """
        counts = [len(index.clip_ids) for index in self.indices]
        places = np.full(sum(counts), -1, np.int64)
        places[self.rows] = np.arange(len(self.rows))
        start = 0
        for path, index, count in zip(self.paths, self.indices, counts, strict=True):
            here = places[start : start + count].tolist()
            start += count
            for position, features in read_features(path, index):
                if here[position] >= 0:
                    yield here[position], features

    def first_is_whole(self) -> bool:
        """Return whether the first file holds all rows that count and no other, in their order."""
        return bool(self.paths) and np.array_equal(self.rows, np.arange(len(self.indices[0].clip_ids)))


def load_view(root: Path, spec: StreamSpec) -> View:
    """Read the index of every file of a stream.

    Raises:
        DamageError: If a file is damaged.
        VanishedError: If a pack removed a file meanwhile; see `settled`.
    """
    return view_files(stream_files(root, spec.modality), spec)


def view_files(paths: Sequence[Path], spec: StreamSpec) -> View:
    """Read the index of some files of a stream, given with the one to believe first.

    Raises:
        DamageError: If a file is damaged.
        VanishedError: If another process removed a file meanwhile.
    """
    indices = [read_index(path) for path in paths]
    for path, index in zip(paths, indices, strict=True):
        require_fingerprint(path, index.fingerprint, spec)
    clip_ids = list(chain.from_iterable(index.clip_ids for index in indices))
    # Backwards, since the first row of a clip counts and a dict keeps the last.
    first = dict(zip(reversed(clip_ids), range(len(clip_ids) - 1, -1, -1), strict=True))
    failures = {failure.clip_id: failure for index in indices for failure in index.failures}
    return View(
        paths,
        indices,
        np.array([first[clip_id] for clip_id in sorted(first)], np.int64),
        [failures[clip_id] for clip_id in sorted(failures.keys() - first.keys())],
    )


def require_fingerprint(path: Path, fingerprint: str, spec: StreamSpec) -> None:
    """Refuse a file that was moved here from another stream.

    Raises:
        DamageError: If the file's fingerprint is not the spec's.
    """
    if fingerprint != spec.fingerprint:
        raise DamageError(path, f"the file was made by another spec than stream {spec.modality!r}")


def settled(root: Path, read: Callable[[], T]) -> T:
    """Call `read` again as long as a pack removes files under it; their rows are in the packed file by then.

    Raises:
        UserError: If the cache cannot be read by this user.
        MachineError: If the disk fails.
    """
    for _ in range(100):
        try:
            with file_errors(root, "read"):
                return read()
        except VanishedError:
            continue
    raise MachineError(f"files vanish again and again while they are read; in {root}; stop what removes them")
