"""TARN: a support clip is aligned to the query by attention, and a recurrent network compares the two step by step."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache.errors import UserError, pick
from .base import Encoding, Inputs, PairHead, cross_entropy, shot_mean
from .parts import FrameEmbedding


def multiplied(query: Tensor, aligned: Tensor) -> Tensor:
    """Products e * h, [..., W]: the best in the paper."""
    return query * aligned


def subtracted(query: Tensor, aligned: Tensor) -> Tensor:
    """Differences e - h, [..., W]."""
    return query - aligned


def measured(query: Tensor, aligned: Tensor) -> Tensor:
    """cos(e, h) and |e - h|, [..., 2]: the unofficial code's choice."""
    cosines = functional.cosine_similarity(query, aligned, dim=-1, eps=1e-6)
    return torch.stack([cosines, torch.linalg.vector_norm(query - aligned, dim=-1)], -1)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of every class's relation score, mean over the classes: [B, Q, N] and [B, Q] -> [B, Q]."""
    targets = functional.one_hot(labels, logits.shape[-1]).to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)


COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mult": multiplied,
    "subt": subtracted,
    "euccos": measured,
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "bce": binary_cross_entropy}
SOFTMAX_AXES = {"support": -1, "query": -2}
"""Axes of [..., T_q, T_s]."""


@dataclass(frozen=True)
class TarnConfig:
    """Sizes, comparison and loss of TARN."""

    dim: int = 128
    """Width of the frame embedding; 0: the cached features themselves."""
    hidden: int = 64
    """Width of the encoder's GRU in each direction."""
    relation: int = 64
    """Width of the GRU that compares."""
    comparison: str = "mult"
    """A key of `COMPARISONS`."""
    softmax_axis: str = "support"
    """A key of `SOFTMAX_AXES`: over which frames alignment weights sum to 1; "query" is the unofficial code's."""
    loss: str = "ce"
    """A key of `LOSSES`. "bce" also averages the sigmoids over shots, "ce" what goes into them."""
    dropout: float = 0.0
    """Share of the features that training sets to 0."""
    gain: float = 10.0
    """Start of the factor of the mean cosine of query and aligned support in the logit; 0: no such cosine."""
    identity_start: bool = True
    """Start alignment at plain inner products; False: at random."""

    def __post_init__(self) -> None:
        """Refuse unknown names and sizes that make no head."""
        pick(COMPARISONS, self.comparison, "comparison of tarn")
        pick(SOFTMAX_AXES, self.softmax_axis, "softmax_axis of tarn")
        pick(LOSSES, self.loss, "loss of tarn")
        if min(self.hidden, self.relation) < 1:
            raise UserError(f"hidden is {self.hidden}, relation {self.relation}; a GRU needs at least 1; raise it")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it is a share below 1; give 0 or more, but less than 1")
        if self.gain < 0:
            raise UserError(f"gain is {self.gain}; a factor of similarities cannot be negative; give 0 or more")


class Tarn(PairHead):
    """Temporal attentive relation network (Bishay et al., BMVC 2019; the unofficial Seleucia/TARN bb2011a, tarn.py).

    A bidirectional GRU encodes each clip. Alignment of support S to query E: softmax over the support's frames of
    (S W^T + b) E^T, so that every query frame e has an h, a mean of support frames. The comparison of e and h goes
    through a second GRU, and a linear map of its last state is the relation score before its sigmoid.

    The unofficial code's softmax runs over the QUERY's frames, so the weights of one h do not sum to 1; that is an
    option here (over the support's frames b cancels). Ours: the logit adds gain * mean_t cos(e_t, h_t), gain learnt, so
    that on frozen features the start is not a random comparison; `gain` = 0 is the paper's score.
    """

    config_type = TarnConfig

    def __init__(self, inputs: Inputs, config: TarnConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.embed = FrameEmbedding(inputs.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        width = 2 * config.hidden
        self.encoder = nn.GRU(self.embed.dim, config.hidden, batch_first=True, bidirectional=True)
        self.align = nn.Linear(width, width, bias=False)
        self.align_bias = nn.Parameter(torch.ones(width))
        compared = 2 if config.comparison == "euccos" else width
        self.relation = nn.GRU(compared, config.relation, batch_first=True)
        self.out = nn.Linear(config.relation, 1)
        self.gain = nn.Parameter(torch.tensor(config.gain)) if config.gain else None
        if config.identity_start:
            nn.init.eye_(self.align.weight)

    def encode(self, clips: Tensor) -> Encoding:
        """Encoded frames, and as the alignment of a support sees them: twice [n, T, 2 hidden]."""
        frames = clips.mean(2) if self.inputs.tokens else clips
        encoded: Tensor = self.encoder(self.dropout(self.embed(frames)))[0]
        return encoded, self.align(encoded) + self.align_bias

    def pair(self, query: Encoding, support: Encoding) -> Tensor:
        """Relation scores before the sigmoid, [..., A, T, W] and [..., S, T, W] -> [..., A, S]."""
        (frames, _), (values, keys) = query, support
        steps = frames.shape[-2]
        weights = keys @ frames.flatten(-3, -2).mT[..., None, :, :]  # [..., S, T_s, A T_q]
        weights = torch.unflatten(weights, -1, (-1, steps)).movedim(-3, -1)  # [..., S, A, T_q, T_s]
        weights = weights.softmax(SOFTMAX_AXES[self.config.softmax_axis])
        aligned = torch.unflatten(weights.flatten(-3, -2) @ values, -2, (-1, steps))  # [..., S, A, T_q, W]
        frames = frames[..., None, :, :, :]
        compared = COMPARISONS[self.config.comparison](frames, aligned)
        score: Tensor = self.out(self.relation(compared.flatten(0, -3))[1][0])[:, 0].view(compared.shape[:-2])
        if self.gain is not None:
            score = score + self.gain * functional.cosine_similarity(frames, aligned, dim=-1, eps=1e-6).mean(-1)
        return score.mT

    def reduce(self, pairs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean over shots; with "bce" of the sigmoids, as the logit of that mean: [B, Q, N, K] -> [B, Q, N]."""
        if self.config.loss != "bce":
            return shot_mean(pairs, mask)
        absent = torch.zeros_like(pairs, dtype=torch.bool) if mask is None else ~mask[:, None]
        # log mean sigmoid(r) - log mean sigmoid(-r): the number of shots cancels.
        sides = (functional.logsigmoid(sign * pairs).masked_fill(absent, -math.inf).logsumexp(-1) for sign in (1, -1))
        return next(sides) - next(sides)

    def learn(
        self, support: Encoding, query: Encoding, labels: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, Q, N] and the configured loss [B, Q]."""
        logits = self.score(support, query)
        return logits, LOSSES[self.config.loss](logits, labels)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers of the pairs' attention, aligned and compared frames, and of the GRU's gates at every step."""
        frames, width, gates = self.inputs.frames, 2 * self.config.hidden, 4 * self.config.relation
        return way * shot * queries * frames * (2 * frames + 3 * width + gates)

    def original_names(self) -> dict[str, str]:
        """Ours -> those of the unofficial code: feats_gru, W, bias, dml_gru and dml_fc of its `TARN` module."""
        modules = {"encoder": "feats_gru", "align": "W", "relation": "dml_gru", "out": "dml_fc"}
        names = (name.partition(".") for name in self.state_dict())
        found = {f"{module}.{leaf}": f"{modules[module]}.{leaf}" for module, _, leaf in names if module in modules}
        return found | {"align_bias": "bias"}
