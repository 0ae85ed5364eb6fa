"""Gathering of the sampled frames of a clip, each made small at once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from .frames import reduced_size, resize
from .reasons import DecodeError
from .sampling import Sampling, frame_positions, successors


@dataclass(frozen=True)
class Want:
    """What a stream takes of every clip."""

    short_side: int
    """Short side of its frames in pixels."""
    fields: int = 1
    """Frames that one feature is made of: T * fields frames of each view."""
    pairs: bool = False
    """Whether it takes grey frames, each with its successor, instead of RGB frames."""


@dataclass(frozen=True)
class Sampled:
    """The sampled frames of a clip: V views of T features."""

    arrays: dict[str, NDArray[np.uint8]]
    """Stream -> RGB frames `[V, F, H, W, 3]` or grey pairs `[V, F, 2, H, W]`, F = T * fields; no pairs of a clip
    of one frame."""
    times: dict[str, NDArray[np.float64]]
    """Stream -> seconds `[V, T]`: when the frame is shown, or the mean of the frames behind one feature."""
    num_frames: int
    """Frames of the clip, as counted."""


class Collector:
    """Takes the wanted frames of one clip, one after the other, and keeps only what is needed of them.

    Args:
        sampling: Features and views.
        clip_id: The clip's identity.
        wants: Stream -> what it takes.
        num_frames: Frames of the clip.
        rate: Frames a second, for frames without a time stamp; 0 if not known.
    """

    def __init__(
        self, sampling: Sampling, clip_id: str, wants: Mapping[str, Want], num_frames: int, rate: float
    ) -> None:
        self._num_frames = num_frames
        self._rate = rate or 1.0
        self._times: dict[int, float] = {}
        self._streams = {
            name: _Stream(want, frame_positions(num_frames, _with_fields(sampling, want), clip_id), num_frames)
            for name, want in wants.items()
        }

    @property
    def wanted(self) -> list[int]:
        """Positions of the frames to be added, ascending."""
        return sorted(set().union(*(stream.wanted | stream.timed for stream in self._streams.values())))

    def add(self, position: int, frame: VideoFrame) -> None:
        """Take the decoded frame at a position; the first one decides the size of all."""
        rgb = upright_rgb(frame)
        self._times[position] = position / self._rate if frame.time is None else frame.time
        for stream in self._streams.values():
            stream.add(position, rgb)

    def result(self) -> Sampled:
        """Put the frames together, in the order of the views.

        Raises:
            DecodeError: "single-frame" if there are no pairs and nothing else was asked for.
        """
        arrays = {name: stream.gather() for name, stream in self._streams.items() if stream.taken is not None}
        if not arrays:
            raise DecodeError("single-frame", "the clip has one frame, flow needs two")
        times = {name: stream.mean_times(self._times) for name, stream in self._streams.items()}
        return Sampled(arrays, times, self._num_frames)


class _Stream:
    """The frames of one stream at one size: which are wanted, and what is kept of them."""

    def __init__(self, want: Want, positions: NDArray[np.int64], num_frames: int) -> None:
        self._want = want
        self._positions = positions
        self._size: tuple[int, int] | None = None
        self._kept: dict[int, NDArray[np.uint8]] = {}
        self.taken = _taken(want, positions, num_frames)
        self.wanted: set[int] = set() if self.taken is None else set(self.taken.ravel().tolist())
        self.timed: set[int] = set(positions.ravel().tolist())

    def add(self, position: int, rgb: NDArray[np.uint8]) -> None:
        """Keep a frame, if it is wanted, at the size of the first one kept."""
        if position not in self.wanted:
            return
        # A clip may change its resolution on the way; all its frames go into one array.
        self._size = self._size or reduced_size(rgb.shape[0], rgb.shape[1], self._want.short_side)
        small = resize(rgb, *self._size)
        # The one way to grey, for every flow backend: others differ by more than a level, and the flow with them.
        grey = self._want.pairs
        self._kept[position] = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8) if grey else small

    def gather(self) -> NDArray[np.uint8]:
        """Return the kept frames in the order of `taken`."""
        assert self.taken is not None
        frames = [self._kept[position] for position in self.taken.ravel().tolist()]
        return np.stack(frames).reshape(*self.taken.shape, *frames[0].shape)

    def mean_times(self, times: Mapping[int, float]) -> NDArray[np.float64]:
        """Return the time `[V, T]` of each feature, given that of each frame."""
        shown = np.vectorize(times.__getitem__, otypes=[np.float64])(self._positions)
        mean: NDArray[np.float64] = shown.reshape(len(shown), -1, self._want.fields).mean(axis=-1)
        return mean


def _with_fields(sampling: Sampling, want: Want) -> Sampling:
    return replace(sampling, frames=sampling.frames * want.fields)


def _taken(want: Want, positions: NDArray[np.int64], num_frames: int) -> NDArray[np.int64] | None:
    """Return the frames to be kept: `[V, F]`, or `[V, F, 2]` for pairs; None if there can be no pair."""
    if not want.pairs:
        return positions
    return np.stack(successors(positions, num_frames), axis=-1) if num_frames > 1 else None


def upright_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return the frame's pixels `[H, W, 3]`, turned as its display matrix says."""
    rgb = frame.to_ndarray(format="rgb24", threads=1)
    # Phones store the picture as the sensor lies; the decoder leaves it to us to turn it.
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)), dtype=np.uint8)
