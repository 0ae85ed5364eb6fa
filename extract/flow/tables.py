"""Numbers that Farneback's method needs before it sees an image: sizes, kernels, resize tables, constants.

Everything is computed in double precision on the host and rounded to float32 once, so that every device starts from the
same bits. Plain floats returned here are exact float32 values. Kernels are symmetric (or antisymmetric): only the taps
0 (the centre) to r are listed.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...cache.errors import UserError

MIN_SIDE = 32
"""No side of a pyramid level above the full size is shorter than this."""
REGULARISATION = float(np.float32(1e-3))
"""Added to the determinant of each pixel's 2 x 2 system, in squared grey levels per pixel^4."""
BORDER = (0.14, 0.14, 0.4472, 0.4472, 0.4472)
"""Weight of the constraints of the five outermost pixels on each side."""

Taps = tuple[float, ...]


@dataclass(frozen=True)
class Level:
    """One scale of the pyramid; level 0 is the full size."""

    height: int
    """Rows."""
    width: int
    """Columns."""
    scale: float
    """Nominal size relative to the full size."""
    blur: Taps
    """Gaussian taps 0 to r that the full-size image is blurred with before it is resized to this level."""


@dataclass(frozen=True)
class Bilinear:
    """Resizes one axis: output i is `source[low[i]] * (1 - weight[i]) + source[high[i]] * weight[i]`."""

    low: NDArray[np.int64]
    """`[size_out]`, index of the first source element."""
    high: NDArray[np.int64]
    """`[size_out]`, index of the second, within bounds."""
    weight: NDArray[np.float32]
    """`[size_out]`, weight of the second, 0 where the border is met."""


@dataclass(frozen=True)
class Area:
    """Shrinks one axis by averaging: output i is the sum over j of `source[index[i, j]] * weight[i, j]`."""

    index: NDArray[np.int64]
    """`[size_out, most elements that one output covers]`, in ascending order; the last one is repeated as filling."""
    weight: NDArray[np.float32]
    """Same shape; share of the output, 0 for the filling."""


@dataclass(frozen=True)
class Expansion:
    """Constants of the polynomial expansion with the basis 1, x, y, x^2, y^2, xy."""

    g: Taps
    """Gaussian weights at 0 to n, normalised."""
    xg: Taps
    """Weights times x (antisymmetric)."""
    xxg: Taps
    """Weights times x^2."""
    ig11: float
    """Entry (x, x) of the inverse of the weighted basis' Gram matrix."""
    ig03: float
    """Entry (1, x^2)."""
    ig33: float
    """Entry (x^2, x^2)."""
    ig55: float
    """Entry (xy, xy)."""


@dataclass(frozen=True)
class Window:
    """Window that each pixel's constraints are summed over, applied vertically and then horizontally."""

    taps: Taps
    """Weights at 0 to winsize // 2; all 1 in a box window."""
    scale: float
    """Factor of the finished sums: 1 / winsize^2 for a box, 1 for a Gaussian."""


def pyramid(height: int, width: int, pyr_scale: float, levels: int) -> tuple[Level, ...]:
    """List the pyramid's levels, the full size first: at most `levels` + 1, and none with a side under 32 pixels."""
    found = [_level(height, width, 1.0)]
    scale = pyr_scale
    while len(found) <= levels and min(height * scale, width * scale) >= MIN_SIDE:
        found.append(_level(height, width, scale))
        scale *= pyr_scale
    return tuple(found)


def _level(height: int, width: int, scale: float) -> Level:
    # Python's round() takes halves to even, which OpenCV's cvRound does too.
    return Level(round(height * scale), round(width * scale), scale, blur_taps(scale))


def blur_taps(scale: float) -> Taps:
    """Give the taps 0 to r of the Gaussian that goes before a resize by `scale`."""
    sigma = (1.0 / scale - 1.0) * 0.5
    size = max(round(5.0 * sigma) | 1, 3)
    if sigma <= 0.0:
        return (0.5, 0.25)  # OpenCV's fixed kernel of three taps
    distance = np.arange(-(size // 2), size // 2 + 1)
    kernel = np.exp(-(distance**2) / (2.0 * sigma * sigma))
    return _float32(kernel[size // 2 :] / kernel.sum())


def bilinear(size_in: int, size_out: int) -> Bilinear:
    """Tabulate a bilinear resize of one axis: half-pixel centres, two taps at any ratio, clamped at the border."""
    step = 1.0 / (size_out / size_in)
    source = ((np.arange(size_out) + 0.5) * step - 0.5).astype(np.float32)
    low = np.floor(source)
    weight = source - low
    index = low.astype(np.int64)
    weight[(index < 0) | (index >= size_in - 1)] = 0.0
    return Bilinear(index.clip(0, size_in - 1), (index + 1).clip(0, size_in - 1), weight)


def area(size_in: int, size_out: int) -> Area:
    """Tabulate a shrinking of one axis in which each output is the mean of the interval it covers."""
    step = 1.0 / (size_out / size_in)
    cells = [_cells(i * step, min((i + 1) * step, size_in)) for i in range(size_out)]
    most = max(map(len, cells))
    index = np.array([list(c) + [max(c)] * (most - len(c)) for c in cells], dtype=np.int64)
    weight = np.array([list(c.values()) + [0.0] * (most - len(c)) for c in cells])
    return Area(index, weight.astype(np.float32))


def _cells(start: float, stop: float) -> dict[int, float]:
    """Share of each source element in the interval from `start` to `stop`."""
    sliver = 1e-3  # OpenCV's: less of an element than this is rounding, not coverage
    overlap = {j: min(j + 1, stop) - max(j, start) for j in range(math.floor(start), math.ceil(stop))}
    return {j: length / (stop - start) for j, length in overlap.items() if length > sliver}


def expansion(n: int, sigma: float) -> Expansion:
    """Give the constants of the polynomial expansion over (2n + 1)^2 pixels.

    Source: Farneback, "Two-Frame Motion Estimation Based on Polynomial Expansion", SCIA 2003, section 2. Only four
    numbers of the Gram matrix differ; the closed form below inverts its block of 1, x^2 and y^2.

    Raises:
        UserError: When `sigma` is so small that only the centre pixel has weight.
    """
    if sigma < np.finfo(np.float32).eps:
        sigma = n * 0.3
    x = np.arange(-n, n + 1)
    g = np.exp(-(x**2) / (2.0 * sigma * sigma)).astype(np.float32)
    g = (g * (1.0 / g.sum(dtype=np.float64))).astype(np.float32)
    weight = np.outer(g, g).astype(np.float64)
    one, xx, xxxx, xxyy = (float((weight * factor).sum()) for factor in (1, x**2, x**4, np.outer(x**2, x**2)))
    if xxyy == 0.0:
        raise UserError(f"poly_sigma is {sigma}; Farneback flow; it must be larger for the neighbours to have weight")
    even = one * (xxxx + xxyy) - 2.0 * xx * xx
    ig = (1.0 / xx, -xx / even, 0.5 * (1.0 / (xxxx - xxyy) + one / even), 1.0 / xxyy)
    right, half = np.arange(n + 1), g[n:].astype(np.float64)
    return Expansion(_float32(half), _float32(right * half), _float32(right**2 * half), *_float32(np.array(ig)))


def window(winsize: int, gaussian: bool) -> Window:
    """Give the averaging window: radius winsize // 2, so an even `winsize` covers one pixel more than it says.

    The sums of a box are divided by winsize^2 all the same, as in OpenCV.
    """
    radius = winsize // 2
    if not gaussian:
        return Window((1.0,) * (radius + 1), float(np.float32(1.0 / winsize**2)))
    sigma = radius * 0.3
    taps = np.exp(-(np.arange(radius + 1) ** 2) / (2.0 * sigma * sigma)).astype(np.float32).astype(np.float64)
    return Window(_float32(taps / (2.0 * taps.sum() - taps[0])), 1.0)


def gain(pyr_scale: float) -> float:
    """Give the factor of a flow that is brought to the next finer level: the nominal ratio of the sizes."""
    return float(np.float32(1.0 / pyr_scale))


def attenuation(size: int) -> NDArray[np.float32]:
    """Give the border weights `[size]` of one axis; a pixel's weight is the product over both axes."""
    side = np.ones(size, dtype=np.float32)
    side[: len(BORDER)] = BORDER[:size]
    return side * side[::-1]


def _float32(values: NDArray[np.float64]) -> Taps:
    return tuple(values.astype(np.float32).tolist())
