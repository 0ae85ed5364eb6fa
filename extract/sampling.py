"""Which frames of a clip are looked at."""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..cache.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How many frames of a clip are taken, and where."""

    frames: int = 8
    """Frames of each view (T)."""
    views: int = 1
    """Selections of each clip (V): the first takes the segments' centres, each further one random frames."""
    seed: int = 0
    """Seed of the random views."""

    def __post_init__(self) -> None:
        """Refuse counts below one and a negative seed."""
        for name, least in (("frames", 1), ("views", 1), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"{name} is {value}; frame sampling; it must be at least {least}")


def frame_positions(num_frames: int, sampling: Sampling, clip_id: str) -> NDArray[np.int64]:
    """Choose the frames of every view of a clip.

    The clip is cut into T equal segments. View 0 takes the frame at the centre of each, `floor((i + 0.5) * n / T)`;
    each further view takes one at random inside each segment. In a clip shorter than T, positions repeat.

    Args:
        num_frames: Frames of the clip (n), at least 1.
        sampling: Frames and views wanted.
        clip_id: The clip's identity; with the seed and the view it fixes the random positions, so that they depend
            neither on other clips nor on the order of the work.

    Returns:
        Positions `[V, T]`, ascending in each view, in `[0, num_frames)`.
    """
    assert num_frames >= 1
    segments = np.arange(sampling.frames, dtype=np.int64)
    # In whole numbers, since (i + 0.5) * n / T in floating point can fall just below the integer it stands for.
    views = [(2 * segments + 1) * num_frames // (2 * sampling.frames)]
    for view in range(1, sampling.views):
        offsets = _generator(sampling.seed, view, clip_id).random(sampling.frames)
        inside = np.floor((segments + offsets) * num_frames / sampling.frames).astype(np.int64)
        views.append(np.minimum(inside, num_frames - 1))
    return np.stack(views)


def successors(positions: NDArray[np.int64], num_frames: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the two frames between which the motion at each position is measured.

    Args:
        positions: Frame positions, any shape.
        num_frames: Frames of the clip, at least 2.

    Returns:
        First and second frames, each shaped as `positions`; the second is always the first plus one.
    """
    assert num_frames >= 2
    # The last frame has no successor: it takes its predecessor, as the pair (n-2, n-1) and not (n-1, n-2), because the
    # latter would turn the sign of the motion.
    first = np.minimum(positions, num_frames - 2)
    return first, first + 1


def _generator(seed: int, view: int, clip_id: str) -> np.random.Generator:
    """Return the generator of one view of one clip."""
    # surrogatepass: file names that are not UTF-8 reach Python as lone surrogates.
    digest = hashlib.sha256(clip_id.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng([seed, view, int.from_bytes(digest[:8], "big")])
