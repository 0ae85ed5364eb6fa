"""Writing a stream: rows are collected and become an immutable segment every so many clips or seconds."""

import secrets
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from .errors import MachineError
from .files import new_name
from .folder import create_stream, segments_folder
from .rows import Failure, Row
from .segment import write_segment
from .spec import StreamSpec


class StreamWriter:
    """Adds rows to one stream; any number of writers, in any number of processes, may do so at once.

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
        create_stream(Path(root), spec)
        self.spec = spec
        self._folder = segments_folder(Path(root), spec.modality)
        self._max_rows = max_rows
        self._max_seconds = max_seconds
        self._job = secrets.token_hex(4)
        self._sequence = 0
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
        view = (self.spec.views, self.spec.frames)
        if row.features.dtype != np.float16 or row.features.shape != (*view, self.spec.dim):
            raise ValueError(f"{row.features.dtype} {row.features.shape = }, expected float16 {(*view, self.spec.dim)}")
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
        """Write everything added so far; what cannot be written is kept for the next call.

        Raises:
            UserError: If the directory cannot be written.
            MachineError: If the disk is full or fails.
        """
        if self._rows or self._failures:
            path = self._folder / f"{new_name(self._job, self._sequence)}.h5"
            self._sequence += 1
            write_segment(path, self.spec, self._rows, self._failures)
            self._rows, self._failures = [], []

    def close(self) -> None:
        """Write everything added so far."""
        self.flush()

    def _note_time(self) -> None:
        if not self._rows and not self._failures:
            self._first_added_seconds = self._now()

    @staticmethod
    def _now() -> float:
        return time.monotonic()
