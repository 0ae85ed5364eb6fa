"""Reading a cache, while any number of jobs write it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .folder import open_cache, packed_folder, read_spec, require_spec, stream_names
from .index import StreamIndex, load_failures, load_index
from .rows import Failure, Index
from .segment import map_features
from .sidecar import VanishedError
from .spec import Json, StreamSpec
from .view import load_view, settled


@dataclass(frozen=True, eq=False)
class Stream:
    """All clips of one stream, sorted by clip id."""

    name: str
    """The modality."""
    spec: StreamSpec
    """What made the features."""
    features: NDArray[np.float16]
    """[N, V, T, D], or [N, V, T, P, D] with tokens; a read-only memory map if one packed file holds all clips."""
    index: Index
    """Everything but the features."""
    path: Path
    """Where the features are: the memory-mapped file, or the stream's folder."""

    @property
    def clip_ids(self) -> list[str]:
        """[N], sorted."""
        return self.index.clip_ids

    @property
    def labels(self) -> list[str]:
        """[N], the class of each clip."""
        return self.index.labels

    @property
    def times(self) -> NDArray[np.float64]:
        """[N, V, T], seconds from the start of the video."""
        return self.index.times

    def check(self, rows: Sequence[int] | None = None) -> None:
        """Compare rows (default: all) with their checksums; only a memory map needs it, all else is checked on reading.

        Raises:
            UserError: If a row is damaged.
        """
        for row in range(len(self.clip_ids)) if rows is None else rows:
            self.index.check_row(self.path, row, self.features[row])


class Store:
    """A cache directory, opened for reading.

    Args:
        root: The directory.

    Raises:
        UserError: If it is no amfir cache.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        open_cache(self.root)

    def streams(self) -> list[str]:
        """Return the names of the streams, sorted."""
        return stream_names(self.root)

    def spec(self, name: str) -> StreamSpec:
        """Return what made a stream.

        Raises:
            UserError: If there is no such stream, or its spec was edited.
        """
        return read_spec(self.root, name)

    def read(self, name: str, spec: StreamSpec | None = None) -> Stream:
        """Return a stream with its features, in memory or memory-mapped.

        Args:
            name: The modality.
            spec: Refuse a stream made by another spec than this one.

        Raises:
            UserError: If there is no such stream, its spec differs, or it is damaged.
        """
        cached = self.spec(name)
        if spec is not None:
            require_spec(self.root, cached, spec)
        return settled(self.root, lambda: _read_stream(self.root, cached))

    def done(self, name: str) -> dict[str, tuple[int, int]]:
        """Return source size and mtime_ns of each clip that has features, without reading any.

        Raises:
            UserError: If there is no such stream, or it is damaged.
        """
        spec = self.spec(name)
        index = settled(self.root, lambda: load_view(self.root, spec)).merged(spec)
        sources = index.sources.tolist()
        return {clip_id: (size, mtime) for clip_id, (size, mtime) in zip(index.clip_ids, sources, strict=True)}

    def index(self, name: str) -> StreamIndex:
        """Return which clips a stream holds, by the digests of their ids: quick and small for a million clips, too.

        Raises:
            UserError: If there is no such stream, or it is damaged.
        """
        spec = self.spec(name)
        return settled(self.root, lambda: load_index(self.root, spec))

    def failures(self, name: str) -> list[Failure]:
        """Return the newest failure of each clip without features, sorted by clip id.

        Raises:
            UserError: If there is no such stream, or it is damaged.
        """
        spec = self.spec(name)
        return settled(self.root, lambda: load_failures(self.root, spec))

    def info(self) -> dict[str, dict[str, Json]]:
        """Return a description of each stream: clips, failures, segments, bytes, classes, duplicates, packed, spec.

        Raises:
            UserError: If a stream is damaged.
        """
        return {name: self._info(name) for name in self.streams()}

    def _info(self, name: str) -> dict[str, Json]:
        spec = self.spec(name)
        return settled(self.root, lambda: _describe(self.root, spec))


def _read_stream(root: Path, spec: StreamSpec) -> Stream:
    view = load_view(root, spec)
    index = view.merged(spec)
    if view.first_is_whole() and view.paths[0].parent == packed_folder(root, spec.modality):
        return Stream(spec.modality, spec, map_features(view.paths[0], view.indices[0]), index, view.paths[0])
    features = np.empty((len(index.clip_ids), *spec.row_shape), np.float16)
    for position, row in view.features():
        features[position] = row
    return Stream(spec.modality, spec, features, index, root / spec.modality)


def _describe(root: Path, spec: StreamSpec) -> dict[str, Json]:
    view = load_view(root, spec)
    try:
        num_bytes = sum(path.stat().st_size for path in view.paths)
    except FileNotFoundError as error:
        raise VanishedError(error.filename) from None
    num_packed = sum(path.parent == packed_folder(root, spec.modality) for path in view.paths)
    return {
        "clips": len(view.rows),
        "failures": len(view.failures),
        "segments": len(view.paths) - num_packed,
        "bytes": num_bytes,
        "classes": len(set(view.merged(spec).labels)),
        "duplicates": sum(len(index.clip_ids) for index in view.indices) - len(view.rows),
        "packed": num_packed > 0,
        "spec": spec.to_json(),
    }
