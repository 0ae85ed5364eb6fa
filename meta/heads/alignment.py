"""How TA2N (Li et al., AAAI 2022) moves clips: in time clip by clip, in space pair by pair."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .grids import grid_convolution, halve, to_grid

MAX_OFFSET = 0.75
"""Largest shift of the box, in half sides of the grid."""

STEP = 0.2
"""Distance of the perturbed boxes, in half sides of the grid."""


class TemporalTransform(nn.Module):
    """Stage 1, the temporal transform: a network reads (a, b) from a clip, whose frames are read anew at a u + b.

    u runs from -1 to 1. Frames in between are interpolated linearly; beyond the ends there are zeros. Starts at
    a = tanh 2, b = 0. An axis too short for another max pooling stays as it is; nothing changes for 8 frames of 7 x 7.

    Args:
        dim: Width of the tokens.
        width: Channels of the first convolution (the original: 64); the second has twice, the linear layer half of it.
        side: Side of a frame's grid; 1: convolutions over time alone.
    """

    def __init__(self, dim: int, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.first = grid_convolution(dim, width, side)
        self.first_norm = nn.BatchNorm3d(width)
        self.second = grid_convolution(width, 2 * width, side)
        self.second_norm = nn.BatchNorm3d(2 * width)
        self.hidden = nn.Linear(2 * width, width // 2)
        self.theta = nn.Linear(width // 2, 2)
        nn.init.zeros_(self.theta.weight)
        with torch.no_grad():
            self.theta.bias.copy_(torch.tensor([2.0, 0.0]))

    def forward(self, maps: Tensor) -> Tensor:
        """Move clips: [n, T, P, D] -> [n, T, P, D]."""
        grids = halve(self.first_norm(self.first(to_grid(maps, self.side))), time=True).relu()
        grids = halve(self.second_norm(self.second(grids)), time=True).relu()
        theta = self.theta(self.hidden(grids.amax((2, 3, 4))).relu()).tanh()
        return (resampling(theta, maps.shape[1]) @ maps.flatten(2)).view_as(maps)


def resampling(theta: Tensor, frames: int) -> Tensor:
    """Weights of old frames in new ones: (a, b) as [n, 2] -> [n, T, T], hat functions of the distance."""
    grid = torch.linspace(-1, 1, frames, device=theta.device, dtype=theta.dtype)
    positions = (theta[:, :1] * grid + theta[:, 1:] + 1) / 2 * (frames - 1)
    old = torch.arange(frames, device=theta.device, dtype=theta.dtype)
    return (1 - (positions[..., None] - old).abs()).relu()


class SpatialOffset(nn.Module):
    """Stage 2b: where the action of a pair of clips is, frame by frame.

    The first convolution sees the channels of both clips side by side, so it is the sum of two, one a clip. What the
    pair's attention adds to the query is the same everywhere in a frame; its share follows from nine sums of the kernel
    (rows and columns at the first edge, inside, at the last edge), applied once per clip. Nothing of the width of the
    tokens is left to do per pair.

    Args:
        dim: Width of the tokens.
        width: Channels of both convolutions (the original: 128); the next layer has half of it.
        side: Side of a frame's grid, at least 2.
    """

    def __init__(self, dim: int, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.first = grid_convolution(2 * dim, width, side)
        self.first_norm = nn.BatchNorm3d(width)
        self.second = grid_convolution(width, width, side)
        self.second_norm = nn.BatchNorm3d(width)
        self.hidden = nn.Conv1d(width, width // 2, 1)
        self.offset = nn.Conv1d(width // 2, 2, 1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]  # there is a bias

    def support_half(self, maps: Tensor) -> Tensor:
        """The support's share in the first convolution: [n, T, P, D] -> [n, w, T, side, side]."""
        weight = self.first.weight[:, : maps.shape[-1]]
        return functional.conv3d(to_grid(maps, self.side), weight, self.first.bias, padding=1)

    def query_half(self, maps: Tensor) -> Tensor:
        """The share of the query's own map: [n, T, P, D] -> [n, w, T, side, side]."""
        return functional.conv3d(to_grid(maps, self.side), self.first.weight[:, maps.shape[-1] :], padding=1)

    def spread(self, values: Tensor) -> Tensor:
        """The share of vectors [n, T, D], each the same all over a frame: [n, T, 3, 9 w].

        One for each step of the kernel in time, and each kind of place: rows, then columns, at the first edge, inside,
        at the last edge.
        """
        weight = self.first.weight[:, values.shape[-1] :]
        inside = weight.new_tensor([[0, 1, 1], [1, 1, 1], [1, 1, 0]])
        kernel = torch.einsum("wdtyx,iy,jx->dtijw", weight, inside, inside)
        return torch.unflatten(values @ kernel.flatten(1), -1, (3, -1))

    def forward(self, support: Tensor, query: Tensor, spread: Tensor, attention: Tensor) -> Tensor:
        """Offsets of all pairs.

        Args:
            support: Halves [B, N, w, T, side, side].
            query: Halves [B, Q, w, T, side, side].
            spread: [B, Q, T, 3, 9 w].
            attention: Weights of the query's frames at each time, [B, N, Q, T, T].

        Returns:
            Shifts along columns and rows (x, y), [B, N, Q, T, 2], within `MAX_OFFSET`.
        """
        maps = support[:, :, None] + query[:, None] + self._context(spread, attention)
        lead = maps.shape[:3]
        maps = halve(self.first_norm(maps.flatten(0, 2)), time=False).relu()
        maps = halve(self.second_norm(self.second(maps)), time=False).relu()
        offset: Tensor = self.offset(self.hidden(maps.amax((3, 4))).relu()).tanh() * MAX_OFFSET
        return torch.unflatten(offset.mT, 0, lead)

    def _context(self, spread: Tensor, attention: Tensor) -> Tensor:
        """What the attended vectors add: [B, N, Q, w, T, side, side]."""
        frames = attention.shape[-1]
        padded = functional.pad(attention, (0, 0, 1, 1))
        shifted = torch.cat([padded[..., step : step + frames, :] for step in range(3)], -1)
        places = shifted @ spread.transpose(2, 3).flatten(2, 3)[:, None]
        places = torch.unflatten(places, -1, (3, 3, -1)).movedim(-1, 3)
        kinds = torch.ones(self.side, dtype=torch.int64, device=places.device)
        kinds[0], kinds[-1] = 0, 2
        return places.index_select(-2, kinds).index_select(-1, kinds)


def soft_box(offsets: Tensor, side: int) -> Tensor:
    """Masks of a box that covers the grid and was shifted, averaged over the shift and its eight neighbours.

    A token in the box weighs 1; outside the weight falls to 0 over one token. Each of the nine masks sums to 1.

    Args:
        offsets: Shifts (x, y), [..., 2].
        side: Side of the grid, at least 2.

    Returns:
        [..., side * side], row by row.
    """
    steps = STEP * torch.tensor([-1.0, 0.0, 1.0], device=offsets.device, dtype=offsets.dtype)
    grid = torch.linspace(-1, 1, side, device=offsets.device, dtype=offsets.dtype)
    place = (offsets[..., None, None] + steps[:, None] + grid).abs()  # [..., 2, 3, side]
    weight = torch.where(place < 1, 1, (1 - (place - 1) * (side - 1) / 2).relu())
    # The neighbours are all pairs of three steps, so the mean over nine is a product of two means over three.
    columns, rows = (weight / weight.sum(-1, keepdim=True)).mean(-2).unbind(-2)
    return (rows[..., :, None] * columns[..., None, :]).flatten(-2)
