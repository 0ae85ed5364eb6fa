"""Features that others computed become a stream of a cache, with a spec that says so."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache import Failure, Row, Store, StreamSpec, StreamWriter, discard_damaged
from ..cache.errors import UserError
from ..cache.rows import Index
from ..cache.view import load_view, settled
from ..extract.sampling import Sampling, frame_positions
from .feature_files import ArrayError
from .feature_labels import FeatureClip
from .feature_source import FeatureSource
from .import_spec import ImportConfig, anchor_id, make_spec, widths, with_views

LISTED_FAILURES = 1000

_SEGMENT_ROWS = 256
_SEGMENT_BYTES = 32 << 20

Progress = Callable[[int, int, int, int], None]
"""Called with the clips that are ready, all clips, those an earlier run finished, and those that failed."""


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    spec: StreamSpec
    """Of the stream."""
    clips: int
    """Clips wanted: done + skipped + failed."""
    done: int
    """Clips that this import added."""
    skipped: int
    """Clips that the stream had before."""
    failed: int
    """Clips whose array cannot be imported."""
    changed: int
    """Skipped clips whose file is another one now than when it was imported; the old features stay."""
    rounding: float
    """Largest relative error (L2, of a frame) of float16 among the clips added."""
    seconds: float
    """Wall time."""
    failures: list[Failure] = field(default_factory=list)
    """Why clips failed, the first 1,000."""


def import_features(
    source: FeatureSource,
    clips: Sequence[FeatureClip],
    cache: Path,
    config: ImportConfig,
    progress: Progress | None = None,
) -> ImportReport:
    """Import the clips that a stream lacks; those that failed before are tried again.

    One clip's array is in memory at a time, and what the writer collects. Interrupted and called again, it goes on.

    Args:
        source: Where the arrays are.
        clips: What to import, sorted by id.
        cache: The cache's directory; made if need be.
        config: Settings.
        progress: Called after each clip.

    Raises:
        UserError: If the settings, the arrays and the cache do not go together, or no array can be read.
        MachineError: If the disk is full or fails.
    """
    started = time.monotonic()
    _require_cache(cache)
    held = _read_stream(cache, config.stream)
    _require_labels(cache, clips)
    spec, axes = make_spec(source, clips, config, anchor_id(Store(cache).spec(config.stream)) if held else None)
    row_bytes = 2 * math.prod(spec.row_shape)
    with StreamWriter(cache, spec, max_rows=max(16, min(_SEGMENT_ROWS, _SEGMENT_BYTES // row_bytes))) as writer:
        job = _Job(source, clips, writer, axes, held)
        job.run(progress or (lambda *_: None))
    return ImportReport(
        spec=spec,
        clips=len(clips),
        done=job.done,
        skipped=job.skipped,
        failed=job.failed,
        changed=job.changed,
        rounding=job.rounding,
        seconds=time.monotonic() - started,
        failures=job.failures,
    )


def to_row(array: NDArray[Any], axes: str, spec: StreamSpec, clip_id: str) -> tuple[NDArray[np.float16], float]:
    """Turn a clip's array into a row of the cache.

    Of n frames, those at the centres of T equal segments are kept, `floor((i + 0.5) n / T)`, as extraction takes them
    from a video; where n < T, frames repeat.

    Args:
        array: Any real dtype and byte order.
        axes: A key of `AXES`: what its axes are.
        spec: The stream's spec.
        clip_id: For the sampling.

    Returns:
        Features [V, T, D], or [V, T, P, D], and the largest relative error (L2) that rounding makes in a frame.

    Raises:
        ArrayError: If the shape is not the stream's, or values are no numbers that float16 holds.
    """
    views = with_views(array, axes)
    if widths(views) != (spec.views, spec.tokens, spec.dim):
        wanted = f"{spec.views} views, {f'{spec.tokens} tokens, ' if spec.tokens else ''}width {spec.dim}"
        raise ArrayError("wrong-shape", f"shape {list(array.shape)}; the stream has {wanted}")
    positions = frame_positions(views.shape[1], Sampling(spec.frames), clip_id)[0]
    with np.errstate(over="ignore", invalid="ignore"):
        exact = views[:, positions].astype(np.float64)
        half = exact.astype(np.float16)
    if not np.isfinite(exact).all():
        raise ArrayError("not-finite", f"{np.count_nonzero(~np.isfinite(exact))} of {exact.size} values")
    if not np.isfinite(half).all():
        raise ArrayError("out-of-range", f"the largest absolute value is {np.abs(exact).max():.6g}")
    lengths = np.linalg.norm(exact, axis=-1)
    errors = np.linalg.norm(half - exact, axis=-1)
    return half, float((errors / np.where(lengths > 0, lengths, 1)).max())


class _Job:
    """Goes through the clips once."""

    def __init__(
        self,
        source: FeatureSource,
        clips: Sequence[FeatureClip],
        writer: StreamWriter,
        axes: str,
        held: Index | None,
    ) -> None:
        self._source, self._clips, self._writer, self._axes = source, clips, writer, axes
        ids, stamps = (held.clip_ids, held.sources.tolist()) if held else ([], [])
        self._stamps = {clip_id: tuple(stamp) for clip_id, stamp in zip(ids, stamps, strict=True)}
        self._known = set(held.failures) if held else set()
        self.done = self.failed = self.changed = 0
        self.skipped = sum(clip.id in self._stamps for clip in clips)
        self.rounding = 0.0
        self.failures: list[Failure] = []

    def run(self, progress: Progress) -> None:
        """Import what is missing, in the order of the source."""
        self.changed = sum(
            self._stamps[clip.id] != self._source.stamp(clip.name) for clip in self._clips if clip.id in self._stamps
        )
        place = {name: number for number, name in enumerate(self._source.names)}
        todo = [clip for clip in self._clips if clip.id not in self._stamps]
        for clip in sorted(todo, key=lambda clip: place[clip.name]):
            try:
                self._add(clip)
            except ArrayError as error:
                self._fail(clip, error)
            progress(self.skipped + self.done + self.failed, len(self._clips), self.skipped, self.failed)

    def _add(self, clip: FeatureClip) -> None:
        stamp, spec = self._source.stamp(clip.name), self._writer.spec
        features, error = to_row(self._source.read(clip.name), self._axes, spec, clip.id)
        # Nobody says when the frames were shown.
        times = np.full((spec.views, spec.frames), np.nan)
        self._writer.add(Row(clip.id, clip.label, features, times, *stamp))
        self.done += 1
        self.rounding = max(self.rounding, error)

    def _fail(self, clip: FeatureClip, error: ArrayError) -> None:
        stamp = self._source.stamp(clip.name)
        failure = Failure(clip.id, clip.label, error.reason, error.message, *stamp)
        if failure not in self._known:  # or every repeated import would write it once more
            self._writer.add_failure(failure)
        self.failed += 1
        if len(self.failures) < LISTED_FAILURES:
            self.failures.append(failure)


def _require_cache(cache: Path) -> None:
    """Refuse a folder that holds something else."""
    if cache.exists() and not cache.is_dir():
        raise UserError(f"the cache is no folder; --cache {cache}; name another one")
    if cache.is_dir() and not (cache / "cache.json").exists():
        # A job that was killed in its first moments leaves nothing but temporary files.
        if any(entry.suffix != ".tmp" for entry in cache.iterdir()):
            raise UserError(f"the folder holds other files and no cache; --cache {cache}; name an empty or a new one")


def _read_stream(cache: Path, stream: str) -> Index | None:
    """Return what a stream holds after its damaged files are removed; None if it does not exist yet."""
    if not (cache / "cache.json").exists() or stream not in Store(cache).streams():
        return None
    discard_damaged(cache, stream)
    return _index(cache, stream)


def _index(cache: Path, stream: str) -> Index:
    spec = Store(cache).spec(stream)
    return settled(cache, lambda: load_view(cache, spec)).merged(spec)


def _require_labels(cache: Path, clips: Sequence[FeatureClip]) -> None:
    """Refuse classes that any stream of the cache knows otherwise: a clip has one class."""
    if not (cache / "cache.json").exists():
        return
    wanted = {clip.id: clip.label for clip in clips}
    for stream in Store(cache).streams():
        held = _index(cache, stream)
        for clip_id, label in zip(held.clip_ids, held.labels, strict=True):
            if wanted.get(clip_id, label) != label:
                raise UserError(
                    f"clip {clip_id!r} is {label!r} in stream {stream!r} and {wanted[clip_id]!r} now; in {cache}; "
                    "mend the labels, or use another --cache directory"
                )
