"""Matchers of frame similarities: how two clips' cosines of frames become one number."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache.errors import UserError, pick
from .base import Encoding, Head, Inputs, PairHead, shot_mean
from .parts import frame_cosine

MATCHES = dict.fromkeys(("mean", "max", "diagonal", "linear", "chamfer"))
SIDES = dict.fromkeys(("both", "query", "support"))


@dataclass(frozen=True)
class MatcherConfig:
    """Shape of the head."""

    match: str = "chamfer"
    """`mean`, `max`, `diagonal`, `linear` or `chamfer`."""
    side: str = "both"
    """Chamfer: whose frames look for their nearest ones, `query`, `support`, or the mean of `both`."""
    omega: int = 1
    """Frames of a tuple; similarities are those of all ordered tuples."""
    dim: int = 256
    """Width of the embedding of a tuple."""
    temperature: float = 10.0
    """Fixed factor of the logits."""
    eps: float = 1e-8
    """Added to the product of two norms."""
    sums: bool = False
    """`mean` takes the sum over the support clip's frames, the mean over the query's alone, as the original does."""

    def __post_init__(self) -> None:
        """Refuse what makes no head."""
        pick(MATCHES, self.match, "match")
        pick(SIDES, self.side, "side")
        for name in ("omega", "dim"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; settings of a matcher; give 1 or more")


class TupleEmbedding(nn.Module):
    """Linear(omega D -> dim) and LayerNorm on all ordered tuples of frames: [n, T, D] -> [n, C(T, omega), dim].

    The linear map of concatenated frames is a sum of one map for each slot, so every frame is projected omega times and
    the tuples only add: exact, and C(T, omega) / T times less work.

    Args:
        inputs: What the head is built for.
        omega: Frames of a tuple, in the order of time.
        dim: Width of the embedding.

    Raises:
        UserError: If a clip has fewer frames than a tuple.
    """

    def __init__(self, inputs: Inputs, omega: int, dim: int) -> None:
        super().__init__()
        if inputs.frames < omega:
            raise UserError(f"omega is {omega}, but clips have {inputs.frames} frames; matcher; lower head.omega")
        self.omega = omega
        self.fc = nn.Linear(omega * inputs.dim, dim)
        self.layer_norm = nn.LayerNorm(dim)
        # The original's default start is random; rows that are orthogonal keep the frozen features' angles.
        (nn.init.eye_ if dim == omega * inputs.dim else nn.init.orthogonal_)(self.fc.weight)
        nn.init.zeros_(self.fc.bias)

    def forward(self, clips: Tensor) -> Tensor:
        """Embed tuples in lexicographic order: [n, T, D] -> [n, C(T, omega), dim]."""
        slots = self.fc.weight.chunk(self.omega, 1)
        tuples = torch.combinations(torch.arange(clips.shape[-2], device=clips.device), self.omega).unbind(1)
        embedded: Tensor = self.fc.bias
        for weight, frames in zip(slots, tuples, strict=True):
            embedded = embedded + functional.linear(clips, weight).index_select(-2, frames)
        normalised: Tensor = self.layer_norm(embedded)
        return normalised


class _FrameMatcher(Head):
    """What matchers share: the embedding of frames or tuples, and the temperatures."""

    config_type = MatcherConfig
    global_temperature: Tensor

    def __init__(self, inputs: Inputs, config: MatcherConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.embedding = TupleEmbedding(inputs, config.omega, config.dim)
        self.register_buffer("global_temperature", torch.tensor(config.temperature))
        self.temperature_weight = nn.Parameter(torch.ones(1))

    def encode(self, clips: Tensor) -> Encoding:
        """Embed frames or tuples: [n, T, D] -> [n, T', d]."""
        return (self.embedding(clips),)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Products, norms, quotients and matches of all pairs of frames."""
        return 5 * way * shot * queries * math.comb(self.inputs.frames, self.config.omega) ** 2

    def original_names(self) -> dict[str, str]:
        """Ours -> temporal_matching's: its projection head stands in the embedding here."""
        same = ("global_temperature", "temperature_weight")
        embedding = ("fc.weight", "fc.bias", "layer_norm.weight", "layer_norm.bias")
        names = {name: name for name in same} | {f"embedding.{name}": name for name in embedding}
        return names | ({"linear.weight": "matching_function.linear.weight"} if self.config.match == "linear" else {})

    def tempered(self, matches: Tensor) -> Tensor:
        """Matches times both temperatures."""
        return matches * self.temperature_weight * self.global_temperature


class Matcher(_FrameMatcher, PairHead):
    """Logit = temperature * learnt weight * mean over the class's clips of a match of frame cosines.

    Baselines of Rethinking matching-based few-shot action recognition (Bertrand et al., SCIA 2023),
    jbertrand89/temporal_matching 4f14d68, "separate" video-to-class matching. With C [T, T'] the cosines of a query's
    and a support clip's frames (or tuples of frames):

        mean      mean of C; the original's is T' times that, see `MatcherConfig.sums`
        max       largest of C
        diagonal  mean of the diagonal
        linear    one learnt weight for each entry; it starts as the mean
        chamfer   mean over the query's frames of their best cosine, and the same with the clips' roles exchanged

    The original's option to pass C through ViSiL's convolutions first is left out. Its global temperature is learnt
    unless an argument fixes it, as its README's commands do; here it is fixed.
    """

    def __init__(self, inputs: Inputs, config: MatcherConfig) -> None:
        super().__init__(inputs, config)
        if config.match == "linear":
            entries = math.comb(inputs.frames, config.omega) ** 2
            self.linear = nn.Linear(entries, 1, bias=False)
            nn.init.constant_(self.linear.weight, 1 / entries)

    def pair(self, query: Encoding, support: Encoding) -> Tensor:
        """Scaled matches: [..., A, T, d] and [..., S, T, d] -> [..., A, S]."""
        return self.tempered(self._match(frame_cosine(query[0], support[0], self.config.eps)))

    def _match(self, cosines: Tensor) -> Tensor:
        """Match [..., T, T'] -> [...]."""
        match self.config.match:
            case "mean":
                return cosines.sum(-1).mean(-1) if self.config.sums else cosines.mean((-2, -1))
            case "max":
                return cosines.amax((-2, -1))
            case "diagonal":
                return cosines.diagonal(dim1=-2, dim2=-1).mean(-1)
            case "linear":
                matches: Tensor = self.linear(cosines.flatten(-2))
                return matches[..., 0]
        return _sided(self.config.side, cosines.amax(-1).mean(-1), cosines.amax(-2).mean(-1))


class JointChamfer(_FrameMatcher):
    """Chamfer between a query and ALL support clips of a class joined along time.

    "Joint" video-to-class matching of temporal_matching (see `Matcher`): a query's frame looks for the best one among
    all clips of the class. With `omega` = 3 and `temperature` = 100 it is the paper's Chamfer++.
    """

    def __init__(self, inputs: Inputs, config: MatcherConfig) -> None:
        assert config.match == "chamfer", "joint matching is Chamfer's"
        super().__init__(inputs, config)

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, N] of [B, N, K, T, d] and [B, Q, T, d]."""
        cosines = frame_cosine(query[0], support[0].flatten(1, 2), self.config.eps)
        cosines = cosines.view(*cosines.shape[:2], *support[0].shape[1:3], *cosines.shape[3:])
        nearest = cosines.amax(-1)
        if mask is not None:
            nearest = nearest.where(mask[:, None, ..., None], -torch.inf)
        of_support = shot_mean(cosines.amax(-2).mean(-1), mask)
        return self.tempered(_sided(self.config.side, nearest.amax(-2).mean(-1), of_support))


def _sided(side: str, of_query: Tensor, of_support: Tensor) -> Tensor:
    return {"query": of_query, "support": of_support}.get(side, (of_query + of_support) / 2)
