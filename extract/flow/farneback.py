"""Farneback's dense flow between frames as OpenCV computes it on the CPU, batched, on any device.

The definition is float32 throughout, with every operation in a fixed order (`stages`, `tables`): a clip's flow has the
same bits on every device, in every batch, and in every implementation of the stages.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...cache.errors import UserError
from . import tables
from .backend import GAUSSIAN_WINDOW, FarnebackParameters
from .stages import EAGER, Grid, Stages, shrink

PIXELS_AT_ONCE = {"cpu": 2**18}
"""Pixels of the pairs that are worked on together, by kind of device: on a CPU as many as its caches hold."""
PIXELS_AT_ONCE_ELSEWHERE = 2**24
"""The same on every other kind: enough to occupy it; takes about 4 GB."""

DEFAULTS = FarnebackParameters()


def flow_of_frames(
    frames: Tensor,
    parameters: FarnebackParameters = DEFAULTS,
    initial: Tensor | None = None,
    stages: Stages = EAGER,
) -> Tensor:
    """Compute the flow from each frame of a clip to the next one.

    Source: Farneback, "Two-Frame Motion Estimation Based on Polynomial Expansion", SCIA 2003, as implemented in OpenCV.
    A frame's pyramid and polynomials are computed once for the two pairs that it belongs to.

    Args:
        frames: Grey frames `[B, T, H, W]`, uint8 or float32, in levels from 0 to 255 (the method is not
            invariant to the scale of grey levels); no side under 2 pixels.
        parameters: Of the method.
        initial: Flow float32 `[B, T - 1, H, W, 2]` to start from, in pixels; zero if not given.
        stages: The implementation.

    Returns:
        float32 `[B, T - 1, H, W, 2]`: x and y displacement in pixels. What lies at (x, y) in a frame lies at
        (x + u, y + v) in the next.

    Raises:
        UserError: When a side has fewer than 2 pixels.
        TypeError: When the frames are neither uint8 nor float32.
    """
    batch, length, height, width = frames.shape
    if min(height, width) < 2:
        raise UserError(f"frames have {height} x {width} pixels; Farneback flow; each side needs 2")
    if frames.dtype not in (torch.uint8, torch.float32):
        raise TypeError(f"{frames.dtype = }, expected uint8 or float32")
    plan = _plan(height, width, parameters, frames.device)
    flow = torch.empty((batch, max(length - 1, 0), height, width, 2), dtype=torch.float32, device=frames.device)
    capacity = PIXELS_AT_ONCE.get(frames.device.type, PIXELS_AT_ONCE_ELSEWHERE) // (height * width)
    for clips, pairs in _chunks(batch, length - 1, max(capacity, 1)):
        start = None if initial is None else initial[clips, pairs].flatten(0, 1).movedim(-1, 1)
        planes = _flow(frames[clips, pairs.start : pairs.stop + 1], plan, start, stages)
        flow[clips, pairs] = planes.movedim(1, -1).view_as(flow[clips, pairs])
    return flow


def flow_of_pairs(
    pairs: Tensor,
    parameters: FarnebackParameters = DEFAULTS,
    initial: Tensor | None = None,
    stages: Stages = EAGER,
) -> Tensor:
    """Compute the flow of disjoint pairs of frames.

    Args:
        pairs: Grey frames `[B, T, 2, H, W]`; otherwise as `flow_of_frames`, also below.
        parameters: Of the method.
        initial: Flow `[B, T, H, W, 2]` to start from.
        stages: The implementation.

    Returns:
        float32 `[B, T, H, W, 2]`.
    """
    batch, length, _, height, width = pairs.shape
    start = None if initial is None else initial.flatten(0, 1)[:, None]
    flow = flow_of_frames(pairs.flatten(0, 1), parameters, start, stages)
    return flow.view(batch, length, height, width, 2)


@dataclass(frozen=True)
class _Level:
    """What one level of the pyramid needs, on the device."""

    size: tables.Level
    """Height, width, scale and blur."""
    image_grid: Grid | None
    """Resize from the full size; None on level 0."""
    flow_grid: Grid | None
    """Resize from the next coarser level; None on the coarsest."""
    border_rows: Tensor
    """Weights `[h]` of the constraints."""
    border_columns: Tensor
    """Weights `[w]`."""


@dataclass(frozen=True)
class _Plan:
    """All that depends on the size of the frames and the parameters, not on the images."""

    levels: tuple[_Level, ...]
    """The coarsest first."""
    expansion: tables.Expansion
    """Constants of the polynomial expansion."""
    window: tables.Window
    """Of the sums of constraints."""
    iterations: int
    """On each level."""
    gain: float
    """Ratio of a level's size to that of the next coarser one."""


@functools.lru_cache(maxsize=32)
def _plan(height: int, width: int, parameters: FarnebackParameters, device: torch.device) -> _Plan:
    pyramid = tables.pyramid(height, width, parameters.pyr_scale, parameters.levels)
    return _Plan(
        levels=tuple(_level(pyramid, k, device) for k in reversed(range(len(pyramid)))),
        expansion=tables.expansion(parameters.poly_n, parameters.poly_sigma),
        window=tables.window(parameters.winsize, parameters.flags == GAUSSIAN_WINDOW),
        iterations=parameters.iterations,
        gain=tables.gain(parameters.pyr_scale),
    )


def _level(pyramid: tuple[tables.Level, ...], k: int, device: torch.device) -> _Level:
    level = pyramid[k]
    return _Level(
        size=level,
        image_grid=_grid(pyramid[0], level, device) if k > 0 else None,
        flow_grid=_grid(pyramid[k + 1], level, device) if k + 1 < len(pyramid) else None,
        border_rows=torch.from_numpy(tables.attenuation(level.height)).to(device),
        border_columns=torch.from_numpy(tables.attenuation(level.width)).to(device),
    )


def _grid(source: tables.Level, target: tables.Level, device: torch.device) -> Grid:
    rows = tables.bilinear(source.height, target.height)
    columns = tables.bilinear(source.width, target.width)
    parts = rows.low, rows.high, rows.weight[:, None], columns.low, columns.high, columns.weight
    return Grid(*(torch.from_numpy(part).to(device) for part in parts))


def _chunks(batch: int, length: int, capacity: int) -> Iterator[tuple[slice, slice]]:
    """Divide `batch` clips of `length` pairs into blocks of at most `capacity` pairs; the last ones may overhang."""
    clips = max(capacity // max(length, 1), 1)
    for clip in range(0, batch, clips):
        for pair in range(0, length, capacity):
            yield slice(clip, clip + clips), slice(pair, pair + capacity)


def _flow(clips: Tensor, plan: _Plan, initial: Tensor | None, stages: Stages) -> Tensor:
    """Compute the flow `[N, 2, H, W]` of the successive frames of clips `[B, T, H, W]`, the coarsest level first."""
    batch, length = clips.shape[:2]
    pair = torch.arange(batch * (length - 1), device=clips.device)
    first, frames = pair + pair // (length - 1), clips.flatten(0, 1).contiguous()
    flow = _start(plan.levels[0], initial, len(first), clips.device)
    for level in plan.levels:
        if level.flow_grid is not None:
            flow = stages.upsample(flow, level.flow_grid, plan.gain)
        image = stages.level_image(frames, level.size.blur, level.image_grid)
        expansions = stages.expand(image, plan.expansion)
        for _ in range(plan.iterations):
            constraints = stages.matrices(expansions, first, flow, level.border_rows, level.border_columns)
            flow = stages.horizontal_sum_and_solve(stages.vertical_sum(constraints, plan.window), plan.window)
    return flow


def _start(level: _Level, initial: Tensor | None, pairs: int, device: torch.device) -> Tensor:
    """Give the flow `[N, 2, h, w]` that the coarsest level starts from."""
    size = level.size
    if initial is None:
        return torch.zeros((pairs, 2, size.height, size.width), dtype=torch.float32, device=device)
    rows, columns = tables.area(initial.shape[2], size.height), tables.area(initial.shape[3], size.width)
    return shrink(initial, rows, columns) * size.scale
