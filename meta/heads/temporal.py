"""AMFIR's modality head: statistics over time and a projection that starts as a closed form.

A head starts as a closed-form reading of the base clips and is meta-learned from there: five base classes are enough to
destroy what the frozen features knew if it starts anywhere else.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...cache.errors import UserError
from ..projection import principal_axes
from .base import Inputs, PrototypeHead


@dataclass(frozen=True)
class HeadConfig:
    """Shape and start of a head."""

    dim: int = 512
    """Width of the embedding (d)."""
    spread_weight: float = 2.0
    """Weight of each feature's standard deviation over time beside its mean: how much a clip changes."""
    order_weight: float = 0.5
    """Weight of each feature's first cosine coefficient over time: tells a clip from its reverse."""
    shrinkage: float = 0.01
    """Variance added to every direction when the within-class scatter is whitened, as a share of the largest one."""
    hold: float = 10.0
    """Weight of the projection's relative squared distance from its start in training: a drift of 10 % costs 1."""
    width: int = 256
    """Numbers that a frame is reduced to before the temporal convolution; 0 leaves out both."""
    kernel: int = 3
    """Frames that the temporal convolution sees at once, odd."""
    dropout: float = 0.1
    """Inside the convolution's residual branch."""

    def __post_init__(self) -> None:
        """Refuse values that make no head."""
        if self.dim < 2:
            raise UserError(f"dim is {self.dim}; an embedding needs at least 2 numbers; raise it")
        if min(self.spread_weight, self.order_weight, self.hold) < 0 or not self.shrinkage > 0:
            raise UserError(f"{self}: weights must be 0 or more and shrinkage above 0; mend the head's settings")
        if self.width < 0 or self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"{self}: width must be 0 or more and kernel odd; mend the head's settings")

    def pooled_dim(self, feature_dim: int) -> int:
        """Numbers that `pool` makes of features with this width."""
        return feature_dim * (1 + (self.spread_weight > 0) + (self.order_weight > 0))


class TemporalHead(PrototypeHead):
    """AMFIR's own modality head: whitened frames, a temporal convolution, statistics over time, a projection.

    [n, T, D] -> [n, d]. A fixed map whitens and narrows frames; h_t = x_t + (what a convolution over time adds, nothing
    at the start). Then every frame has the channels h_t, (h_t - mean h)^2 and sqrt(2) cos(pi (t + 1/2) / T) h_t, whose
    means over time are pooled, the second under a square root: the first alone is ProtoNet's mean, blind to order; the
    third changes its sign when the clip is reversed. A learnt projection to unit length follows, so that the squared
    Euclidean distance of two embeddings is twice their cosine distance.

    Args:
        inputs: What the head is built for.
        config: Shape and start.
    """

    config_type = HeadConfig
    learns_temperature = True

    centre: Tensor
    begin: Tensor

    def __init__(self, inputs: Inputs, config: HeadConfig) -> None:
        super().__init__(inputs)
        self.config = config
        width = min(config.width or inputs.dim, inputs.dim)
        self.frames = Frames(inputs.dim, width) if config.width else None
        self.over_time = TimeConvolution(width, config.kernel, config.dropout) if config.width else nn.Identity()
        pooled = config.pooled_dim(width)
        self.register_buffer("centre", torch.zeros(pooled))
        self.register_buffer("begin", torch.zeros(config.dim, pooled))
        self.weight = nn.Parameter(torch.zeros(config.dim, pooled))

    def embed(self, clips: Tensor) -> Tensor:
        """Embed clips: [n, T, D] float -> [n, d], rows of unit length."""
        frames = clips if self.frames is None else self.frames(clips)
        projected = (pool(self.over_time(frames), self.config) - self.centre) @ self.weight.mT
        return nn.functional.normalize(projected, dim=-1)

    def start(self, clips: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """Start from a closed-form reading of the base clips: within-class whitening, principal axes, a random sketch.

        Directions in which clips of ONE class differ (people, places, clothes) are nuisance and are shrunk, first in
        the frames and then in what is pooled of them: with S the within-class covariance and s = `shrinkage` times its
        largest eigenvalue, the whitening is (I + S / s)^(-1/2), which leaves directions that the base clips never used
        as they are. Half of a map keeps the principal axes of the whitened clips; the other half is a Gaussian sketch
        of the rest, which keeps distances on average (Johnson and Lindenstrauss), because novel classes also differ
        where base classes do not.
        """
        if self.frames is not None:
            self.frames.start(clips, labels, self.config.shrinkage)
            clips = self.frames(clips)
        centre, begin = _whitening(pool(clips.double(), self.config), labels, self.config, generator)
        with torch.no_grad():
            self.centre.copy_(centre)
            self.begin.copy_(begin)
            self.weight.copy_(begin)

    def penalty(self) -> Tensor:
        """Hold the projection to its start: its squared distance from there, relative to the start, times `hold`."""
        drift = (self.weight - self.begin).square().sum() / self.begin.square().sum().clamp_min(1e-12)
        return self.config.hold * drift


class Frames(nn.Module):
    """A fixed map of frames: within-class whitening, narrowed, scaled so that a number varies by about 1."""

    centre: Tensor
    weight: Tensor

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("weight", torch.zeros(width, dim))

    def start(self, clips: Tensor, labels: Tensor, shrinkage: float) -> None:
        """Read the map from the base clips [n, T, D]: principal axes of their frames, then whitening.

        The scatter within classes is that of clips' means over time.
        """
        means = clips.double().mean(1)
        centre = means.mean(0)
        axes = self._axes((clips.double() - centre).flatten(0, 1))
        nuisance, gain = _shrinking((means - centre) @ axes.mT, labels, shrinkage)
        mapped = _shrink((clips.double() - centre) @ axes.mT, nuisance, gain)
        scale = mapped.square().mean().sqrt().clamp_min(1e-6)
        self.centre.copy_(centre)
        self.weight.copy_(_shrink(axes.mT, nuisance, gain).mT / scale)

    def _axes(self, frames: Tensor) -> Tensor:
        """Orthonormal rows [width, D]: the identity if it fits; any others where the frames span less."""
        width, dim = self.weight.shape
        if width == dim:
            return torch.eye(dim, dtype=torch.float64)
        return principal_axes(frames.mT @ frames, width)

    def forward(self, clips: Tensor) -> Tensor:
        """Map frames: [..., D] -> [..., width]."""
        mapped: Tensor = (clips - self.centre) @ self.weight.mT
        return mapped


class TimeConvolution(nn.Module):
    """x + Linear(ReLU(Conv(x))) over time, the linear map 0 at the start: [n, T, D] -> [n, T, D]."""

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.near = nn.Conv1d(dim, dim, kernel, padding=kernel // 2)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, frames: Tensor) -> Tensor:
        """Add what neighbours in time tell."""
        added: Tensor = self.out(self.dropout(self.near(frames.mT).relu().mT))
        return frames + added


def pool(features: Tensor, config: HeadConfig) -> Tensor:
    """Statistics over time: [..., T, D] -> [..., C], C = `config.pooled_dim(D)`."""
    mean = features.mean(-2)
    parts = [mean]
    if config.spread_weight:
        # The floor keeps the root's gradient finite where nothing moves.
        variance = (features - mean[..., None, :]).square().mean(-2)
        parts.append(config.spread_weight * variance.clamp_min(1e-12).sqrt())
    if config.order_weight:
        num_frames = features.shape[-2]
        angles = math.pi * (torch.arange(num_frames, device=features.device, dtype=features.dtype) + 0.5) / num_frames
        wave = math.sqrt(2) * angles.cos()
        parts.append(config.order_weight * (wave[:, None] * features).mean(-2))
    return torch.cat(parts, -1)


def _whitening(pooled: Tensor, labels: Tensor, config: HeadConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centre [C] and projection [dim, C] of pooled clips [n, C], float64."""
    centre = pooled.mean(0)
    axes, gain = _shrinking(pooled, labels, config.shrinkage)
    projection = _projection(_shrink(pooled - centre, axes, gain), config.dim, generator)
    return centre, _shrink(projection, axes, gain)


def _shrinking(values: Tensor, labels: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """Axes along which clips of one class differ, and what whitening adds to the factor 1 along each."""
    axes, variances = _principal_axes(_within_class(values, labels))
    # Nothing varies within a class where each has one clip: no axes, no largest variance.
    floor = shrinkage * variances[:1].clamp_min(1e-12)
    return axes, (1 + variances / floor).rsqrt() - 1


def _within_class(values: Tensor, labels: Tensor) -> Tensor:
    """Each clip minus the mean of its class: [n, C]."""
    centred = values.clone()
    for label in set(labels.tolist()):
        centred[labels == label] -= values[labels == label].mean(0)
    return centred


def _principal_axes(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal rows [r, C] that span the centred values [n, C], and the variance along each, largest first."""
    _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    kept = int((singular > 1e-9 * singular.max().clamp_min(1e-300)).sum())
    return axes[:kept], singular[:kept].square() / len(centred)


def _shrink(rows: Tensor, axes: Tensor, gain: Tensor) -> Tensor:
    """Apply the symmetric matrix I + axes^T diag(gain) axes to rows [n, C] without forming it."""
    return rows + ((rows @ axes.mT) * gain) @ axes


def _projection(centred: Tensor, dim: int, generator: torch.Generator) -> Tensor:
    """Principal axes and a sketch of what they leave out, [dim, C]; the identity over zero rows if it fits."""
    width = centred.shape[1]
    if dim >= width:
        return torch.eye(dim, width, dtype=torch.float64)
    axes = _principal_axes(centred - centred.mean(0))[0][: dim // 2]
    free = dim - len(axes)
    sketch = torch.randn(free, width, generator=generator, dtype=torch.float64) / math.sqrt(free)
    return torch.cat([axes, sketch - (sketch @ axes.mT) @ axes])
