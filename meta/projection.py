"""The principal axes of the base clips' frames: narrower features for every head to start from."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_FRAMES = 50_000
"""Frames that a projection is fitted on; more change little and cost time."""

CHUNK = 2**22
"""Numbers that are converted at once (32 MiB in float64): the features may be memory-mapped and larger than memory."""


@dataclass(frozen=True, eq=False)
class Projection:
    """x -> A (x - mean) / scale, the same for every frame of every clip; all tensors float32."""

    mean: Tensor
    """Of the base frames, [D]."""
    scale: Tensor
    """One number for all directions, scalar."""
    axes: Tensor | None
    """A: orthonormal rows, the largest variance first, [dim, D]; None: the identity."""

    @property
    def dim(self) -> int:
        """Width of what comes out."""
        return len(self.mean) if self.axes is None else len(self.axes)

    def __call__(self, frames: Tensor) -> Tensor:
        """Project frames [..., D], floating point -> [..., dim], float32."""
        centred = (frames.float() - self.mean) / self.scale
        return centred if self.axes is None else centred @ self.axes.mT

    def apply(self, features: Tensor) -> Tensor:
        """Project all clips of a modality: [clips, ..., D] -> [clips, ..., dim], float32, a few clips at a time."""
        projected = torch.empty(*features.shape[:-1], self.dim)
        step = max(1, CHUNK // features[0].numel())
        for first in range(0, len(features), step):
            projected[first : first + step] = self(features[first : first + step])
        return projected

    def to_state(self) -> dict[str, Tensor]:
        """Plain tensors for a checkpoint."""
        state = {"mean": self.mean, "scale": self.scale}
        return state if self.axes is None else {**state, "axes": self.axes}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Projection":
        """The projection that `to_state` wrote."""
        return cls(state["mean"], state["scale"], state.get("axes"))


def fit_projection(features: Tensor, clips: Tensor, dim: int, max_frames: int = MAX_FRAMES) -> Projection:
    """Fit a projection on the frames of some clips (view 0), computed in float64.

    The scale makes the mean squared length of a centred frame as large as the width that is kept, so that a coordinate
    varies by about 1 and float16 holds it. The axes are not whitened: lengths and angles stay what they were, up to the
    directions dropped.

    Args:
        features: Features of one modality, [clips, views, T, D] or, with tokens, [clips, views, T, P, D], where each
            token counts as a frame; any floating point, memory-mapped or not.
        clips: Indices of the clips to fit on, at least one.
        dim: Axes to keep; D or more keeps the features as they are, centred and scaled.
        max_frames: Where there are more frames, so many at even distances.

    Returns:
        The projection, the same on every call with the same input on the same machine.
    """
    shown = features[:, 0]
    shape = (len(clips), *features.shape[2:-1])
    total, width = torch.Size(shape).numel(), features.shape[-1]
    wanted = torch.arange(min(total, max_frames)) * total // min(total, max_frames)
    mean, covariance = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    # About a first frame, or squares of large numbers would take the digits of small differences.
    origin = shown[clips[0]].flatten(0, -2)[0].double()
    for part in torch.split(wanted, max(1, CHUNK // width)):
        place = torch.unravel_index(part, shape)
        frames = shown[(clips[place[0]], *place[1:])].double() - origin
        mean += frames.sum(0) / len(wanted)
        covariance += frames.mT @ frames / len(wanted)
    covariance -= torch.outer(mean, mean)
    kept = min(dim, width)
    variance = covariance.trace() / kept
    # Frames that are all the same have no scale of their own.
    scale = variance.sqrt() if variance > 0 else torch.ones_like(variance)
    axes = principal_axes(covariance, dim).float() if dim < width else None
    return Projection((mean + origin).float(), scale.float(), axes)


def principal_axes(covariance: Tensor, dim: int) -> Tensor:
    """Eigenvectors of the largest eigenvalues as rows [dim, D]; the largest component of each is positive."""
    axes = torch.linalg.eigh(covariance).eigenvectors.flip(-1)[:, :dim].mT
    largest = axes.gather(-1, axes.abs().argmax(-1, keepdim=True))
    signed: Tensor = axes * largest.sign()
    return signed
