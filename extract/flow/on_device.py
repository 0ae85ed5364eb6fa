"""From grey pairs to a network's input on one device: flow, rendering, and the cut or squeeze to a square."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .backend import DeviceFlow


@dataclass(frozen=True)
class PairsToInput:
    """Turns grey pairs into what a flow network takes; the same as `prepare.prepare` does without a device."""

    flow: DeviceFlow
    """Computes the flow."""
    size: int
    """Side of the square in pixels (S)."""
    squash: bool
    """Whether the whole frame is squeezed; else the centre is cut out."""
    scale: float | None
    """Grey levels per pixel of displacement in the rendered flow; None leaves the flow in pixels."""

    def __call__(self, pairs: Tensor) -> Tensor:
        """Compute the input of a network.

        Args:
            pairs: Grey frames `[..., 2, H, W]` uint8 whose short side is at least S.

        Returns:
            uint8 images `[..., S, S, 3]`, or float32 flow `[..., S, S, 2]` in pixels.
        """
        lead = pairs.shape[:-3]
        fields = self.flow(pairs.reshape(-1, *pairs.shape[-3:]))
        images = fields if self.scale is None else render(fields, self.scale)
        square = squash(images, self.size) if self.squash else cut(images, self.size)
        return square.reshape(*lead, *square.shape[1:])


def render(flow: Tensor, scale: float) -> Tensor:
    """Render flow `[N, H, W, 2]` as uint8 images `[N, H, W, 3]`; see `flow.render.render`."""
    # hypot in float32 and the levels in float64, as on the host: a rounding more would flip levels.
    values = torch.cat([flow, torch.hypot(flow[..., :1], flow[..., 1:])], dim=-1)
    return (128.0 + values.double() * scale).round_().clamp_(0, 255).to(torch.uint8)


def cut(images: Tensor, size: int) -> Tensor:
    """Cut the centre square out of `[N, H, W, C]`."""
    height, width = images.shape[1:3]
    top, left = (height - size) // 2, (width - size) // 2
    return images[:, top : top + size, left : left + size]


def squash(images: Tensor, size: int) -> Tensor:
    """Squeeze `[N, H, W, C]` to a square of at most their size, each pixel the mean of the area that it covers."""
    rows, columns = (_weights_on(n, size, images.device) for n in images.shape[1:3])
    narrow = torch.einsum("tw,nhwc->nhtc", columns, images.float())
    small = torch.einsum("sh,nhtc->nstc", rows, narrow)
    return small if images.is_floating_point() else small.round_().clamp_(0, 255).to(images.dtype)


@lru_cache(maxsize=64)
def _weights_on(length: int, size: int, device: torch.device) -> Tensor:
    # Kept, since a copy to a GPU waits until all that was launched before it is done.
    return torch.from_numpy(area_weights(length, size)).to(device)


def area_weights(length: int, size: int) -> NDArray[np.float32]:
    """Return the share `[size, length]` of each of `length` pixels in each of `size` that cover the same line."""
    edges = np.arange(size + 1) * (length / size)
    pixels = np.arange(length)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights: NDArray[np.float32] = (np.maximum(overlap, 0) * (size / length)).astype(np.float32)
    return weights
