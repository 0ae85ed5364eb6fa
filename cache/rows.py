"""Rows, failures and their checksums, wherever they are stored."""

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sidecar import DamageError


@dataclass(frozen=True, eq=False)
class Row:
    """The features of one clip."""

    clip_id: str
    """The clip's path relative to its dataset."""
    label: str
    """Name of the clip's class."""
    features: NDArray[np.float16]
    """[V, T, D], or [V, T, P, D] with tokens."""
    times: NDArray[np.float64]
    """[V, T], seconds from the start of the video."""
    source_size: int
    """Size of the video in bytes."""
    source_mtime_ns: int
    """Modification time of the video."""

    def checksum(self) -> bytes:
        """Return 16 bytes that depend on every byte of the row."""
        texts = (self.clip_id, self.label)
        return _checksum(texts, (self.source_size, self.source_mtime_ns), (self.features, self.times))


@dataclass(frozen=True)
class Failure:
    """Why a clip has no features."""

    clip_id: str
    """The clip's path relative to its dataset."""
    label: str
    """Name of the clip's class."""
    reason: str
    """A reason code."""
    message: str
    """What happened, in words."""
    source_size: int
    """Size of the video in bytes."""
    source_mtime_ns: int
    """Modification time of the video."""

    def checksum(self) -> bytes:
        """Return 16 bytes that depend on every byte of the failure."""
        texts = (self.clip_id, self.label, self.reason, self.message)
        return _checksum(texts, (self.source_size, self.source_mtime_ns), ())


@dataclass(frozen=True)
class Place:
    """Where a file holds its features, one contiguous array."""

    start: int
    """Byte at which it begins."""
    shape: tuple[int, ...]
    """[n, V, T, D], or [n, V, T, P, D]."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's features."""
        return 2 * math.prod(self.shape[1:])


@dataclass(frozen=True, eq=False)
class Index:
    """A file's rows without their features, and its failures."""

    fingerprint: str
    """Of the stream's spec."""
    clip_ids: list[str]
    """[n]."""
    labels: list[str]
    """[n]."""
    sources: NDArray[np.int64]
    """[n, 2], size and mtime."""
    times: NDArray[np.float64]
    """[n, V, T]."""
    checksums: NDArray[np.uint8]
    """[n, 16]."""
    failures: Sequence[Failure]
    """Any number."""
    place: Place | None = None
    """Of the features, if the index is of one file."""

    def row(self, position: int, features: NDArray[np.float16]) -> Row:
        """Return the row at `position`, given its features."""
        size, mtime_ns = self.sources[position].tolist()
        return Row(self.clip_ids[position], self.labels[position], features, self.times[position], size, mtime_ns)

    def check_row(self, path: Path, position: int, features: NDArray[np.float16]) -> None:
        """Compare a row with its checksum.

        Raises:
            DamageError: If they differ.
        """
        if self.row(position, features).checksum() != self.checksums[position].tobytes():
            raise DamageError(path, f"the row of clip {self.clip_ids[position]!r} does not match its checksum")


@dataclass(frozen=True, eq=False)
class Contents:
    """Which clips a file holds, and no more."""

    fingerprint: str
    """Of the stream's spec."""
    clip_ids: list[bytes]
    """[n], encoded."""
    sources: NDArray[np.int64]
    """[n, 2], size and mtime."""
    failures: Sequence[Failure]
    """Any number."""


def encode(text: str) -> bytes:
    """Return a text as UTF-8."""
    # File names that are no UTF-8 reach Python with lone surrogates in them; they have to come back as they were.
    return text.encode("utf-8", "surrogatepass")


def decode(text: bytes) -> str:
    """Return the text that `encode` took."""
    return text.decode("utf-8", "surrogatepass")


def _checksum(texts: Iterable[str], numbers: Iterable[int], arrays: Iterable[NDArray[Any]]) -> bytes:
    # Lengths and shapes go in too, so that no two rows share one sequence of bytes.
    pieces = []
    for text in texts:
        encoded = encode(text)
        pieces += [struct.pack("<q", len(encoded)), encoded]
    pieces += [struct.pack("<q", number) for number in numbers]
    for array in arrays:
        pieces.append(struct.pack(f"<{array.ndim + 1}q", array.ndim, *array.shape))
        pieces.append(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return hashlib.blake2b(b"".join(pieces), digest_size=16).digest()
