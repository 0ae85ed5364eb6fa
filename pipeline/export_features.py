"""A cache's features as files that other programs read: .npy files with a list of labels, or Parquet."""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache import Store, StreamSpec
from ..cache.errors import UserError, pick
from ..cache.files import file_errors, whole_file
from ..cache.rows import Index
from ..cache.sidecar import VanishedError, replace_file, write_json
from ..cache.view import View, load_view, settled
from .export_names import file_name, utf8_text

FORMATS = {"npy": "a .npy file a clip, and labels.csv", "parquet": "a Parquet file a stream, a row a frame"}
MANIFEST = "export.json"
GROUP_BYTES = 16 << 20
"""Bytes of features in a row group of Parquet, about; in memory at a time."""

_VERSION = 1

Progress = Callable[[int, int, int], None]
"""Called with the clips that are ready, all clips, and those an earlier run exported."""


@dataclass(frozen=True)
class Exported:
    """A stream that was exported."""

    path: Path
    """Its folder, or its Parquet file."""
    clips: int
    """Clips in it."""
    written: int
    """Of these, written now."""
    renamed: int
    """Clips whose id is no UTF-8: it has escapes in the list."""
    axes: str
    """Axes of a clip's array, as `--axes` of the import names them."""
    frames: int
    """Frames of a clip, as `--frames` of the import wants them."""


def export_features(
    cache: Path, out: Path, streams: Sequence[str] = (), form: str = "npy", progress: Progress | None = None
) -> dict[str, Exported]:
    """Export streams of a cache; interrupted and called again, it goes on.

    A folder of .npy files goes on with the clips that are missing, Parquet with the first unfinished stream. In memory
    are the ids and a few clips.

    Args:
        cache: The cache's directory.
        out: The export's directory; made if need be.
        streams: Which streams; empty: all.
        form: A key of `FORMATS`.
        progress: Called after each clip.

    Raises:
        UserError: If the cache is none, is damaged or lacks a stream, or `out` holds something else than an unfinished
            or finished export of this cache in this form, or cannot be written.
        MachineError: If the disk is full or fails.
    """
    pick(FORMATS, form, "format")
    store = Store(cache)
    names = list(streams) or store.streams()
    if not names:
        raise UserError(f"no stream in {cache}; --stream; extract or import some first")
    specs = {name: store.spec(name) for name in names}
    views = {name: _load(cache, spec) for name, spec in specs.items()}
    jobs = {name: _Job(cache, specs[name], views[name]) for name in names}
    counter = _Counter(sum(len(view.rows) for view in views.values()), progress or (lambda *_: None))
    write = _write_npy if form == "npy" else _write_parquet
    with file_errors(out, what="the export"):
        _claim(cache, out, form, {name: job.contents for name, job in jobs.items()})
        return {name: write(job, out, counter) for name, job in jobs.items()}


class _Job:
    """One stream on its way out."""

    def __init__(self, cache: Path, spec: StreamSpec, view: View) -> None:
        self._cache, self._view = cache, view
        self.spec = spec
        self.index: Index = view.merged(spec)
        self.ids = [utf8_text(clip_id) for clip_id in self.index.clip_ids]
        self.labels = [utf8_text(label) for label in self.index.labels]
        self.renamed = sum(new != old for new, old in zip(self.ids, self.index.clip_ids, strict=True))

    @property
    def contents(self) -> str:
        """Hash of the spec and of every byte of the rows."""
        return hashlib.sha256(self.spec.fingerprint.encode() + self.index.checksums.tobytes()).hexdigest()

    def features(self) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """Yield place and features of all rows, in the order of the cache's files, each once."""
        given: set[int] = set()
        while True:
            try:
                for place, features in self._view.features():
                    if place not in given:
                        given.add(place)
                        yield place, features
                return
            except VanishedError:  # a pack merged the files meanwhile; the rows are the same
                self._view = _load(self._cache, self.spec)
                if not np.array_equal(self._view.merged(self.spec).checksums, self.index.checksums):
                    raise UserError(f"the cache changes while it is exported; {self._cache}; try again later") from None


class _Counter:
    """Counts the clips of all streams."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._total, self._progress = total, progress
        self._ready = self._before = 0

    def add(self, count: int, *, before: bool = False) -> None:
        """Count clips as ready, by an earlier run perhaps."""
        self._ready += count
        self._before += count if before else 0
        self._progress(self._ready, self._total, self._before)


def _write_npy(job: _Job, out: Path, counter: _Counter) -> Exported:
    folder = out / job.spec.modality
    files = [file_name(*names) for names in zip(job.ids, job.labels, strict=True)]
    folder.mkdir(exist_ok=True)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(
        [("id", "label", "file"), *zip(job.ids, job.labels, files, strict=True)]
    )
    replace_file(folder / "labels.csv", [text.getvalue().encode()])
    write_json(folder / "spec.json", {"spec": job.spec.to_json(), "fingerprint": job.spec.fingerprint})
    axes = _axes(job.spec)
    written = 0
    for place, features in job.features():
        path = folder / files[place]
        data = _npy(features if len(axes) > 2 else features[0])
        is_there = path.exists() and path.stat().st_size == len(data)
        if not is_there:
            path.parent.mkdir(exist_ok=True, parents=True)
            _replace(path, data)
            written += 1
        counter.add(1, before=is_there)
    return Exported(folder, len(files), written, job.renamed, axes, job.spec.frames)


def _write_parquet(job: _Job, out: Path, counter: _Counter) -> Exported:
    import pyarrow as pa
    from pyarrow import parquet

    path, clips = out / f"{job.spec.modality}.parquet", len(job.ids)
    if path.exists():
        counter.add(clips, before=True)
        return Exported(path, clips, 0, job.renamed, _axes(job.spec), job.spec.frames)
    schema = _schema(job.spec)
    with (
        whole_file(path) as temporary,
        parquet.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            use_dictionary=["id", "label"],
            # float16 in float32 leaves bytes zero, which compress to nothing once they stand together.
            use_byte_stream_split=["feature.list.element"],
        ) as writer,
    ):
        for rows in _groups(job):
            writer.write_table(pa.Table.from_pydict(_columns(job, rows, schema), schema=schema))
            counter.add(len(rows))
    return Exported(path, clips, clips, job.renamed, _axes(job.spec), job.spec.frames)


def _schema(spec: StreamSpec) -> Any:
    import pyarrow as pa

    places = ["view", "frame", *(["token"] if spec.tokens else [])]
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            *(pa.field(name, pa.int32(), nullable=False) for name in places),
            # Few readers know half floats; these numbers are the same.
            pa.field("feature", pa.list_(pa.float32(), spec.dim), nullable=False),
        ],
        metadata={
            "amfir.spec": json.dumps(spec.to_json(), sort_keys=True),
            "amfir.fingerprint": spec.fingerprint,
        },
    )


def _groups(job: _Job) -> Iterator[list[tuple[int, NDArray[np.float16]]]]:
    """Collect rows until they fill a row group."""
    rows: list[tuple[int, NDArray[np.float16]]] = []
    most = max(1, GROUP_BYTES // (4 * int(np.prod(job.spec.row_shape))))
    for place, features in job.features():
        rows.append((place, features))
        if len(rows) == most:
            yield rows
            rows = []
    if rows:
        yield rows


def _columns(job: _Job, rows: Sequence[tuple[int, NDArray[np.float16]]], schema: Any) -> dict[str, Any]:
    """Return a row group's columns, a row a frame (a token, with tokens) of each view."""
    import pyarrow as pa

    shape = job.spec.row_shape[:-1]
    each = int(np.prod(shape))
    places = np.unravel_index(np.tile(np.arange(each), len(rows)), shape)
    numbers = np.concatenate([features.reshape(-1) for _, features in rows]).astype(np.float32)
    return {
        "id": [job.ids[place] for place, _ in rows for _ in range(each)],
        "label": [job.labels[place] for place, _ in rows for _ in range(each)],
        **{name: place.astype(np.int32) for name, place in zip(schema.names[2:-1], places, strict=True)},
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(numbers), type=schema.field("feature").type),
    }


def _claim(cache: Path, out: Path, form: str, contents: Mapping[str, str]) -> None:
    """Mark `out` as an export of these streams, or make sure that it is one already."""
    if out.resolve().is_relative_to(cache.resolve()):
        raise UserError(f"the export would lie in the cache; --to {out}; name a folder outside of {cache}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder; --to; name another one")
    out.mkdir(parents=True, exist_ok=True)
    found = _read_manifest(out)
    if found is None and any(out.iterdir()):
        raise UserError(f"the folder holds other files; --to {out}; name an empty or a new one")
    if found is None:
        write_json(out / MANIFEST, {"version": _VERSION, "format": form, "streams": dict(contents)})
        return
    streams = found.get("streams")
    if found.get("version") != _VERSION or found.get("format") != form or not isinstance(streams, dict):
        raise UserError(f"the folder holds an export of another format; --to {out}; name an empty or a new one")
    if other := [name for name, digest in contents.items() if streams.get(name, digest) != digest]:
        raise UserError(
            f"the folder holds an export of another stream {other[0]!r}, or the cache has changed since; --to {out}; "
            "name an empty or a new one"
        )
    if contents.keys() - streams.keys():
        write_json(out / MANIFEST, {**found, "streams": {**streams, **contents}})


def _read_manifest(out: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((out / MANIFEST).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{MANIFEST} is unreadable; in {out}; name an empty or a new folder")
    return found


def _load(cache: Path, spec: StreamSpec) -> View:
    return settled(cache, lambda: load_view(cache, spec))


def _axes(spec: StreamSpec) -> str:
    """Return the axes of a clip's array: as few as the stream needs, and never fewer than the import can tell."""
    return "vtpd" if spec.tokens else "vtd" if spec.views > 1 else "td"


def _npy(array: NDArray[np.float16]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array, "<f2"), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _replace(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there; syncing each of a million files would take an hour."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
