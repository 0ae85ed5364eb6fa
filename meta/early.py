"""Early fusion: the frame features of two modalities become one stream, which any head takes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..cache.errors import UserError, pick

Axis = Literal["feature", "time"]


@dataclass(frozen=True)
class ConcatConfig:
    """How streams are concatenated."""

    project: bool = True
    """Normalise each stream (LayerNorm) and project the concatenation; False: the plain concatenation."""


@dataclass(frozen=True)
class CoAttentionConfig:
    """How streams attend to one another."""

    heads: int = 8
    """Heads of the attention; they divide its width."""


@dataclass(frozen=True)
class GuideConfig:
    """How the second stream guides the first."""

    in_axis: str = "feature"
    """Over what features are normalised: `feature`, each frame over its features (what the original's code does);
    `time`, each feature over the clip's frames (what its paper says)."""
    zero_start: bool = True
    """Start both maps at zero, so that the fused features are the normalised first stream; False: as the original does,
    as torch starts any linear layer."""

    def __post_init__(self) -> None:
        """Refuse axes that do not exist."""
        if self.in_axis not in get_args(Axis):
            raise UserError(f"in_axis is {self.in_axis!r}; fusion 'amefu'; known: {', '.join(get_args(Axis))}")


class Fusion(nn.Module):
    """Streams [n, T, D_m], or [n, T, P, D_m] with tokens, equal but for their widths -> [n, T, out_dim] (with P)."""

    config_type: ClassVar[type[Any]]
    """A frozen dataclass: the fusion's hyperparameters."""
    out_dim: int
    """Width of the fused features."""

    def forward(self, *streams: Tensor) -> Tensor:
        """Fuse streams in the order they were built for.

        Raises:
            UserError: If they differ in more than their widths.
        """
        shapes = {stream.shape[:-1] for stream in streams}
        if len(shapes) > 1:
            given = " and ".join(" x ".join(map(str, stream.shape[1:-1])) for stream in streams)
            raise UserError(
                f"streams of {given} frames (x tokens); early fusion; extract both with the same --frames and --tokens"
            )
        return self.fuse(*streams)

    def fuse(self, *streams: Tensor) -> Tensor:
        """Fuse streams of equal shapes."""
        raise NotImplementedError


class Concat(Fusion):
    """EC: Linear of the concatenation of the normalised streams, [LN(r_t); LN(f_t)] -> [n, T, dim].

    Table 1 of AMFAR (CVPR 2023) names this row; its layers are a reading. The map starts orthogonal: as far as its
    width allows, distances are those of the concatenation.

    Args:
        dims: Widths of the streams, two or more.
        dim: Width of the result; with `project` off it is the sum of `dims`.
        config: How.
    """

    config_type = ConcatConfig

    def __init__(self, dims: Sequence[int], dim: int, config: ConcatConfig) -> None:
        super().__init__()
        self.project = config.project
        self.out_dim = dim if config.project else sum(dims)
        if config.project:
            self.norms = nn.ModuleList(nn.LayerNorm(width) for width in dims)
            self.linear = orthogonal(sum(dims), dim)

    def fuse(self, *streams: Tensor) -> Tensor:
        """Fuse streams."""
        if not self.project:
            return torch.cat(streams, -1)
        normalised = [norm(stream) for norm, stream in zip(self.norms, streams, strict=True)]
        fused: Tensor = self.linear(torch.cat(normalised, -1))
        return fused


class CoAttention(Fusion):
    """EA: each stream attends to the other over time, then as EC; [n, T, D_1] and [n, T, D_2] -> [n, T, dim].

    r' = LN(r + MHA(r, f, f)), f' = LN(f + MHA(f, r, r)), h_t = Linear([r'_t; f'_t]). Table 1 of AMFAR (CVPR 2023) names
    this row; its layers are a reading. Streams of different widths are projected to `dim` first. Tokens attend within
    their position. What attention adds starts small: a tenth of an orthogonal map.

    Args:
        dims: Widths of the two streams.
        dim: Width of the result.
        config: How.

    Raises:
        UserError: If there are not two streams, or the heads do not divide the width.
    """

    config_type = CoAttentionConfig

    def __init__(self, dims: Sequence[int], dim: int, config: CoAttentionConfig) -> None:
        super().__init__()
        _require_two("ea", dims)
        self.out_dim = dim
        width = dims[0] if dims[0] == dims[1] else dim
        if config.heads < 1 or width % config.heads:
            raise UserError(f"heads is {config.heads}; fusion 'ea'; give a divisor of the attention's width, {width}")
        self.maps = nn.ModuleList(nn.Identity() if d == width else orthogonal(d, width) for d in dims)
        self.attention = nn.ModuleList(_attention(width, config.heads) for _ in dims)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in dims)
        self.linear = orthogonal(2 * width, dim)

    def fuse(self, *streams: Tensor) -> Tensor:
        """Fuse two streams."""
        mapped = [m(stream) for m, stream in zip(self.maps, streams, strict=True)]
        tokens = mapped[0].dim() == 4
        own = [stream.transpose(1, 2).flatten(0, 1) if tokens else stream for stream in mapped]
        heard = [
            norm(x + attention(x, y, y, need_weights=False)[0])
            for norm, attention, x, y in zip(self.norms, self.attention, own, own[::-1], strict=True)
        ]
        fused: Tensor = self.linear(torch.cat(heard, -1))
        return fused.view(len(streams[0]), -1, *fused.shape[1:]).transpose(1, 2) if tokens else fused


class Guide(Fusion):
    """AMeFu-Net's DGAdaIN: IN(x) * (1 + A w) + B w, the first stream x guided by the second, w; -> [n, T, D_1].

    Fu et al., "Depth Guided Adaptive Meta-Fusion Network for Few-shot Video Recognition", ACM MM 2020; original:
    lovelyqian/AMeFu-Net a307233, whose `instance_norm.affine_scale` and `instance_norm.affine_bias` are our parameters
    of these names. Its guide is depth, here any second stream, which may have another width. IN has no weights, epsilon
    1e-5 and the biased variance. The paper normalises each channel over time; the code hands [B, T, D] to
    InstanceNorm1d, which takes frames for channels: `in_axis` has both. Tokens are normalised within their position.

    Args:
        dims: Widths of the two streams.
        dim: Without effect: the fused width is that of the first stream.
        config: How.

    Raises:
        UserError: If there are not two streams.
    """

    config_type = GuideConfig

    def __init__(self, dims: Sequence[int], dim: int, config: GuideConfig) -> None:
        super().__init__()
        _require_two("amefu", dims)
        self.out_dim = dims[0]
        self.in_axis = config.in_axis
        self.affine_scale = nn.Linear(dims[1], dims[0])
        self.affine_bias = nn.Linear(dims[1], dims[0])
        if config.zero_start:
            for layer in (self.affine_scale, self.affine_bias):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def fuse(self, *streams: Tensor) -> Tensor:
        """Fuse two streams."""
        frames, guide = streams
        fused: Tensor = self._normalise(frames) * (1 + self.affine_scale(guide)) + self.affine_bias(guide)
        return fused

    def _normalise(self, frames: Tensor) -> Tensor:
        if self.in_axis == "feature":
            return functional.layer_norm(frames, frames.shape[-1:])
        return functional.layer_norm(frames.transpose(1, -1), frames.shape[1:2]).transpose(1, -1)


EARLY: dict[str, type[Fusion]] = {"ec": Concat, "ea": CoAttention, "amefu": Guide}
"""Early fusions by name."""


def build_early(name: str, dims: Sequence[int], dim: int, config: Any = None, *, seed: int = 0) -> Fusion:
    """A fusion with fresh parameters, the same for equal arguments.

    Args:
        name: A key of `EARLY`.
        dims: Widths of the streams in order.
        dim: Width of the fused features where the fusion can choose it; `out_dim` has what became of it.
        config: An instance of the fusion's `config_type`; None: its defaults.
        seed: Of the parameters.

    Raises:
        UserError: If the name is unknown, or the fusion does not take these streams.
    """
    fusion: Any = pick(EARLY, name, "early fusion")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: Fusion = fusion(dims, dim, fusion.config_type() if config is None else config)
    return built


def orthogonal(features: int, dim: int) -> nn.Linear:
    """A linear layer that starts with orthogonal rows or columns of unit length, and no bias."""
    layer = nn.Linear(features, dim)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _attention(width: int, heads: int) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(width, heads, batch_first=True)
    nn.init.orthogonal_(attention.out_proj.weight, gain=0.1)
    return attention


def _require_two(name: str, dims: Sequence[int]) -> None:
    if len(dims) != 2:
        raise UserError(f"{len(dims)} streams; fusion {name!r}; it takes two, such as rgb and flow")
