"""What is to be said of features that others computed: shape, origin, and how frames are chosen."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache import Json, StreamSpec
from ..cache.errors import UserError, pick
from ..extract.sampling import Sampling
from .feature_files import ArrayError
from .feature_labels import FeatureClip
from .feature_source import FeatureSource

VERSION = 1
"""Of the way from an array to a row; raised by whoever changes the numbers."""
AXES: dict[str, str] = {
    "d": "a vector a clip",
    "td": "frames of a clip",
    "vtd": "views of a clip, with frames",
    "vtpd": "views, frames, spatial tokens",
}
"""Axes of a clip's array: views (V), frames (T), spatial tokens (P), width (D)."""
IMPORTED = "imported"
"""Backbone of features of which nobody said what made them."""
FRAMES = Sampling().frames
"""Frames of a clip, unless asked for otherwise."""

_PROBES = 16
_LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class ImportConfig:
    """How arrays become rows."""

    stream: str = "rgb"
    """The modality."""
    frames: int | None = None
    """Frames (T) kept of each clip; None: 8, or 1 where a clip is a vector."""
    axes: str | None = None
    """A key of `AXES`; None: a vector or frames, as the arrays have one axis or two."""
    backbone: str | None = None
    """What made the features; None: unknown."""

    def __post_init__(self) -> None:
        """Refuse a count of no frames, unknown axes, and a name that is none."""
        if self.axes is not None:
            pick(AXES, self.axes, "axes")
        if self.backbone == "":
            raise UserError("the backbone has no name; --backbone; give one, or leave it out")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frames is {self.frames}; --frames; it must be at least 1")


def make_spec(
    source: FeatureSource, clips: Sequence[FeatureClip], config: ImportConfig, anchor: str | None
) -> tuple[StreamSpec, str]:
    """Describe a stream before it is imported.

    Args:
        source: Where the arrays are.
        clips: What is to be imported.
        config: Settings.
        anchor: The clip by which the stream knows its source, if it exists already; see `anchor_id`.

    Returns:
        The spec, of the shape that most of a few clips have, and what the axes of the arrays are, a key of `AXES`.

    Raises:
        UserError: If no clip can be read, or the settings do not fit the arrays.
    """
    probes = _probe(source, clips, config.axes)
    axes = _settle_axes(probes, config.axes)
    if axes == "d" and config.frames not in (None, 1):
        raise UserError(f"a clip is one vector, not {config.frames} frames; --frames; leave it out")
    shapes = [(clip, widths(with_views(array, axes))) for clip, array in probes]
    (views, tokens, dim), _ = Counter(shape for _, shape in shapes).most_common(1)[0]
    imported: dict[str, Json] = {"version": VERSION, "sampling": "none" if axes == "d" else "segments"}
    if config.backbone is None:
        imported["source"] = _anchor(
            source, clips, [clip for clip, shape in shapes if shape == (views, tokens, dim)], anchor
        )
    spec = StreamSpec(
        config.stream,
        config.frames or (1 if axes == "d" else FRAMES),
        views,
        dim,
        {"backbone": {"name": config.backbone or IMPORTED}, "imported": imported},
        tokens=tokens,
    )
    return spec, axes


def anchor_id(spec: StreamSpec) -> str | None:
    """Return the clip by which a stream knows its source, if it is an imported one that does."""
    imported = spec.settings.get("imported")
    source = imported.get("source") if isinstance(imported, Mapping) else None
    return str(source.get("clip")) if isinstance(source, Mapping) else None


def with_views(array: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return an array as [V, T, D] or [V, T, P, D].

    Args:
        array: A clip's.
        axes: A key of `AXES`.

    Raises:
        ArrayError: If it has other axes, or no numbers.
    """
    if array.ndim != len(axes) or 0 in array.shape:
        raise ArrayError("wrong-shape", f"shape {list(array.shape)}, not [{', '.join(axes.upper())}]")
    return array.reshape((1,) * max(0, 3 - array.ndim) + array.shape)


def widths(views: NDArray[Any]) -> tuple[int, int, int]:
    """Return V, P (0 without tokens) and D."""
    return views.shape[0], views.shape[2] if views.ndim == 4 else 0, views.shape[-1]


def _probe(
    source: FeatureSource, clips: Sequence[FeatureClip], axes: str | None
) -> list[tuple[FeatureClip, NDArray[Any]]]:
    """Read some clips, evenly spread; if not one of them can be read, the first that can."""
    few = [clips[i] for i in sorted({number * len(clips) // _PROBES for number in range(_PROBES)})]
    problems: list[tuple[FeatureClip, ArrayError]] = []
    found = list(_readable(source, few, axes, problems))
    if not found and {error.reason for _, error in problems} <= {"which-array", "wrong-shape"}:
        clip, error = problems[0]
        mend = "name the array with --key" if error.reason == "which-array" else "name the axes with --axes"
        raise UserError(f"{error.message}; in {clip.name}; {mend}")
    if not found:
        rest = (clip for clip in clips if clip not in few)
        found = list(islice(_readable(source, rest, axes, problems), 1))
    if not found:
        clip, error = problems[0]
        what = f"{error.reason}: {error.message}"
        raise UserError(f"none of {len(clips)} clips can be read ({what}); the first is {clip.name}; mend the files")
    return found


def _readable(
    source: FeatureSource,
    clips: Iterable[FeatureClip],
    axes: str | None,
    problems: list[tuple[FeatureClip, ArrayError]],
) -> Iterator[tuple[FeatureClip, NDArray[Any]]]:
    for clip in clips:
        try:
            array = source.read(clip.name)
            with_views(array, axes or _guess_axes(array))
            # Only the shape of most is wanted: what keeps it takes no memory.
            yield clip, np.broadcast_to(np.zeros((), array.dtype), array.shape)
        except ArrayError as error:
            problems.append((clip, error))


def _settle_axes(probes: Sequence[tuple[FeatureClip, NDArray[Any]]], axes: str | None) -> str:
    if axes:
        return axes
    seen = {_guess_axes(array): (clip, array) for clip, array in probes}
    if len(seen) > 1:
        both = " and ".join(f"{clip.name} {list(array.shape)}" for clip, array in seen.values())
        raise UserError(f"vectors and frames are mixed: {both}; import one kind; name it with --axes d or --axes td")
    return next(iter(seen))


def _guess_axes(array: NDArray[Any]) -> str:
    if array.ndim not in (1, 2):
        raise ArrayError("wrong-shape", f"shape {list(array.shape)} is neither [T, D] nor [D]")
    return "d" if array.ndim == 1 else "td"


def _anchor(
    source: FeatureSource, clips: Sequence[FeatureClip], probes: Sequence[FeatureClip], anchor: str | None
) -> dict[str, Json]:
    """Name one clip and hash its numbers: features of nobody knows which network agree with themselves alone.

    The clip of an existing stream is taken again, so that clips can be added or mended. A new stream takes none that
    has to be mended.
    """
    found: dict[str, Json] = {}
    for clip in [*(clip for clip in clips if clip.id == anchor), *probes]:
        try:
            with np.errstate(over="ignore"):
                numbers = source.read(clip.name).astype("<f8")
        except ArrayError:
            continue
        is_good = numbers.size > 0 and bool(np.abs(numbers).max() <= _LARGEST)
        if is_good or not found:
            found = {"clip": clip.id, "sha256": hashlib.sha256(numbers.tobytes()).hexdigest()}
        if is_good:
            break
    return found
