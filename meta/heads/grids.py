"""Clips whose frames are square grids of tokens, for 3-D convolutions; a frame without tokens is a 1 x 1 grid."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache.errors import UserError
from .base import Inputs, require_tokens


def grid_side(head: str, inputs: Inputs, spatial: bool) -> int:
    """Side of a frame's grid of tokens, at least 2; 1 for a variant that does without.

    Args:
        head: Name in the error.
        inputs: What the head is built for.
        spatial: Whether the head works on tokens.

    Raises:
        UserError: If tokens are wanted and there are none, or they do not make a square.
    """
    if not spatial:
        return 1
    require_tokens(head, inputs)
    side = math.isqrt(inputs.tokens)
    if side * side != inputs.tokens or side < 2:
        raise UserError(
            f"head {head!r} needs a square grid of at least 2 x 2 tokens; the cached features have {inputs.tokens}; "
            f"extract with --tokens 16 or 49, or use '{head}[pooled]'"
        )
    return side


def to_tokens(clips: Tensor, tokens: int, side: int) -> Tensor:
    """The tokens that a head works on: [n, T, D] or [n, T, P, D] -> [n, T, side * side, D]; side 1 takes their mean."""
    if side > 1:
        return clips
    return clips.mean(2, keepdim=True) if tokens else clips[:, :, None]


def to_grid(clips: Tensor, side: int) -> Tensor:
    """[n, T, side * side, D] -> [n, D, T, side, side]."""
    return torch.unflatten(clips.movedim(-1, 1), -1, (side, side))


def grid_convolution(inputs: int, outputs: int, side: int) -> nn.Conv3d:
    """A 3 x 3 x 3 convolution that keeps the size; 3 x 1 x 1, so one over time, where a frame is a 1 x 1 grid."""
    across = 3 if side > 1 else 1
    return nn.Conv3d(inputs, outputs, (3, across, across), padding=(1, across // 2, across // 2))


def halve(grids: Tensor, *, time: bool) -> Tensor:
    """Max pooling by 2 over the grid, and over time if asked; an axis of length 1 stays.

    The same as `MaxPool3d(2)` (or `(1, 2, 2)`) wherever that gives anything.
    """
    window = [min(2, size) for size in grids.shape[-3:]]
    return functional.max_pool3d(grids, (window[0] if time else 1, *window[1:]))
