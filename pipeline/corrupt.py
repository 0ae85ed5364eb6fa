"""Harms of a clip's video: sensor noise, blur, darkness, lost frames. The harmed clip is a video again, lossless.

A harm is a function of the clip's decoded frames, its level, the seed and the clip's id, and of nothing else: neither
the other clips nor the order of the work. Randomness does not depend on the level, so that a higher level harms the
same pixels, or loses the same frames, and more.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from ..cache.errors import UserError, pick
from ..extract.clips import Clip
from ..extract.container import open_video
from ..extract.frames import resize
from ..extract.reasons import DecodeError
from ..extract.reduce import upright_rgb
from ..extract.source import open_clip

Frame = NDArray[np.uint8]
"""RGB [H, W, 3]."""

FrameHarm = Callable[[Frame], Frame]
"""Takes the frames of one clip in their order."""

USUAL_RATE = Fraction(25)
FASTEST_RATE = 240
"""Frames a second; Matroska's time stamps, in milliseconds, do not tell the frames of much faster videos apart."""


@dataclass(frozen=True)
class Harm:
    """One harm at one level.

    Raises:
        UserError: If the level means nothing.
    """

    name: str
    """A key of `HARMS`, or of `feature_harms.FEATURE_HARMS`."""
    level: float
    """How much; 0 leaves everything as it is. At most 1, which is all of it, but for noise, which has no end."""

    def __post_init__(self) -> None:
        most = math.inf if self.name == "noise" else 1.0
        if not 0 <= self.level <= most:
            raise UserError(f"level is {self.level}; harm {self.name!r}; it must be between 0 and {most:g}")

    def __str__(self) -> str:
        """Names it for people, and for the file system."""
        return f"{self.name}-{self.level:g}"


def harm_clip(clip: Clip, path: Path, harm: Harm, seed: int = 0) -> int:
    """Write a clip's harmed video, all frames, each losslessly; its audio is left out.

    Args:
        clip: The clip.
        path: The file to write, Matroska whatever its name (readers go by the content).
        harm: What is done to it.
        seed: With the clip's id, the source of all randomness.

    Returns:
        The number of frames.

    Raises:
        UserError: If the harm is unknown.
        DecodeError: If the clip cannot be decoded to its end.
    """
    with open_clip(clip.path, clip.span) as file:
        with open_video(file) as (_, stream):
            rate = stream.average_rate or USUAL_RATE
        frames = harm_frames(_decode(file), harm, clip.id, seed)
        return write_lossless(path, frames, rate if 1 <= rate <= FASTEST_RATE else USUAL_RATE)


def harm_frames(frames: Iterable[Frame], harm: Harm, clip_id: str, seed: int = 0) -> Iterator[Frame]:
    """Harm the frames of a clip, one after another.

    Raises:
        UserError: If the harm is unknown.
    """
    change = pick(HARMS, harm.name, "harm of videos")(harm.level, clip_generator(seed, clip_id, harm.name))
    return map(change, frames)


def clip_generator(seed: int, clip_id: str, purpose: str) -> np.random.Generator:
    """The generator of one clip for one purpose: independent of the other clips, and of its other purposes."""
    # surrogatepass: file names that are not UTF-8 reach Python as lone surrogates.
    words = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8] for text in (clip_id, purpose)]
    return np.random.default_rng([seed, *(int.from_bytes(word, "big") for word in words)])


def write_lossless(path: Path, frames: Iterable[Frame], rate: Fraction) -> int:
    """Write RGB frames of one size so that decoding gives them back bit by bit; returns their number."""
    count = 0
    with av.open(str(path), "w", format="matroska") as container:
        # Unlike lossless H.264, FFV1 takes frames of any size, and each is a key frame: sought without detours.
        stream = container.add_stream("ffv1", rate=rate)
        stream.pix_fmt = "bgr0"
        stream.codec_context.thread_count = 1
        for frame in frames:
            if count == 0:
                stream.height, stream.width = frame.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            count += 1
        container.mux(stream.encode())
    return count


# --- Harms: of level and generator, what changes the frames of one clip ---------------------------------------------


def sensor_noise(level: float, generator: np.random.Generator) -> FrameHarm:
    """Add Gaussian noise of deviation level * 255 to each value, independent, then round and clip to 8 bits."""

    def change(frame: Frame) -> Frame:
        noise = generator.standard_normal(frame.shape, dtype=np.float32)
        return np.clip(np.rint(frame + np.float32(255 * level) * noise), 0, 255).astype(np.uint8)

    return change


def blur(level: float, _: np.random.Generator) -> FrameHarm:
    """Blur with a Gaussian whose deviation is that share of the frame's short side; edges are mirrored."""

    def change(frame: Frame) -> Frame:
        sigma = level * min(frame.shape[:2])
        if sigma == 0:
            return frame
        return np.asarray(cv2.GaussianBlur(frame, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101), np.uint8)

    return change


def darkness(level: float, _: np.random.Generator) -> FrameHarm:
    """Scale all values by 1 - level and round to 8 bits again: few grey levels are left, whatever is done later."""
    table = np.rint((1 - level) * np.arange(256)).astype(np.uint8)
    return lambda frame: table[frame]


def lost_frames(level: float, generator: np.random.Generator) -> FrameHarm:
    """Lose each frame but the first with that probability and show the last one that was not: a stutter, as long."""
    shown: list[Frame] = []

    def change(frame: Frame) -> Frame:
        if generator.random() >= level or not shown:
            shown[:] = [frame]
        return shown[0]

    return change


HARMS: dict[str, Callable[[float, np.random.Generator], FrameHarm]] = {
    "noise": sensor_noise,
    "blur": blur,
    "dark": darkness,
    "drop": lost_frames,
}


def _decode(file: BinaryIO) -> Iterator[Frame]:
    """All frames as the extraction sees them, those of another size than the first brought to it."""
    size: tuple[int, ...] = ()
    try:
        with open_video(file) as (container, stream):
            for decoded in container.decode(stream):
                frame = upright_rgb(decoded)
                size = size or frame.shape[:2]
                yield resize(frame, size[0], size[1])
    except av.error.FFmpegError as error:
        raise DecodeError("damaged", f"decoding failed ({error.strerror})") from error
