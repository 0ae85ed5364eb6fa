"""The stages of Farneback's method as pure functions of tensors: float32, and the same bits on every device.

Each value is made of single additions, subtractions, multiplications, one reciprocal, floors and gathers, in the order
written here. Nothing whose order or rounding a library chooses is used: no fused multiply-add (`addcmul`, `lerp`,
`add(alpha=)`), no convolution, no running sums, no interpolation. Formulas and order follow OpenCV's optflowgf.cpp.

Letters in shapes: F frames, N pairs of successive frames, H x W the full size, h x w the size of a level.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from . import tables


@dataclass(frozen=True)
class Grid:
    """A bilinear resize of both axes, on a device; `tables.Bilinear` says what the members mean."""

    top: Tensor
    """int64 `[h]`."""
    bottom: Tensor
    """int64 `[h]`."""
    row_weight: Tensor
    """float32 `[h, 1]`, weight of `bottom`."""
    left: Tensor
    """int64 `[w]`."""
    right: Tensor
    """int64 `[w]`."""
    column_weight: Tensor
    """float32 `[w]`, weight of `right`."""


def level_image(frames: Tensor, blur: tables.Taps, grid: Grid | None) -> Tensor:
    """Blur full-size frames (along the rows first; borders reflected) and resize them to a level.

    Args:
        frames: uint8 or float32 `[F, H, W]`, grey levels from 0 to 255.
        blur: Taps 0 to r.
        grid: The resize, or None for the full size, which is blurred only.

    Returns:
        float32 `[F, h, w]`.
    """
    return blur_columns(blur_rows(frames, blur, grid), blur, grid)


def blur_rows(frames: Tensor, blur: tables.Taps, grid: Grid | None) -> Tensor:
    """Blur along x: `[F, H, W]`, or with a grid only where it reads, its left columns before its right ones."""
    image, radius = frames.float(), len(blur) - 1
    if grid is None:
        return _symmetric_sums(_shifts(image, 2, radius, "reflect"), blur)[0]
    # Transposed, because a gather of whole rows is fast.
    shifted, at = _shifts(image.mT.contiguous(), 1, radius, "reflect"), torch.cat([grid.left, grid.right])
    return _symmetric_sums(lambda k: shifted(k).index_select(1, at), blur)[0].mT.contiguous()


def blur_columns(rows: Tensor, blur: tables.Taps, grid: Grid | None) -> Tensor:
    """Blur what `blur_rows` gave along y, and interpolate if there is a grid: `[F, h, w]`."""
    shifted = _shifts(rows, 1, len(blur) - 1, "reflect")
    if grid is None:
        return _symmetric_sums(shifted, blur)[0]
    at = torch.cat([grid.top, grid.bottom])
    left, right = _symmetric_sums(lambda k: shifted(k).index_select(1, at), blur)[0].chunk(2, dim=2)
    return _bilinear(left, right, grid)


def _shifts(planes: Tensor, axis: int, radius: int, border: str = "replicate") -> Callable[[int], Tensor]:
    """Give the function k -> view of `planes` shifted by k <= radius along one of the last two axes."""
    size = planes.shape[axis]
    padding = (radius, radius, 0, 0) if axis == planes.ndim - 1 else (0, 0, radius, radius)
    padded = functional.pad(planes, padding, mode=border)
    return lambda k: padded.narrow(axis, radius + k, size)


def _symmetric_sums(shifted: Callable[[int], Tensor], *kernels: tables.Taps) -> list[Tensor]:
    """Weigh and add from the centre outwards: `taps[0] * s(0) + taps[1] * (s(-1) + s(1)) + ...` for each kernel."""
    totals = [shifted(0) * taps[0] for taps in kernels]
    for k in range(1, len(kernels[0])):
        pair = shifted(-k) + shifted(k)
        for total, taps in zip(totals, kernels, strict=True):
            total += pair if taps[k] == 1.0 else pair * taps[k]
    return totals


def _antisymmetric_sum(shifted: Callable[[int], Tensor], taps: tables.Taps) -> Tensor:
    """Weigh and add from the centre outwards: `taps[1] * (s(1) - s(-1)) + taps[2] * (s(2) - s(-2)) + ...`."""
    total = (shifted(1) - shifted(-1)) * taps[1]
    for k in range(2, len(taps)):
        total += (shifted(k) - shifted(-k)) * taps[k]
    return total


def _bilinear(left: Tensor, right: Tensor, grid: Grid) -> Tensor:
    """Blend samples `[..., 2h, w]` at the left and right columns, then the h rows above with the h rows below."""
    rows = left * (1.0 - grid.column_weight) + right * grid.column_weight
    top, bottom = rows.chunk(2, dim=-2)
    return top * (1.0 - grid.row_weight) + bottom * grid.row_weight


def upsample(flow: Tensor, grid: Grid, gain: float) -> Tensor:
    """Resize the flow of a coarser level, and lengthen it by the nominal ratio of the levels.

    Args:
        flow: float32 `[N, 2, h', w']`.
        grid: The resize.
        gain: Ratio of the levels' sizes.

    Returns:
        float32 `[N, 2, h, w]`.
    """
    rows = flow.index_select(2, torch.cat([grid.top, grid.bottom]))
    return _bilinear(rows.index_select(3, grid.left), rows.index_select(3, grid.right), grid) * gain


def shrink(flow: Tensor, rows: tables.Area, columns: tables.Area) -> Tensor:
    """Average a flow `[N, 2, H, W]` over areas: `[N, 2, h, w]`."""
    narrow = _area_mean(flow, columns, 3)
    return _area_mean(narrow, rows, 2)


def _area_mean(planes: Tensor, area: tables.Area, axis: int) -> Tensor:
    index = torch.from_numpy(area.index).to(planes.device)
    weight = torch.from_numpy(area.weight).to(planes.device)
    if axis == 2:
        weight = weight[..., None]
    return functools.reduce(
        torch.add, (planes.index_select(axis, index[:, j]) * weight[:, j] for j in range(index.shape[1]))
    )


def expand(image: Tensor, constants: tables.Expansion) -> Tensor:
    """Fit a quadratic polynomial to the neighbourhood of each pixel (borders replicated).

    Args:
        image: float32 `[F, h, w]`.
        constants: Weights and inverse of the Gram matrix.

    Returns:
        float32 `[F, 5, h, w]`: coefficients of y, x, y^2, x^2 and xy.
    """
    return expand_rows(expand_columns(image, constants), constants)


def expand_columns(image: Tensor, constants: tables.Expansion) -> Tensor:
    """Correlate images along y with the weights times 1, y and y^2: `[F, 3, h, w]`."""
    c, shifted = constants, _shifts(image, 1, len(constants.g) - 1)
    by_one, by_yy = _symmetric_sums(shifted, c.g, c.xxg)
    return torch.stack([by_one, _antisymmetric_sum(shifted, c.xg), by_yy], dim=1)


def expand_rows(columns: Tensor, constants: tables.Expansion) -> Tensor:
    """Correlate what `expand_columns` gave along x, and scale: see `expand`."""
    c = constants
    plain, by_y, by_yy = (_shifts(plane, 2, len(c.g) - 1) for plane in columns.unbind(1))
    one, xx = _symmetric_sums(plain, c.g, c.xxg)
    x, xy = _antisymmetric_sum(plain, c.xg), _antisymmetric_sum(by_y, c.xg)
    (y,), (yy,) = _symmetric_sums(by_y, c.g), _symmetric_sums(by_yy, c.g)
    level = one * c.ig03
    return torch.stack([y * c.ig11, x * c.ig11, level + yy * c.ig33, level + xx * c.ig33, xy * c.ig55], dim=1)


def matrices(expansions: Tensor, first: Tensor, flow: Tensor, border_rows: Tensor, border_columns: Tensor) -> Tensor:
    """Form each pixel's constraints on the displacement from both frames' polynomials, at the present flow.

    Where the flow leaves the second frame (its last row and column count as outside), the first frame stands alone.

    Args:
        expansions: float32 `[F, 5, h, w]`, see `expand`.
        first: int64 `[N]`, index of each pair's first frame; the second is the next one.
        flow: float32 `[N, 2, h, w]`.
        border_rows: float32 `[h]`, see `tables.attenuation`.
        border_columns: float32 `[w]`.

    Returns:
        float32 `[N, 5, h, w]`: g11, g12, g22, h1 and h2 of the systems G d = h; index 1 is the y axis.
    """
    y1, x1, yy1, xx1, xy1 = expansions.index_select(0, first).unbind(1)
    dx, dy = flow.unbind(1)
    inside, (y2, x2, yy2, xx2, xy2) = _at_end_points(expansions, first + 1, dx, dy)
    yy = torch.where(inside, (yy1 + yy2) * 0.5, yy1)
    xx = torch.where(inside, (xx1 + xx2) * 0.5, xx1)
    xy = torch.where(inside, (xy1 + xy2) * 0.25, xy1 * 0.5)
    y = (y1 - torch.where(inside, y2, 0.0)) * 0.5 + (yy * dy + xy * dx)
    x = (x1 - torch.where(inside, x2, 0.0)) * 0.5 + (xy * dy + xx * dx)
    border = border_columns * border_rows[:, None]
    y, x, yy, xx, xy = (value * border for value in (y, x, yy, xx, xy))
    constraints = [yy * yy + xy * xy, (yy + xx) * xy, xx * xx + xy * xy, yy * y + xy * x, xy * y + xx * x]
    return torch.stack(constraints, dim=1)


def _at_end_points(expansions: Tensor, frame: Tensor, dx: Tensor, dy: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Say which pixels' end points lie inside the frame, and sample its five coefficients there, bilinearly."""
    height, width = expansions.shape[2:]
    x = torch.arange(width, dtype=torch.float32, device=dx.device) + dx
    y = torch.arange(height, dtype=torch.float32, device=dy.device)[:, None] + dy
    left, top = x.floor(), y.floor()
    inside = (left >= 0.0) & (left < width - 1) & (top >= 0.0) & (top < height - 1)
    # A gather must stay within bounds. What it reads for the others is dropped by the caller, not multiplied by zero.
    column, row = left.long().clamp_(0, width - 2), top.long().clamp_(0, height - 2)
    index = ((frame[:, None, None] * (5 * height) + row) * width + column).flatten()
    ax, ay = x - left, y - top
    bx, by = 1.0 - ax, 1.0 - ay
    corners = [(0, bx * by), (1, ax * by), (width, bx * ay), (width + 1, ax * ay)]
    coefficients = expansions.reshape(-1)

    def read(start: int) -> Tensor:
        return coefficients[start:].index_select(0, index).view_as(dx)

    def sample(channel: int) -> Tensor:
        start = channel * height * width
        p, q, r, s = (read(start + offset).mul_(weight) for offset, weight in corners)
        return p.add_(q).add_(r).add_(s)

    return inside, [sample(channel) for channel in range(5)]


def vertical_sum(constraints: Tensor, window: tables.Window) -> Tensor:
    """Sum the constraints over the window's rows (borders replicated): `[N, 5, h, w]` -> `[N, 5, h, w]`."""
    return _symmetric_sums(_shifts(constraints, 2, len(window.taps) - 1), window.taps)[0]


def horizontal_sum_and_solve(sums: Tensor, window: tables.Window) -> Tensor:
    """Sum over the window's columns, then solve each pixel's 2 x 2 system: `[N, 5, h, w]` -> flow `[N, 2, h, w]`."""
    total = _symmetric_sums(_shifts(sums, 3, len(window.taps) - 1), window.taps)[0] * window.scale
    g11, g12, g22, h1, h2 = total.unbind(1)
    factor = (g11 * g22 - g12 * g12 + tables.REGULARISATION).reciprocal()
    return torch.stack([(g11 * h2 - g12 * h1) * factor, (g22 * h1 - g12 * h2) * factor], dim=1)


@dataclass(frozen=True)
class Stages:
    """One implementation of all stages, so that they can be replaced one by one without changing a bit."""

    level_image: Callable[[Tensor, tables.Taps, Grid | None], Tensor] = level_image
    expand: Callable[[Tensor, tables.Expansion], Tensor] = expand
    upsample: Callable[[Tensor, Grid, float], Tensor] = upsample
    matrices: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] = matrices
    vertical_sum: Callable[[Tensor, tables.Window], Tensor] = vertical_sum
    horizontal_sum_and_solve: Callable[[Tensor, tables.Window], Tensor] = horizontal_sum_and_solve


EAGER = Stages()
"""Plain torch operations; the reference."""
