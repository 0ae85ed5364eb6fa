"""Rows of features and failures in one HDF5 file, each row with its own checksum.

- rows/text and rows/ends: clip id and label of each row as UTF-8, one after the other, and where each ends
- rows/source: int64 [n, 2], the video's size in bytes and its mtime in nanoseconds
- rows/times: float64 [n, V, T], time stamps of the frames in seconds
- rows/checksum: uint8 [n, 16]
- rows/features: float16 [n, V, T, D] or [n, V, T, P, D], contiguous, so that it can be memory-mapped
- failures/text, ends, source and checksum: the same for failures, with reason and message; only if there are any
"""

import io
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .files import new_file
from .rows import Contents, Index, Place, decode, encode
from .rows import Failure as Failure
from .rows import Row as Row
from .sidecar import DamageError, VanishedError, check_file
from .spec import StreamSpec

_BLOCK_BYTES = 4 << 20
# What h5py raises on a file that is not what it should be.
_HDF5_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, IndexError, AttributeError)


def write_segment(path: Path, spec: StreamSpec, rows: Sequence[Row], failures: Sequence[Failure]) -> None:
    """Write an immutable segment; it appears whole or not at all.

    Raises:
        MachineError: If the disk is full or fails.
        UserError: If the folder cannot be written.
    """
    index = Index(
        fingerprint=spec.fingerprint,
        clip_ids=[row.clip_id for row in rows],
        labels=[row.label for row in rows],
        sources=np.array([(row.source_size, row.source_mtime_ns) for row in rows], np.int64).reshape(-1, 2),
        times=np.array([row.times for row in rows], np.float64).reshape(-1, spec.views, spec.frames),
        checksums=_checksum_column([row.checksum() for row in rows]),
        failures=failures,
    )
    write_file(path, spec, index, enumerate(row.features for row in rows))


def write_file(
    path: Path, spec: StreamSpec, index: Index, features: Iterable[tuple[int, NDArray[np.float16]]], align: int = 1
) -> None:
    """Write a file of the layout above; it appears whole or not at all.

    Args:
        path: A new name.
        spec: The stream's spec.
        index: Everything but the features.
        features: Position and features [V, T, ...] of each row, in any order.
        align: Bytes whose multiples the features start at.
    """
    image, start = _image(spec, index, align)
    row_bytes = 2 * math.prod(spec.row_shape)
    with new_file(path) as temporary, temporary.open("xb") as file:
        file.write(image)
        file.truncate(max(len(image), start + row_bytes * len(index.clip_ids)))
        for position, row in features:
            file.seek(start + row_bytes * position)
            file.write(np.ascontiguousarray(row, "<f2").tobytes())


def read_index(path: Path) -> Index:
    """Return everything but the features, after the cheap check of the whole file.

    Raises:
        DamageError: If the file is not what was written.
        VanishedError: If the file was removed in good order.
    """
    check_file(path)
    with _opened(path) as file:
        texts = [decode(text) for text in _read_texts(file, "rows")]
        return Index(
            fingerprint=str(file.attrs["fingerprint"]),
            clip_ids=texts[::2],
            labels=texts[1::2],
            sources=_column(file, "rows/source"),
            times=_column(file, "rows/times"),
            checksums=_column(file, "rows/checksum"),
            failures=_failures(path, file),
            place=_place(file, len(texts) // 2),
        )


def read_contents(path: Path) -> Contents:
    """Return which clips a file holds; the caller has checked the file with `check_file`.

    Raises:
        DamageError: If the file is not what was written.
        VanishedError: If the file was removed in good order.
    """
    with _opened(path) as file:
        clip_ids, sources = _read_texts(file, "rows")[::2], _column(file, "rows/source")
        return Contents(str(file.attrs["fingerprint"]), clip_ids, sources, _failures(path, file))


def read_failures(path: Path) -> list[Failure]:
    """Return the failures of a file; the caller has checked the file with `check_file`.

    Raises:
        DamageError: If the file is not what was written.
        VanishedError: If the file was removed in good order.
    """
    with _opened(path) as file:
        return _failures(path, file)


def read_features(path: Path, index: Index) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """Yield position and features [V, T, ...] of each row, checked, in bounded memory.

    Args:
        path: The file.
        index: What `read_index` said about it.

    Raises:
        DamageError: If a row does not match its checksum.
        VanishedError: If the file was removed in good order.
    """
    assert index.place is not None
    shape, row_bytes = index.place.shape, index.place.row_bytes
    num_rows = max(1, _BLOCK_BYTES // row_bytes)
    with _read_errors(path), path.open("rb") as file:
        file.seek(index.place.start)
        for start in range(0, shape[0], num_rows):
            data = file.read(row_bytes * min(num_rows, shape[0] - start))
            block = np.frombuffer(data, "<f2").reshape(-1, *shape[1:])
            for position, row in enumerate(block, start):
                index.check_row(path, position, row)
                yield position, row


def map_features(path: Path, index: Index) -> NDArray[np.float16]:
    """Return the features [n, V, T, ...] of a file as a read-only memory map.

    Args:
        path: The file.
        index: What `read_index` said about it.

    Raises:
        DamageError: If the file ends before its features.
        VanishedError: If the file was removed in good order.
    """
    assert index.place is not None
    if not index.clip_ids:  # no rows, no bytes: nothing to map
        return np.empty(index.place.shape, np.float16)
    with _read_errors(path):
        return np.memmap(path, np.dtype("<f2"), "r", index.place.start, index.place.shape)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    # Files are immutable, so HDF5's own lock (which some network disks lack) has nothing to protect.
    with _read_errors(path), h5py.File(path, "r", locking=False) as file:
        yield file


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise VanishedError(path) from None
    except _HDF5_ERRORS as error:
        if not os.path.lexists(path):  # removed while HDF5 was opening it, which it reports in several ways
            raise VanishedError(path) from None
        raise DamageError(path, f"HDF5 cannot read the file ({' '.join(str(error).split())})") from None


def _column(file: Any, name: str) -> NDArray[Any]:
    # The way around h5py's comfortable objects takes a third of the time, which counts for thousands of files.
    dataset = h5py.h5d.open(file.id, name.encode())
    column: NDArray[Any] = np.empty(dataset.shape, dataset.dtype)
    if column.size:
        dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, column)
    return column


def _place(file: Any, num_rows: int) -> Place:
    features = h5py.h5d.open(file.id, b"rows/features")
    start = features.get_offset()
    if features.dtype != np.dtype("<f2") or features.shape[0] != num_rows or (start is None and num_rows):
        raise ValueError("the features are no float16 array in one piece")
    return Place(start or 0, features.shape)


def _image(spec: StreamSpec, index: Index, align: int) -> tuple[bytes, int]:
    """Return an HDF5 file that lacks only the features, and where in it they start.

    HDF5 writes to memory only: on a full disk it cannot close its file, and takes the process down with it.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", alignment_threshold=1, alignment_interval=align) as file:
        file.attrs["fingerprint"] = index.fingerprint
        if index.failures:
            failures = [(item.clip_id, item.label, item.reason, item.message) for item in index.failures]
            sources = [(item.source_size, item.source_mtime_ns) for item in index.failures]
            checksums = _checksum_column([item.checksum() for item in index.failures])
            _write_columns(file.create_group("failures"), failures, np.array(sources, np.int64), checksums)
        rows = file.create_group("rows")
        _write_columns(rows, list(zip(index.clip_ids, index.labels, strict=True)), index.sources, index.checksums)
        rows["times"] = index.times.astype("<f8")
        shape = (len(index.clip_ids), *spec.row_shape)
        layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(shape)
        features = h5py.h5d.create(rows.id, b"features", h5py.h5t.IEEE_F16LE, space, layout)
        start = features.get_offset() or 0
    return buffer.getvalue(), start


def _write_columns(
    group: Any, texts: Sequence[tuple[str, ...]], sources: NDArray[np.int64], checksums: NDArray[np.uint8]
) -> None:
    encoded = [encode(text) for record in texts for text in record]
    ends = np.cumsum([len(text) for text in encoded], dtype="<i8")
    group["text"] = np.frombuffer(b"".join(encoded), np.uint8)
    group["ends"] = ends.reshape(len(texts), -1) if texts else np.empty((0, 2), "<i8")
    group["source"] = sources.astype("<i8")
    group["checksum"] = checksums


def _read_texts(file: Any, group: str) -> list[bytes]:
    text = _column(file, f"{group}/text").tobytes()
    ends = _column(file, f"{group}/ends").ravel().tolist()
    return [text[start:stop] for start, stop in itertools.pairwise([0, *ends])]


def _failures(path: Path, file: Any) -> list[Failure]:
    if "failures" not in file:
        return []
    texts = [decode(text) for text in _read_texts(file, "failures")]
    sources, checksums = _column(file, "failures/source").tolist(), _column(file, "failures/checksum")
    failures = []
    for *words, source, checksum in zip(*(texts[field::4] for field in range(4)), sources, checksums, strict=True):
        failure = Failure(*words, *source)
        if failure.checksum() != checksum.tobytes():
            raise DamageError(path, f"the failure of clip {failure.clip_id!r} does not match its checksum")
        failures.append(failure)
    return failures


def _checksum_column(checksums: Sequence[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(checksums), np.uint8).reshape(-1, 16)
