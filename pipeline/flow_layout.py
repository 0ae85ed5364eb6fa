"""Pictures of frames and their flow: one beside the other, or a sheet of several."""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from ..extract.flow.wheel import colour, legend

_WHITE = 255
_MARGIN = 8
_SHEET_ASPECT = 1.5
_LEAST_SIDE_WITH_TEXT = 128
_LINE = (215, 215, 215)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def beside(frame: NDArray[np.uint8], flow: NDArray[np.float32], full_pixels: float) -> NDArray[np.uint8]:
    """Put a frame and its flow side by side, with the colour wheel in the flow's upper right corner.

    Args:
        frame: RGB `[H, W, 3]`.
        flow: `[H, W, 2]`, pixels per frame.
        full_pixels: Displacement of the full colour.

    Returns:
        RGB `[H', 2 W, 3]`, with a white last row if H is odd: video codecs want even sizes.
    """
    height, width = frame.shape[:2]
    picture = np.full((height + height % 2, 2 * width, 3), _WHITE, np.uint8)
    picture[:height, :width] = frame
    picture[:height, width:] = colour(flow, full_pixels)
    side = max(20, min(height, width) // 5)
    _stamp_wheel(picture, _MARGIN, 2 * width - side - _MARGIN, side)
    if min(height, width) >= _LEAST_SIDE_WITH_TEXT:
        _write_maximum(picture, side, full_pixels)
    return picture


def sheet(
    frames: NDArray[np.uint8], flows: NDArray[np.float32], seconds: NDArray[np.float64], full_pixels: float
) -> NDArray[np.uint8]:
    """Put frames over their flow, in rows that fill a page, with times above and the colour wheel below.

    Args:
        frames: RGB `[N, H, W, 3]`.
        flows: `[N, H, W, 2]`, pixels per frame.
        seconds: Times `[N]` at which the frames are shown.
        full_pixels: Displacement of the full colour.

    Returns:
        RGB `[H', W', 3]`.
    """
    height, width = frames.shape[1:3]
    scale = max(0.4, height / 550)
    title = _text_size("0", scale)[1] + 2 * _MARGIN
    cell_height, cell_width = title + 2 * height, width + _MARGIN
    rows, columns = _grid(len(frames), cell_height, cell_width)
    side, lines = max(40, height // 4), _legend_lines(full_pixels)
    legend_width = side + 4 * _MARGIN + max(_text_size(line, scale)[0] for line in lines)
    size = (rows * cell_height + side + 3 * _MARGIN, max(columns * cell_width + _MARGIN, legend_width), 3)
    picture = np.full(size, _WHITE, np.uint8)
    for number, (frame, flow, time) in enumerate(zip(frames, flows, seconds, strict=True)):
        top, left = number // columns * cell_height, number % columns * cell_width + _MARGIN
        _write(picture, f"{time:.2f} s", left, top + title - _MARGIN, scale)
        picture[top + title : top + title + height, left : left + width] = frame
        picture[top + title + height : top + cell_height, left : left + width] = colour(flow, full_pixels)
        corners = (left, top + title + height), (left + width - 1, top + cell_height - 1)
        cv2.rectangle(picture, *corners, _LINE, 1)  # where nothing moves at its edge, a field is as white as the page
    _write_legend(picture, rows * cell_height + 2 * _MARGIN, side, lines, scale)
    return picture


def _write_maximum(picture: NDArray[np.uint8], side: int, full_pixels: float) -> None:
    """Write below the wheel in the corner which displacement has the full colour."""
    text, scale = f"{full_pixels:.1f} px", max(0.4, side / 110)
    width, height = _text_size(text, scale)
    left = picture.shape[1] - max(side, width) - _MARGIN + max(0, side - width) // 2
    _write(picture, text, left, side + height + _MARGIN + 4, scale)


def _grid(count: int, cell_height: int, cell_width: int) -> tuple[int, int]:
    """Return rows and columns of a page of about 3 : 2, without an empty row."""
    columns = round(math.sqrt(_SHEET_ASPECT * count * cell_height / cell_width))
    rows = math.ceil(count / min(max(columns, 1), count))
    return rows, math.ceil(count / rows)


def _legend_lines(full_pixels: float) -> tuple[str, ...]:
    return ("colour: direction of motion", f"full colour: {full_pixels:.1f} px a frame", "white: still, dark: faster")


def _write_legend(picture: NDArray[np.uint8], top: int, side: int, lines: tuple[str, ...], scale: float) -> None:
    """Draw the wheel at the left and say what its colours mean."""
    _stamp_wheel(picture, top, _MARGIN, side)
    step = (side - 2 * _MARGIN) // 2
    for number, line in enumerate(lines):
        _write(picture, line, side + 3 * _MARGIN, top + _MARGIN + 4 + number * step, scale)


def _stamp_wheel(picture: NDArray[np.uint8], top: int, left: int, side: int) -> None:
    """Draw the wheel and a thin line around it."""
    wheel, inside = legend(side)
    picture[top : top + side, left : left + side][inside] = wheel[inside]
    centre = (left + side // 2, top + side // 2)
    cv2.circle(picture, centre, side // 2, (90, 90, 90), 1, cv2.LINE_AA)


def _write(picture: NDArray[np.uint8], text: str, left: int, baseline: int, scale: float) -> None:
    """Write dark text with a light border, which can be read on any colour."""
    for grey, thickness in ((255, 3), (30, 1)):
        cv2.putText(picture, text, (left, baseline), _FONT, scale, (grey, grey, grey), thickness, cv2.LINE_AA)


def _text_size(text: str, scale: float) -> tuple[int, int]:
    """Return width and height of a text in pixels."""
    (width, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    return width, height
