"""OTAM: soft alignment of two clips in time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...cache.errors import UserError
from .base import Encoding, Inputs, PairHead
from .parts import FrameEmbedding, frame_cosine


@dataclass(frozen=True)
class OtamConfig:
    """Shape of the head."""

    dim: int = 256
    """Width of the frame embedding; 0: the cached features as they are."""
    smoothing: float = 0.1
    """Temperature of the soft minimum (lambda); towards 0 it becomes the minimum."""
    scale: float = 1.0
    """Factor of the distances; they add up 2 T cosines, so they need less of it than a single cosine."""
    eps: float = 1e-8
    """Added to the product of two frames' norms."""

    def __post_init__(self) -> None:
        """Refuse a soft minimum that has none."""
        if not self.smoothing > 0:
            raise UserError(f"smoothing is {self.smoothing}; settings of otam; give more than 0, such as 0.1")


class Otam(PairHead):
    """Logit = - mean over the class's clips of d(C) + d(C^T), C the frames' cosine distances, d of `alignment_cost`.

    Few-Shot Video Classification via Temporal Alignment (Cao et al., CVPR 2020) as in
    tobyperrett/few-shot-action-recognition 3687f3a (`CNN_OTAM`, no parameters beside the backbone's): `dim` = 0,
    `eps` = 0.01. jbertrand89/temporal_matching 4f14d68 takes half of the two directions' sum times 10: `scale` = 5.
    """

    config_type = OtamConfig

    def __init__(self, inputs: Inputs, config: OtamConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.embedding = FrameEmbedding(inputs.dim, config.dim)

    def encode(self, clips: Tensor) -> Encoding:
        """Embed frames: [n, T, D] -> [n, T, d]."""
        return (self.embedding(clips),)

    def pair(self, query: Encoding, support: Encoding) -> Tensor:
        """Scaled negative distances: [..., A, T, d] and [..., S, T, d] -> [..., A, S]."""
        cosines = frame_cosine(query[0], support[0], self.config.eps)
        shape = cosines.shape[:-2]
        # Pairs stand last: every step below is then one pass over contiguous numbers.
        costs = 1 - cosines.flatten(0, -3).permute(1, 2, 0)
        both = torch.cat([costs, costs.transpose(0, 1)], -1)
        there, back = alignment_cost(both, self.config.smoothing).view(2, *shape)
        total: Tensor = there + back
        return -self.config.scale * total

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Cosines, costs and gains of both directions of all pairs."""
        return 10 * self.inputs.frames**2 * way * shot * queries


def alignment_cost(costs: Tensor, smoothing: float) -> Tensor:
    """Soft minimum over all alignments of two sequences of the costs they collect.

    With zero columns 0 and T + 1 beside the costs C and softmin(a, ..) = - lambda log(exp(-a / lambda) + ..):

        g(0, m) = g(0, m - 1) + C(0, m),  g(l, 0) = 0
        g(l, 1) = C(l, 1) + softmin(g(l - 1, 0), g(l - 1, 1), g(l, 0))
        g(l, m) = C(l, m) + softmin(g(l - 1, m - 1), g(l, m - 1))                      1 < m <= T
        g(l, T + 1) = softmin(g(l - 1, T), g(l - 1, T + 1), g(l, T))

    and the result is g(T - 1, T + 1). It can be a little below 0. Inner columns depend on the column before them alone,
    so that a whole column is one step. The last one is a sum: in it every g(l, T) counts twice, the last once.

    The original takes log(sum(exp)), which underflows from a g of 9 on (12 unrelated frames); this does not.

    Args:
        costs: C [l, m, pairs], at least two rows.
        smoothing: lambda.

    Returns:
        [pairs].
    """
    # s = - g / lambda throughout: softmin becomes logaddexp.
    gains = costs / -smoothing
    column = _first_column(gains[:, 0])
    for m in range(1, gains.shape[1]):
        column = torch.cat([column[:1], torch.logaddexp(column[:-1], column[1:])]) + gains[:, m]
    twice = column[:-1].logsumexp(0) + _log_two(column)
    return -smoothing * torch.logaddexp(twice, column[-1])


def _first_column(gains: Tensor) -> Tensor:
    """Column 1, [l, pairs]: it may be entered at any row, two of the three ways from a zero of column 0."""
    two = _log_two(gains)
    rows = [gains[0]]
    for gain in gains[1:]:
        rows.append(gain + torch.logaddexp(rows[-1], two))
    return torch.stack(rows)


def _log_two(like: Tensor) -> Tensor:
    return like.new_tensor(2.0).log()
