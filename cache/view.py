"""What the files of a stream say together: each clip once, whatever was written twice, failed first or is packed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
    """A stream at one moment, without its features."""

    paths: list[Path]
    """The files, the one to believe first."""
    indices: list[Index]
    """Of each file."""
    rows: list[tuple[int, int]]
    """File and position of the row that counts for each clip, sorted by clip id."""
    failures: list[Failure]
    """The failure that counts for each clip without a row, sorted by clip id."""

    def merged(self, spec: StreamSpec) -> Index:
        """Return one index of the rows and failures that count."""
        chosen = [(self.indices[file], row) for file, row in self.rows]
        return Index(
            fingerprint=spec.fingerprint,
            clip_ids=[index.clip_ids[row] for index, row in chosen],
            labels=[index.labels[row] for index, row in chosen],
            sources=np.array([index.sources[row] for index, row in chosen], np.int64).reshape(-1, 2),
            times=np.array([index.times[row] for index, row in chosen]).reshape(-1, spec.views, spec.frames),
            checksums=np.array([index.checksums[row] for index, row in chosen], np.uint8).reshape(-1, 16),
            failures=self.failures,
        )

    def features(self) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yield place in `rows` and features [V, T, D] of each row that counts, file by file, in bounded memory.

        Raises:
            DamageError: If a row does not match its checksum.
            VanishedError: If a pack removed a file meanwhile; see `settled`.
        """
        places = {row: place for place, row in enumerate(self.rows)}
        for file, (path, index) in enumerate(zip(self.paths, self.indices, strict=True)):
            for position, features in read_features(path, index):
                if (file, position) in places:
                    yield places[file, position], features

    def only_file(self, folder: Path) -> Path | None:
        """Return the file in `folder` that holds all rows that count and no other, in their order, if there is one."""
        if not self.paths or self.paths[0].parent != folder:
            return None
        whole = [(0, row) for row in range(len(self.indices[0].clip_ids))]
        return self.paths[0] if self.rows == whole else None


def load_view(root: Path, spec: StreamSpec) -> View:
    """Read the index of every file of a stream.

    Raises:
        DamageError: If a file is damaged.
        VanishedError: If a pack removed a file meanwhile; see `settled`.
    """
    paths = stream_files(root, spec.modality)
    indices = [read_index(path) for path in paths]
    chosen: dict[str, tuple[int, int]] = {}
    failures: dict[str, Failure] = {}
    for file, (path, index) in enumerate(zip(paths, indices, strict=True)):
        require_fingerprint(path, index, spec)
        for row, clip_id in enumerate(index.clip_ids):
            chosen.setdefault(clip_id, (file, row))
        failures.update({failure.clip_id: failure for failure in index.failures})
    rows = [chosen[clip_id] for clip_id in sorted(chosen)]
    return View(paths, indices, rows, [failures[clip_id] for clip_id in sorted(failures.keys() - chosen.keys())])


def require_fingerprint(path: Path, index: Index, spec: StreamSpec) -> None:
    """Refuse a file that was moved here from another stream.

    Raises:
        DamageError: If the file's fingerprint is not the spec's.
    """
    if index.fingerprint != spec.fingerprint:
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
