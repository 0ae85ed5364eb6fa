"""Gathering of the sampled frames of a clip, each made small at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from .frames import reduced_size, resize
from .reasons import DecodeError
from .sampling import Sampling, frame_positions, successors


@dataclass(frozen=True)
class Sampled:
    """The sampled frames of a clip: V views of T frames."""

    images: NDArray[np.uint8] | None
    """RGB frames `[V, T, H, W, 3]`, or None if not asked for."""
    pairs: NDArray[np.uint8] | None
    """Grey frames `[V, T, 2, H, W]`, each with its successor; None if not asked for or the clip has one frame."""
    times: NDArray[np.float64]
    """Seconds `[V, T]` at which the frames are shown."""
    num_frames: int
    """Frames of the clip, as counted."""


class Collector:
    """Takes the wanted frames of one clip, one after the other, and keeps only what is needed of them.

    Args:
        sampling: Frames and views.
        clip_id: The clip's identity.
        rgb_short_side: Short side of the images in pixels; None for no images.
        grey_short_side: Short side of the grey pairs in pixels; None for no pairs.
        num_frames: Frames of the clip.
        rate: Frames a second, for frames without a time stamp; 0 if not known.

    Raises:
        DecodeError: "single-frame" if only pairs are asked for and the clip has one frame.
    """

    def __init__(
        self,
        sampling: Sampling,
        clip_id: str,
        rgb_short_side: int | None,
        grey_short_side: int | None,
        num_frames: int,
        rate: float,
    ) -> None:
        self._num_frames = num_frames
        self._rate = rate or 1.0
        self._positions = frame_positions(num_frames, sampling, clip_id)
        self._pairs = successors(self._positions, num_frames) if grey_short_side and num_frames > 1 else None
        self._images = _Reduced(rgb_short_side, self._positions)
        self._greys = _Reduced(grey_short_side, np.stack(self._pairs) if self._pairs else None)
        self._times: dict[int, float] = {}
        self._alone = num_frames == 1 and not rgb_short_side and bool(grey_short_side)

    @property
    def wanted(self) -> list[int]:
        """Positions of the frames to be added, ascending."""
        return sorted(self._images.wanted | self._greys.wanted | set(self._positions.ravel().tolist()))

    def add(self, position: int, frame: VideoFrame) -> None:
        """Take the decoded frame at a position; the first one decides the size of all."""
        rgb = _upright_rgb(frame)
        self._times[position] = position / self._rate if frame.time is None else frame.time
        self._images.add(position, rgb)
        self._greys.add(position, rgb, to_grey=True)

    def result(self) -> Sampled:
        """Put the frames together, in the order of the views."""
        if self._alone:
            raise DecodeError("single-frame", "the clip has one frame, flow needs two")
        return Sampled(
            images=_gather(self._images.kept, self._positions) if self._images.wanted else None,
            pairs=_gather(self._greys.kept, np.stack(self._pairs, axis=-1)) if self._pairs else None,
            times=np.vectorize(self._times.__getitem__, otypes=[np.float64])(self._positions),
            num_frames=self._num_frames,
        )


class _Reduced:
    """Frames at one size: the wanted positions and what is kept of them."""

    def __init__(self, short_side: int | None, positions: NDArray[np.int64] | None) -> None:
        self._short_side = short_side
        self._size: tuple[int, int] | None = None
        self.wanted: set[int] = set(positions.ravel().tolist()) if short_side and positions is not None else set()
        self.kept: dict[int, NDArray[np.uint8]] = {}

    def add(self, position: int, rgb: NDArray[np.uint8], *, to_grey: bool = False) -> None:
        """Keep a frame, if it is wanted, at the size of the first one kept."""
        if position not in self.wanted:
            return
        assert self._short_side is not None
        # A clip may change its resolution on the way; all its frames go into one array.
        self._size = self._size or reduced_size(rgb.shape[0], rgb.shape[1], self._short_side)
        small = resize(rgb, *self._size)
        # The one way to grey, for every flow backend: others differ by more than a level, and the flow with them.
        self.kept[position] = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8) if to_grey else small


def _upright_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    """Return the frame's pixels `[H, W, 3]`, turned as its display matrix says."""
    rgb = frame.to_ndarray(format="rgb24", threads=1)
    # Phones store the picture as the sensor lies; the decoder leaves it to us to turn it.
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)), dtype=np.uint8)


def _gather(kept: Mapping[int, NDArray[np.uint8]], positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the kept frames at positions `[...]` as an array `[..., H, W(, C)]`."""
    frames = [kept[position] for position in positions.ravel().tolist()]
    return np.stack(frames).reshape(*positions.shape, *frames[0].shape)
