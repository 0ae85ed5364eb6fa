"""Writing a stream: rows are collected and become an immutable segment every so many clips or seconds."""

import secrets
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from .errors import MachineError, UserError
from .files import new_name
from .folder import create_stream, segments_folder
from .index import refresh_index
from .merge import merge_segments
from .rows import Failure, Row
from .segment import write_segment
from .spec import StreamSpec

_SMALL_ROWS = 64
_FEW_SEGMENTS = 8
_TIDY_SEGMENTS = 64


class StreamWriter:
    """Adds rows to one stream; any number of writers, in any number of processes, may do so at once.

    Every 64 segments, and at the end, it merges those of its segments that have less than 64 rows, and brings the
    stream's merged index up to date.

    A context manager: leaving it writes what was added, also after an error, unless the machine itself failed.

    Args:
        root: The cache directory; made if it does not exist.
        spec: The stream's spec.
        max_rows: Rows and failures that fill a segment.
        max_seconds: Seconds after which what was added first is written, if `add` or `flush_if_due` is called.

    Raises:
        UserError: If the stream exists with another spec, or the directory cannot be written.
        MachineError: If the disk is full or fails.
    """

    def __init__(self, root: Path, spec: StreamSpec, max_rows: int = 256, max_seconds: float = 30.0) -> None:
        self._root = Path(root)
        create_stream(self._root, spec)
        self.spec = spec
        self._folder = segments_folder(self._root, spec.modality)
        self._max_rows = max_rows
        self._max_seconds = max_seconds
        self._job = secrets.token_hex(4)
        self._sequence = 0
        self._untidy = 0
        self._small: list[tuple[Path, int]] = []
        self._rows: list[Row] = []
        self._failures: list[Failure] = []
        self._first_added_seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not isinstance(error, MachineError):
            self.close()

    def add(self, row: Row) -> None:
        """Add a clip's features (copied), and write a segment if one is due.

        Raises:
            ValueError: If the row's shapes or types are not the spec's.
            UserError: If the directory cannot be written.
            MachineError: If the disk is full or fails.
        """
        view, shape = (self.spec.views, self.spec.frames), self.spec.row_shape
        if row.features.dtype != np.float16 or row.features.shape != shape:
            raise ValueError(f"{row.features.dtype} {row.features.shape = }, expected float16 {shape}")
        if row.times.dtype != np.float64 or row.times.shape != view:
            raise ValueError(f"{row.times.dtype} {row.times.shape = }, expected float64 {view}")
        self._note_time()
        self._rows.append(replace(row, features=row.features.copy(), times=row.times.copy()))
        self.flush_if_due()

    def add_failure(self, failure: Failure) -> None:
        """Add a clip that has no features, and write a segment if one is due.

        Raises:
            UserError: If the directory cannot be written.
            MachineError: If the disk is full or fails.
        """
        self._note_time()
        self._failures.append(failure)
        self.flush_if_due()

    def flush_if_due(self) -> None:
        """Write a segment if enough rows or seconds have gathered; call it now and then while no clip is added."""
        pending = len(self._rows) + len(self._failures)
        if pending >= self._max_rows or (pending and self._now() - self._first_added_seconds >= self._max_seconds):
            self.flush()

    def flush(self) -> None:
        """Write everything added so far: when this returns, it is on disk, and every reader finds it.

        What cannot be written is kept for the next call.

        Raises:
            UserError: If the directory cannot be written.
            MachineError: If the disk is full or fails.
        """
        count = len(self._rows) + len(self._failures)
        if not count:
            return
        path = self._new_path()
        write_segment(path, self.spec, self._rows, self._failures)
        self._rows, self._failures = [], []
        if count < _SMALL_ROWS:
            self._small.append((path, count))
        self._untidy += 1
        if self._untidy >= _TIDY_SEGMENTS:
            self._tidy()

    def close(self) -> None:
        """Write everything added so far, and merge small segments."""
        self.flush()
        self._tidy()

    def _tidy(self) -> None:
        self._untidy = 0
        # All rows are on disk. What is not merged, or not in the merged index, is read all the same.
        if len(self._small) >= _FEW_SEGMENTS:
            # What is merged once is left alone: readers rely on no file vanishing soon after it came (`stream_files`).
            segments, self._small = self._small, []
            with suppress(UserError, MachineError):
                merge_segments(segments, self.spec, self._new_path)
        with suppress(UserError, MachineError):
            refresh_index(self._root, self.spec)

    def _new_path(self) -> Path:
        self._sequence += 1
        return self._folder / f"{new_name(self._job, self._sequence - 1)}.h5"

    def _note_time(self) -> None:
        if not self._rows and not self._failures:
            self._first_added_seconds = self._now()

    @staticmethod
    def _now() -> float:
        return time.monotonic()
