"""A clip's flow beside its frames, for people who want to look."""

import os
import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ..cache.errors import UserError
from ..extract.container import open_video
from ..extract.decode import decode_clip
from ..extract.frames import reduced_size, resize
from ..extract.reasons import REASONS, DecodeError
from ..extract.reduce import Sampled, Want, upright_rgb
from ..extract.sampling import Sampling
from ..extract.source import open_clip
from .flow_layout import beside, sheet

Flow = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Grey pairs `[N, 2, H, W]` to flow `[N, H, W, 2]`; a `FlowBackend` is one."""
Progress = Callable[[int, int], None]
"""Called with the frames that are finished and all frames."""

SAMPLED_PAIRS = 32
"""Pairs from which the displacement of the full colour is found."""
_PERCENTILE = 99
_LEAST_FULL_PIXELS = 1.0
_X264 = {"crf": "18", "preset": "veryfast"}
_USUAL_RATE = Fraction(25)


@dataclass(frozen=True)
class FlowSummary:
    """What was rendered."""

    out: Path
    """The picture or the video."""
    frames: int
    """Frames in it."""
    mean_pixels: float
    """Mean displacement over all pixels of all its frames, in pixels of the rendered size."""
    max_pixels: float
    """Largest displacement."""
    full_pixels: float
    """Displacement of the full colour."""


@dataclass(frozen=True)
class FlowLook:
    """How flow is rendered."""

    short_side: int = 256
    """Short side of the frames in pixels; flow is computed at this size."""
    full_pixels: float | None = None
    """Displacement of the full colour; None: the clip's 99th percentile, at least 1."""
    sheet_frames: int = 8
    """Frames of a PNG."""


def render_flow(
    video: Path, out: Path, flow: Flow, look: FlowLook | None = None, progress: Progress | None = None
) -> FlowSummary:
    """Render the flow of a clip beside its frames.

    Args:
        video: The clip.
        out: A .mp4 gets all frames, a .png a sheet of some; a file of this name is replaced when the new one is whole.
        flow: Computes the flow.
        look: Sizes and colours.
        progress: Called after each frame.

    Raises:
        UserError: If the clip cannot be decoded, or the output not be written there.
    """
    writers = {".mp4": _render_video, ".png": _render_sheet}
    write = writers.get(out.suffix.lower())
    if write is None:
        raise UserError(f"cannot write a file of kind {out.suffix!r}; --out {out}; let its name end in .mp4 or .png")
    _refuse_bad_place(video, out)
    return write(video, out, flow, look or FlowLook(), progress or (lambda ready, total: None))


def _render_video(video: Path, out: Path, flow: Flow, look: FlowLook, progress: Progress) -> FlowSummary:
    """Write all frames, holding two at a time."""
    # Samples first: they give the colours' scale and the number of frames, and show whether the whole clip can be read.
    sampled = _sample(video, SAMPLED_PAIRS, {"flow": Want(look.short_side, pairs=True)})
    full = look.full_pixels or _full_pixels([flow(pair[None]) for pair in sampled.arrays["flow"][0]])
    measure = _Measure()

    def pictures() -> Generator[NDArray[np.uint8], None, None]:
        for frame, field in _with_flow(_frames(video), flow, look.short_side):
            measure.add(field)
            yield beside(frame, field, full)
            progress(measure.fields, max(measure.fields, sampled.num_frames))

    rate = _frame_rate(video)
    with _new_file(out) as temporary, closing(pictures()) as source:
        _encode(temporary, rate, source)
    return measure.summary(out, full)


def _render_sheet(video: Path, out: Path, flow: Flow, look: FlowLook, progress: Progress) -> FlowSummary:
    """Write evenly spaced frames over their flow."""
    wants = {"rgb": Want(look.short_side), "flow": Want(look.short_side, pairs=True)}
    sampled = _sample(video, look.sheet_frames, wants)
    # In a clip shorter than the sheet, positions repeat.
    seconds, kept = np.unique(sampled.times["rgb"][0], return_index=True)
    measure = _Measure()
    fields = []
    for number, pair in enumerate(sampled.arrays["flow"][0][kept]):
        fields.append(flow(pair[None])[0])
        measure.add(fields[-1])
        progress(number + 1, len(kept))
    full = look.full_pixels or _full_pixels(fields)
    picture = sheet(sampled.arrays["rgb"][0][kept], np.stack(fields), seconds, full)
    with _new_file(out) as temporary:
        temporary.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
    return measure.summary(out, full)


class _Measure:
    """Mean and maximum of the displacement over fields that are not kept."""

    def __init__(self) -> None:
        self.fields = 0
        self._sum = 0.0
        self._max = 0.0

    def add(self, field: NDArray[np.float32]) -> None:
        """Count a field `[H, W, 2]`."""
        magnitude = np.hypot(field[..., 0], field[..., 1])
        self.fields += 1
        self._sum += float(magnitude.mean(dtype=np.float64))
        self._max = max(self._max, float(magnitude.max()))

    def summary(self, out: Path, full_pixels: float) -> FlowSummary:
        """Return what was found."""
        return FlowSummary(out, self.fields, self._sum / self.fields, self._max, full_pixels)


def _refuse_bad_place(video: Path, out: Path) -> None:
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {str(out.parent)!r}; --out {out}; make it, or choose another place")
    if out.is_dir():
        raise UserError(f"the name is a folder; --out {out}; give the name of a file")
    with suppress(OSError):  # a clip that is missing gets its own message
        if out.exists() and os.path.samefile(video, out):
            raise UserError(f"the output would replace the clip itself; --out {out}; choose another name")


def _sample(video: Path, count: int, wants: dict[str, Want]) -> Sampled:
    """Decode evenly spaced frames.

    Raises:
        UserError: If the clip cannot be decoded, or has one frame and thus no flow.
    """
    with _decode_errors(video):
        sampled = decode_clip(video, Sampling(frames=count), wants, clip_id=video.name)
        if "flow" not in sampled.arrays:
            raise DecodeError("single-frame", "the clip has one frame, flow needs two")
        return sampled


def _full_pixels(fields: list[NDArray[np.float32]]) -> float:
    """Return the displacement that 99 % of the pixels do not exceed; a still clip's noise is not blown up."""
    magnitudes = [np.hypot(field[..., 0], field[..., 1]).ravel() for field in fields]
    return max(_LEAST_FULL_PIXELS, float(np.percentile(np.concatenate(magnitudes), _PERCENTILE)))


def _with_flow(
    source: Iterator[NDArray[np.uint8]], flow: Flow, short_side: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Yield each frame, made small, with the flow to its successor; the last one with that of its predecessor."""
    frame = next(source)
    # A clip may change its resolution on the way; the first frame decides.
    size = reduced_size(frame.shape[0], frame.shape[1], short_side)
    frame, field = resize(frame, *size), None
    for following in source:
        following = resize(following, *size)
        field = flow(np.stack([_grey(frame), _grey(following)])[None])[0]
        yield frame, field
        frame = following
    assert field is not None, "a clip of one frame was refused before"
    yield frame, field


def _grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def _frame_rate(video: Path) -> Fraction:
    with _decode_errors(video), open_clip(video) as file, open_video(file) as (_, stream):
        return stream.average_rate or stream.guessed_rate or _USUAL_RATE


def _frames(video: Path) -> Iterator[NDArray[np.uint8]]:
    """Decode a clip's frames `[H, W, 3]`, RGB, turned as their display matrix says, one after the other."""
    with _decode_errors(video), open_clip(video) as file, open_video(file) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise DecodeError("damaged", f"frame {number} is broken")
            yield upright_rgb(frame)


@contextmanager
def _decode_errors(video: Path) -> Iterator[None]:
    """Turn an error of decoding into one line."""
    try:
        yield
    except DecodeError as error:
        raise UserError(f"{error}; {video}; {REASONS[error.reason]}") from error
    except av.error.FFmpegError as error:
        raise UserError(f"damaged: decoding failed ({error.strerror}); {video}; {REASONS['damaged']}") from error
    except OSError as error:
        raise UserError(f"unreadable: {error.strerror}; {video}; {REASONS['unreadable']}") from error


def _encode(path: Path, rate: Fraction, pictures: Iterator[NDArray[np.uint8]]) -> None:
    """Write pictures of one even size as an MP4 that every player shows."""
    first = next(pictures)
    # An absolute path: a relative one with a colon would pass for a protocol.
    with av.open(str(path.absolute()), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=_X264)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in chain([first], pictures):
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@contextmanager
def _new_file(out: Path) -> Iterator[Path]:
    """Give the name of a file to write; when the block ends well it is renamed to `out`, else nothing is left of it."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, out)
    except BaseException:  # whatever ends it, Ctrl-C too, leaves no half-written file
        temporary.unlink(missing_ok=True)
        raise
