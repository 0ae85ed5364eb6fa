"""The stages of Farneback flow as launches of the Triton kernels: one kernel a stage, two where each axis has a pass.

The functions have the contracts of those of the same names in `stages`, and give the same bits. Tensors must be
contiguous, except the flow and the indices that `matrices` takes.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from . import kernels, tables
from .stages import Grid, Stages

COMPILATION = {"enable_fp_fusion": False, "num_warps": 16, "num_stages": 1}
"""How kernels are compiled: each multiplication and addition rounded by itself, as the eager version does; 16 warps of
32 threads a tile, or 2 pixels a thread (with 4, some kernels fill the registers)."""


def level_image(frames: Tensor, blur: tables.Taps, grid: Grid | None) -> Tensor:
    """Blur full-size frames and resize them to a level; see `stages.level_image`."""
    count, height, width = frames.shape
    taps, radius = _on_device(blur, frames.device), len(blur) - 1
    if grid is None:
        out = frames.new_empty(frames.shape, dtype=torch.float32)
        _launch(kernels.blur, count, height, width, frames, taps, out, height, width, radius=radius)
        return out
    small = len(grid.top), len(grid.left)
    rows = frames.new_empty((count, height, 2, small[1]), dtype=torch.float32)
    at = grid.left, grid.right
    _launch(kernels.blur_rows, count, height, small[1], frames, *at, taps, rows, height, width, small[1], radius=radius)
    out = frames.new_empty((count, *small), dtype=torch.float32)
    at = grid.top, grid.bottom
    weights = grid.row_weight, grid.column_weight
    _launch(kernels.blur_columns, count, *small, rows, *at, *weights, taps, out, height, *small, radius=radius)
    return out


def expand(image: Tensor, constants: tables.Expansion) -> Tensor:
    """Fit a quadratic polynomial to the neighbourhood of each pixel; see `stages.expand`."""
    c, (count, height, width) = constants, image.shape
    weights = [_on_device(taps, image.device) for taps in (c.g, c.xg, c.xxg)]
    inverse = c.ig11, c.ig03, c.ig33, c.ig55
    size, radius = (height, width), len(c.g) - 1
    columns = image.new_empty((count, 3, *size))
    _launch(kernels.expand_columns, count, *size, image, *weights, columns, *size, radius=radius)
    out = image.new_empty((count, 5, *size))
    _launch(kernels.expand_rows, count, *size, columns, *weights, *inverse, out, *size, radius=radius)
    return out


def upsample(flow: Tensor, grid: Grid, gain: float) -> Tensor:
    """Resize and lengthen the flow of a coarser level; see `stages.upsample`."""
    size = len(grid.top), len(grid.left)
    out = flow.new_empty((len(flow), 2, *size))
    rows = grid.top, grid.bottom, grid.row_weight
    columns = grid.left, grid.right, grid.column_weight
    _launch(kernels.upsample, 2 * len(flow), *size, flow, *rows, *columns, gain, out, *flow.shape[2:], *size)
    return out


def matrices(expansions: Tensor, first: Tensor, flow: Tensor, border_rows: Tensor, border_columns: Tensor) -> Tensor:
    """Form each pixel's constraints on the displacement; see `stages.matrices`."""
    size = flow.shape[2:]
    out = flow.new_empty((len(flow), 5, *size))
    at = first.contiguous(), flow.contiguous()
    _launch(kernels.matrices, len(flow), *size, expansions, *at, border_rows, border_columns, out, *size)
    return out


def vertical_sum(constraints: Tensor, window: tables.Window) -> Tensor:
    """Sum the constraints over the window's rows; see `stages.vertical_sum`."""
    size, taps = constraints.shape[2:], _on_device(window.taps, constraints.device)
    out = torch.empty_like(constraints)
    _launch(kernels.vertical_sum, len(out), *size, constraints, taps, out, *size, radius=len(taps) - 1)
    return out


def horizontal_sum_and_solve(sums: Tensor, window: tables.Window) -> Tensor:
    """Sum over the window's columns, then solve each pixel's system; see `stages.horizontal_sum_and_solve`."""
    size, taps = sums.shape[2:], _on_device(window.taps, sums.device)
    out = sums.new_empty((len(sums), 2, *size))
    numbers = window.scale, tables.REGULARISATION
    _launch(
        kernels.horizontal_sum_and_solve, len(out), *size, sums, taps, *numbers, out, *size, radius=len(taps) - 1
    )  # fmt: skip
    return out


TRITON = Stages(level_image, expand, upsample, matrices, vertical_sum, horizontal_sum_and_solve)
"""All stages by Triton kernels."""


@functools.lru_cache(maxsize=256)
def _on_device(taps: tables.Taps, device: torch.device) -> Tensor:
    return torch.tensor(taps, dtype=torch.float32, device=device)


def _launch(kernel: Any, images: int, height: int, width: int, *arguments: Tensor | float, **constants: int) -> None:
    """Run a kernel on all tiles of `images` images of `height` x `width` pixels."""
    tile = kernels.TILE.value
    programs = images * -(-height // tile) * -(-width // tile)
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    assert all(tensor.is_contiguous() for tensor in tensors)
    with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
        kernel[(programs,)](*arguments, **constants, **COMPILATION)
