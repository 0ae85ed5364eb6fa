"""What the Triton kernels of Farneback flow cost: global memory moved and arithmetic done, worked out, not measured."""

from dataclasses import dataclass

from . import tables
from .backend import GAUSSIAN_WINDOW, FarnebackParameters

FLOAT = 4
"""Bytes."""
BLEND = 4
"""Operations of a * (1 - w) + b * w."""
MATRICES = 84
"""Operations a pixel: end point and weights 10, samples 35, matrix and vector 19, border 6, products 14."""
SOLVE = 18
"""Operations a pixel after the sums: scale 5, determinant and its reciprocal 5, solution 8."""


@dataclass(frozen=True)
class Cost:
    """One kernel on one level of the pyramid."""

    kernel: str
    """Its name in `kernels`."""
    level: int
    """Of the pyramid; 0 is the full size."""
    shared: bool
    """Whether one frame is meant below (a frame may belong to two pairs), not one pair."""
    launches: int
    """Launches in a batch, whatever its size."""
    read: int
    """Bytes a launch, if each element that is needed is read from memory once and all other reads are from caches."""
    written: int
    """Bytes a launch."""
    operations: int
    """Additions, subtractions, multiplications and divisions of float32 numbers a launch."""


def costs(height: int, width: int, parameters: FarnebackParameters) -> list[Cost]:
    """List every kernel on every level, the coarsest first, for uint8 frames of `height` x `width` pixels."""
    pyramid = tables.pyramid(height, width, parameters.pyr_scale, parameters.levels)
    window = tables.window(parameters.winsize, parameters.flags == GAUSSIAN_WINDOW)
    found = []
    for k in reversed(range(len(pyramid))):
        found += _image(pyramid, k)
        found += _expansion(pyramid[k], k, parameters.poly_n)
        if k + 1 < len(pyramid):
            found.append(_upsample(pyramid[k], pyramid[k + 1], k))
        found += _iteration(pyramid[k], k, len(window.taps) - 1, parameters.iterations)
    return found


def per_pair(entries: list[Cost], frames: float) -> tuple[float, float, float]:
    """Add up bytes read, bytes written and operations of a pair.

    Args:
        entries: Of `costs`, all or some.
        frames: Frames a pair: 2 for disjoint pairs, near 1 for long clips.
    """
    times = [entry.launches * (frames if entry.shared else 1) for entry in entries]
    return (
        sum(n * entry.read for n, entry in zip(times, entries, strict=True)),
        sum(n * entry.written for n, entry in zip(times, entries, strict=True)),
        sum(n * entry.operations for n, entry in zip(times, entries, strict=True)),
    )


def _image(pyramid: tuple[tables.Level, ...], k: int) -> list[Cost]:
    full, level = pyramid[0].height * pyramid[0].width, pyramid[k]
    pixels, radius = level.height * level.width, len(level.blur) - 1
    if k == 0:
        return [Cost("blur", k, True, 1, full, FLOAT * full, full * (2 * radius + 2) * _weighted(radius))]
    rows = 2 * pyramid[0].height * level.width
    return [
        Cost("blur_rows", k, True, 1, full, FLOAT * rows, rows * _weighted(radius)),
        Cost("blur_columns", k, True, 1, FLOAT * rows, FLOAT * pixels, pixels * (4 * _weighted(radius) + 3 * BLEND)),
    ]


def _expansion(level: tables.Level, k: int, n: int) -> list[Cost]:
    pixels = level.height * level.width
    plane = FLOAT * pixels
    return [
        Cost("expand_columns", k, True, 1, plane, 3 * plane, pixels * (2 + 8 * n)),
        Cost("expand_rows", k, True, 1, 3 * plane, 5 * plane, pixels * (12 + 17 * n)),
    ]


def _upsample(level: tables.Level, coarser: tables.Level, k: int) -> Cost:
    values = 2 * level.height * level.width
    read = 2 * coarser.height * coarser.width
    return Cost("upsample", k, False, 1, FLOAT * read, FLOAT * values, values * (3 * BLEND + 1))


def _iteration(level: tables.Level, k: int, radius: int, iterations: int) -> list[Cost]:
    pixels = level.height * level.width
    plane, sums = FLOAT * pixels, 5 * _weighted(radius)
    return [
        Cost("matrices", k, False, iterations, (5 + 5 + 2) * plane, 5 * plane, pixels * MATRICES),
        Cost("vertical_sum", k, False, iterations, 5 * plane, 5 * plane, pixels * sums),
        Cost("horizontal_sum_and_solve", k, False, iterations, 5 * plane, 2 * plane, pixels * (sums + SOLVE)),
    ]


def _weighted(radius: int) -> int:
    """Operations of a symmetric weighted sum: the centre, and for each further pair a sum, a product and a sum."""
    return 1 + 3 * radius
