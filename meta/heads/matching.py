"""Matching Networks: a class's share of the attention over all support clips."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ...cache.errors import UserError
from .base import Encoding, Head, Inputs, PairHead
from .parts import FrameEmbedding, cosine

FLOOR = 1e-6
"""Added to a probability before its logarithm."""


@dataclass(frozen=True)
class MatchingConfig:
    """Shape of the head."""

    dim: int = 256
    """Width of the frame embedding; 0: the cached features as they are."""
    temperature: float = 10.0
    """Factor of the cosines."""
    eps: float = 1e-8
    """Added to the product of the norms."""


class MatchingNet(PairHead):
    """Logit = log(1e-6 + p), p the sum over a class's clips of a softmax of cosines over ALL support clips.

    Matching Networks (Vinyals et al., NeurIPS 2016), eq. 1, without full context embeddings, on mean-pooled frame
    features: the setting that video papers compare with since CMN. The paper's cosine has no temperature.
    """

    config_type = MatchingConfig

    def __init__(self, inputs: Inputs, config: MatchingConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.embedding = FrameEmbedding(inputs.dim, config.dim)

    def encode(self, clips: Tensor) -> Encoding:
        """Mean of the embedded frames: [n, T, D] -> [n, d]."""
        return (self.embedding(clips).mean(-2),)

    def pair(self, query: Encoding, support: Encoding) -> Tensor:
        """Cosines: [..., A, d] and [..., S, d] -> [..., A, S]."""
        return cosine(query[0], support[0], self.config.eps)

    def reduce(self, pairs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits of cosines: [B, Q, N, K] -> [B, Q, N]."""
        return attention_logits(self.config.temperature * pairs, mask)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Products, norms, quotients and attention of all pairs."""
        return 6 * way * shot * queries


def attention_logits(scores: Tensor, mask: Tensor | None) -> Tensor:
    """log(1e-6 + sum over a class of the softmax over all support clips): [B, Q, N, K] -> [B, Q, N]."""
    if mask is not None:
        scores = scores.where(mask[:, None], -torch.inf)
    attention = scores.flatten(2).softmax(-1).view_as(scores)
    return (attention.sum(-1) + FLOOR).log()


@dataclass(frozen=True)
class FullContextConfig(MatchingConfig):
    """Shape of the head."""

    steps: int = 5
    """Processing steps of a query."""

    def __post_init__(self) -> None:
        """Refuse to read a query never."""
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}; settings of matching-fce; give 1 or more")


class FullContext(Head):
    """Matching Networks whose embeddings see the whole support set (FCE).

    Vinyals et al., appendix: support clips pass a bidirectional LSTM, g = forward + backward + z; a query is read
    several times by an LSTM that attends to g, h = LSTM(z, [h, r]) + z and r = sum of softmax(h . g) g; cosines of h
    and g then give logits as in `MatchingNet`. Readings: the paper's LSTM takes [h, r] as its state, here r stands
    beside its input, which is the same map; h and r start at 0; the number of steps is fixed.

    The bidirectional LSTM runs over the support set class by class, so the logits depend on the order of the clips and
    of the classes. Both are random in training episodes: that is the shuffling which the method asks for.
    """

    config_type = FullContextConfig
    order_dependent = True
    """Permuted support clips or classes give other logits, by definition."""

    def __init__(self, inputs: Inputs, config: FullContextConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.embedding = FrameEmbedding(inputs.dim, config.dim)
        width = self.embedding.dim
        self.context = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.reader = nn.LSTMCell(2 * width, width)

    def encode(self, clips: Tensor) -> Encoding:
        """Mean of the embedded frames: [n, T, D] -> [n, d]."""
        return (self.embedding(clips).mean(-2),)

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, N] of [B, N, K, d] and [B, Q, d]."""
        shape = support[0].shape[1:3]
        present = None if mask is None else mask.flatten(1)
        context = self._in_context(support[0].flatten(1, 2), present)
        read = self._read(query[0], context, present)
        cosines = cosine(read, context, self.config.eps).view(*query[0].shape[:2], *shape)
        return attention_logits(self.config.temperature * cosines, mask)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Gates and states of both LSTMs, and the attention."""
        width, clips = self.embedding.dim, way * shot
        return (14 * clips + 12 * self.config.steps * queries) * width + 4 * self.config.steps * clips * queries

    def _in_context(self, clips: Tensor, present: Tensor | None) -> Tensor:
        """Support clips [B, M, d] -> g [B, M, d]; clips that do not exist are no step of the LSTM."""
        if present is None:
            return clips + self._both_ways(self.context(clips)[0])
        order = present.logical_not().argsort(dim=-1, stable=True)[..., None].expand_as(clips)
        lengths = present.sum(-1).cpu()
        packed = pack_padded_sequence(clips.gather(1, order), lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.context(packed)[0], batch_first=True, total_length=clips.shape[1])
        return clips + torch.zeros_like(clips).scatter(1, order, self._both_ways(states))

    def _both_ways(self, states: Tensor) -> Tensor:
        forward, backward = states.chunk(2, -1)
        return forward + backward

    def _read(self, query: Tensor, context: Tensor, present: Tensor | None) -> Tensor:
        """Queries [B, Q, d] -> h [B, Q, d] after all steps."""
        flat = query.flatten(0, 1)
        hidden = cell = read = torch.zeros_like(flat)
        for _ in range(self.config.steps):
            state, cell = self.reader(torch.cat([flat, read], -1), (hidden, cell))
            hidden = state + flat
            scores = hidden.view_as(query) @ context.mT
            if present is not None:
                scores = scores.where(present[:, None], -torch.inf)
            read = (scores.softmax(-1) @ context).view_as(flat)
        return hidden.view_as(query)
