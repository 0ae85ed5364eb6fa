"""Resizing of decoded frames, and their cut to the square a network takes."""

from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value", np.uint8, np.float32)

LONGEST_ASPECT = 4
"""A frame's long side is at most this many times its short side after resizing; longer ones are squeezed."""


def reduced_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return height and width with the given short side and the aspect kept.

    A strip of 10,000 x 2 pixels would grow to millions of columns, so the long side is limited (`LONGEST_ASPECT`).
    """
    long_side = round(short_side * max(height, width) / min(height, width))
    long_side = min(long_side, LONGEST_ASPECT * short_side)
    return (short_side, long_side) if height <= width else (long_side, short_side)


def resize(image: NDArray[Value], height: int, width: int) -> NDArray[Value]:
    """Resize an image `[H, W]` or `[H, W, C]`: by area where it shrinks, bilinearly where it grows."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height <= image.shape[0] and width <= image.shape[1]
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: NDArray[Any] = cv2.resize(image, (width, height), interpolation=interpolation)
    return resized


def fit(
    images: NDArray[Value], size: int, how: Literal["crop", "squash"], short_side: int | None = None
) -> NDArray[Value]:
    """Make images square.

    Args:
        images: `[..., H, W, C]`; values of a flow field are kept as they are, in pixels of the frames it came from.
        size: Side of the square in pixels.
        how: "crop" takes a square from the centre, "squash" the whole frame, its aspect lost; both are then resized.
        short_side: The square's side is to the frame's short side as `size` is to this; None takes the largest square.

    Returns:
        `[..., size, size, C]`.
    """
    if how == "crop":
        height, width = images.shape[-3:-1]
        side = min(height, width) * size // (short_side or size)
        top, left = (height - side) // 2, (width - side) // 2
        images = images[..., top : top + side, left : left + side, :]
    if images.shape[-3:-1] == (size, size):
        return images
    flat = images.reshape(-1, *images.shape[-3:])
    # cv2 drops a channel axis of length one.
    squares = [resize(image, size, size).reshape(size, size, -1) for image in flat]
    return np.stack(squares).reshape(*images.shape[:-3], size, size, images.shape[-1])
