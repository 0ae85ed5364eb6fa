"""Flow as people look at it: the colour says where to, its strength how far.

The colour wheel of Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011, which most papers
use. It starts with red for motion to the right and turns clockwise: yellow is down, blue is up.
"""

import numpy as np
from numpy.typing import NDArray

_SEGMENTS = (("R", "Y", 15), ("Y", "G", 6), ("G", "C", 4), ("C", "B", 11), ("B", "M", 13), ("M", "R", 6))
"""From one pure colour to the next (red, yellow, green, cyan, blue, magenta), in so many steps."""
_TOO_FAST = 0.75
"""Colours beyond the maximum are darkened by this factor."""


def colour_wheel() -> NDArray[np.float64]:
    """Return the wheel's 55 colours `[55, 3]`, RGB on the scale 0..255."""
    corners = {"R": (1, 0, 0), "Y": (1, 1, 0), "G": (0, 1, 0), "C": (0, 1, 1), "B": (0, 0, 1), "M": (1, 0, 1)}
    segments = []
    for first, last, steps in _SEGMENTS:
        start, end = np.array(corners[first]), np.array(corners[last])
        # One channel changes, in whole levels: what rises is rounded down, what falls is rounded up.
        level = np.floor(255 * np.arange(steps) / steps)[:, None]
        segments.append(255 * start + (end - start) * level)
    return np.concatenate(segments).astype(np.float64)


def colour(flow: NDArray[np.floating], max_pixels: float) -> NDArray[np.uint8]:
    """Colour flow: white where nothing moves, the full colour where it moves by the maximum, darker beyond.

    Args:
        flow: `[..., H, W, 2]`, finite, pixels to the right and down.
        max_pixels: Displacement of the full colour, above 0.

    Returns:
        RGB `[..., H, W, 3]`.
    """
    u, v = np.moveaxis(flow.astype(np.float64) / max_pixels, -1, 0)
    radius = np.hypot(u, v)[..., None]
    wheel = colour_wheel() / 255
    position = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    below = position.astype(np.int64)
    share = (position - below)[..., None]
    full = (1 - share) * wheel[below] + share * wheel[(below + 1) % len(wheel)]
    shaded = np.where(radius <= 1, 1 - radius * (1 - full), _TOO_FAST * full)
    colours: NDArray[np.uint8] = np.floor(255 * shaded).astype(np.uint8)
    return colours


def legend(side: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw the wheel itself: each point has the colour of the motion from the centre to it.

    Args:
        side: Height and width in pixels.

    Returns:
        RGB `[side, side, 3]`, and which points `[side, side]` lie in the disc.
    """
    axis = (np.arange(side) - (side - 1) / 2) / (side / 2)
    points = np.stack(np.meshgrid(axis, axis), axis=-1)
    return colour(points, 1.0), np.hypot(points[..., 0], points[..., 1]) <= 1
