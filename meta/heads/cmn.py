"""Compound memory network (Zhu and Yang 2018), without its stream of training memories, and its lite version."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache.errors import UserError
from .base import Encoding, Inputs, PairHead, PrototypeHead
from .parts import FrameEmbedding


@dataclass(frozen=True)
class CmnLiteConfig:
    """Saliencies and scale of CMN-lite."""

    dim: int = 256
    """Width of the frame embedding; 0: frames stay as they are."""
    saliencies: int = 8
    """Points of interest (m)."""
    spread: float = 0.1
    """Standard deviation of their random start. 0: all start at 1e-8 as in the original, and stay equal for ever."""
    scale: float = 0.1
    """Factor of the squared distances; the original has 1."""

    def __post_init__(self) -> None:
        """Refuse values that make no head."""
        _check(self.saliencies, self.spread)


@dataclass(frozen=True)
class CmnConfig:
    """Saliencies, keys and loss of CMN."""

    dim: int = 256
    """Width of the frame embedding; 0: frames stay as they are."""
    saliencies: int = 5
    """Points of interest (m): constituent keys of a clip."""
    key_dim: int = 256
    """Width of a constituent key (d_c)."""
    spread: float = 0.1
    """Standard deviation of the points' random start."""
    margin: float = 0.5
    """By how much the best clip of the query's class should be more similar than the best of the others."""
    scale: float = 2.0
    """Factor of the logits, sums of m cosines; the loss is of the sums as they are."""

    def __post_init__(self) -> None:
        """Refuse values that make no head."""
        _check(self.saliencies, self.spread)
        if self.key_dim < 1 or not self.scale > 0:
            raise UserError(f"key_dim {self.key_dim}, scale {self.scale}; head 'cmn'; give at least 1 and above 0")


def _check(saliencies: int, spread: float) -> None:
    if saliencies < 1 or spread < 0:
        raise UserError(f"saliencies {saliencies}, spread {spread}; head 'cmn'; give at least 1 and 0")


class MultiSaliency(nn.Module):
    """A clip as one row for each of m learnt points h_j, [n, T, D] -> [n, m, D].

    Each frame is shared out among the points, A_tj = softmax_j(f_t . h_j / sqrt(D)), and a row is what falls to its
    point, q_j = sum_t A_tj (f_t - h_j), at unit length.

    Args:
        dim: Width of the frames (D).
        saliencies: Points (m).
        spread: Standard deviation of their start; 0: the constant 1e-8.
    """

    def __init__(self, dim: int, saliencies: int, spread: float) -> None:
        super().__init__()
        constant = torch.full((saliencies, dim), 1e-8)
        self.points = nn.Parameter(spread * torch.randn(saliencies, dim) if spread else constant)

    def forward(self, clips: Tensor) -> Tensor:
        """Embed clips."""
        share = (clips @ self.points.T / math.sqrt(clips.shape[-1])).softmax(-1)
        rows = share.mT @ clips - share.sum(1)[..., None] * self.points
        return functional.normalize(rows, dim=-1)


class CmnLite(PrototypeHead):
    """ProtoNet on the multi-saliency embedding, [n, T, D] -> v = Linear(m D -> D) of its rows, [n, D].

    The version of Zhu et al., "A Closer Look at Few-Shot Video Classification", BMVC 2021; original: MCG-NJU/FSL-Video
    5c3c050. The linear map starts as the SUM of the rows (the source calls it an average). Where the points start as a
    constant, as there, they get equal gradients and never part: the start is random unless `spread` is 0.

    Args:
        inputs: What the head is built for.
        config: Saliencies and scale.
    """

    config_type = CmnLiteConfig

    def __init__(self, inputs: Inputs, config: CmnLiteConfig) -> None:
        super().__init__(inputs)
        self.scale = config.scale
        self.frames = FrameEmbedding(inputs.dim, config.dim)
        dim = self.frames.dim
        self.saliency = MultiSaliency(dim, config.saliencies, config.spread)
        self.out = nn.Linear(config.saliencies * dim, dim)
        with torch.no_grad():
            self.out.weight.copy_(torch.eye(dim).repeat(1, config.saliencies))
        nn.init.zeros_(self.out.bias)

    def embed(self, clips: Tensor) -> Tensor:
        """Embed clips."""
        embedded: Tensor = self.out(self.saliency(self.frames(clips)).flatten(1))
        return embedded

    def original_names(self) -> dict[str, str]:
        """Ours -> FSL-Video's; the frame embedding takes the place of its backbone."""
        return {"saliency.points": "h", "out.weight": "fc.weight", "out.bias": "fc.bias"}


class Cmn(PairHead):
    """Nearest neighbour under the sum of the cosines of constituent keys, [n, T, D] -> keys [n, m d_c].

    Zhu and Yang, "Compound Memory Networks for Few-shot Video Classification", ECCV 2018; there is no public code
    (ffmpbgrnn/CMN holds splits). A clip's key is its multi-saliency embedding, each row through one Linear(D -> d_c),
    at unit length. In evaluation the paper clears the memory, writes the supports and reads the nearest: the logit of a
    class is the largest similarity of its supports. Readings:

    - Training has the memory of evaluation, the episode's supports, with the paper's loss max(0, margin - best of the
      query's class + best of the others). The paper trains on a stream of clips, where 2048 slots with ages are
      averaged and overwritten in turn; episodes on cached features have no such stream.
    - The abstract keys only pick, among those slots, the k candidates that constituent keys then compare. We take the
      few supports of an episode for candidates all, so no abstract key could change a logit, and none is built.

    Args:
        inputs: What the head is built for.
        config: Saliencies, keys and loss.
    """

    config_type = CmnConfig

    def __init__(self, inputs: Inputs, config: CmnConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.frames = FrameEmbedding(inputs.dim, config.dim)
        dim = self.frames.dim
        self.saliency = MultiSaliency(dim, config.saliencies, config.spread)
        self.key = nn.Linear(dim, config.key_dim)
        (nn.init.eye_ if dim == config.key_dim else nn.init.orthogonal_)(self.key.weight)
        nn.init.zeros_(self.key.bias)

    def encode(self, clips: Tensor) -> Encoding:
        """Constituent keys, each at unit length, one after the other: [n, m d_c]."""
        keys = functional.normalize(self.key(self.saliency(self.frames(clips))), dim=-1)
        return (keys.flatten(1),)

    def pair(self, query: Encoding, support: Encoding) -> Tensor:
        """Scale times sum of cosines, at most m."""
        return self.config.scale * (query[0] @ support[0].mT)

    def reduce(self, pairs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Best shot of each class, [B, Q, N, K] -> [B, Q, N]."""
        return (pairs if mask is None else pairs.masked_fill(~mask[:, None], -math.inf)).amax(-1)

    def learn(
        self, support: Encoding, query: Encoding, labels: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, Q, N] and hinge losses [B, Q]."""
        logits = self.score(support, query)
        similarity = logits / self.config.scale
        own = similarity.gather(-1, labels[..., None])
        other = similarity.scatter(-1, labels[..., None], -math.inf).amax(-1)
        return logits, (self.config.margin - own[..., 0] + other).clamp_min(0)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers of the pairs and the logits."""
        return queries * way * (2 * shot + 1)
