"""Flow as an image, for networks trained on images."""

import numpy as np
from numpy.typing import NDArray

SCALE = 255 / 40
"""Grey levels per pixel of displacement: +-20 pixels fill the 8 bits."""


def render(flow: NDArray[np.float32], scale: float = SCALE) -> NDArray[np.uint8]:
    """Render flow as an image with channels u, v and magnitude, each `round(128 + value * scale)` within 0..255.

    Zero is an integer (128) on this map. With the older `(value + 20) * 255 / 40`, zero flow lies on a rounding tie,
    and noise in the last bit flips the level of every still pixel.

    Args:
        flow: `[..., H, W, 2]`, pixels per frame step.
        scale: Grey levels per pixel of displacement.

    Returns:
        `[..., H, W, 3]`; ties are rounded to even.
    """
    magnitude = np.hypot(flow[..., 0], flow[..., 1])
    values = np.concatenate([flow, magnitude[..., None]], axis=-1)
    levels = np.rint(128.0 + values.astype(np.float64) * scale)
    return np.clip(levels, 0, 255).astype(np.uint8)
