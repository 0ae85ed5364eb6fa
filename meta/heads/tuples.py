"""Attention between ordered tuples of frames, factorised: what TRX and STRM share.

A linear map of a concatenated tuple is a sum of one map per slot, W [f_i; f_j] + b = W_1 f_i + W_2 f_j + b, so frames
are projected once per slot and a tuple is a sum of projections. With A the 0/1 matrix of which tuple holds which slot
projection, all inner products of two clips' tuples are A (P P'^T) A^T: at 8 frames the 18 projections of the triples
take 18^2 products of width d instead of 56^2. LayerNorm of the keys and the distances of the values keep that form.
"""

import math
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache.errors import UserError
from .parts import sinusoids

BLOCK = 2**22
"""Attention weights computed at once (16 MiB): blocks of query tuples are taken in turn where there are more."""

SPREAD = 5.0
"""Total variance of tuples' values, times the temperature, after a soft start: logits then differ by about one."""

START_CLIPS = 256
"""Clips that a start looks at, at most."""


def fitting(cardinalities: tuple[int, ...], frames: int) -> list[int]:
    """The cardinalities that clips of this many frames have tuples of; larger ones are left out.

    Raises:
        UserError: If one is below 1, or none is left.
    """
    kept = [size for size in cardinalities if size <= frames]
    if not kept or min(kept) < 1:
        raise UserError(f"cardinalities are {cardinalities}; clips of {frames} frames; give numbers from 1 to {frames}")
    return kept


def selection(frames: int, cardinality: int) -> Tensor:
    """Which slot projections each ordered tuple holds, 0/1: [tuples, slots], in the order of `project_slots`."""
    reach = frames - cardinality + 1
    tuples = list(combinations(range(frames), cardinality))
    chosen = torch.zeros(len(tuples), cardinality * reach)
    for row, frame_ids in enumerate(tuples):
        for slot, frame in enumerate(frame_ids):
            chosen[row, slot * reach + frame - slot] = 1
    return chosen


def project_slots(frames: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Project each frame for each slot of a tuple that it can stand in.

    Args:
        frames: [n, T, D].
        weight: Of the map of concatenated tuples, [d, cardinality * D].
        bias: Of that map [d]; the first slot takes it.

    Returns:
        [n, cardinality * (T - cardinality + 1), d]: slot a of an ordered tuple is one of the frames a, a + 1, ...
    """
    maps = weight.chunk(weight.shape[1] // frames.shape[-1], 1)
    reach = frames.shape[1] - len(maps) + 1
    parts = [
        functional.linear(frames[:, slot : slot + reach], part, None if slot else bias)
        for slot, part in enumerate(maps)
    ]
    return torch.cat(parts, 1)


def some_clips(clips: Tensor, generator: torch.Generator) -> Tensor:
    """At most `START_CLIPS` of the clips, drawn at random."""
    drawn: Tensor = clips[torch.randperm(len(clips), generator=generator)[:START_CLIPS].to(clips.device)]
    return drawn


class Positions(nn.Module):
    """x + 0.1 * sinusoids, then dropout: [..., length, D]."""

    table: Tensor

    def __init__(self, length: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("table", 0.1 * sinusoids(length, dim), persistent=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Add positions."""
        placed: Tensor = self.dropout(x + self.table)
        return placed


class TupleAttention(nn.Module):
    """Distance of a query to each class's prototypes, one prototype per query tuple: TRX for one cardinality.

    Parameters are those of the original's TemporalCrossTransformer, but for its `norm_v`, which it never uses. The
    value bias cancels in every distance; it is there because the checkpoints have it. The temperature, a constant, is
    ours: 1, as good as none, unless `soft_scale` sets it.

    Args:
        frames: Frames of a clip (T).
        features: Width of the features (D).
        dim: Width of keys and values (d).
        cardinality: Frames of a tuple.
        dropout: On the frames, after their positions are added.
    """

    chosen: Tensor
    temperature: Tensor

    def __init__(self, frames: int, features: int, dim: int, cardinality: int, dropout: float) -> None:
        super().__init__()
        if dim < 1:
            raise UserError(f"dim is {dim}; head of tuples; give 1 or more")
        self.positions = Positions(frames, features, dropout)
        self.k_linear = nn.Linear(features * cardinality, dim)
        self.v_linear = nn.Linear(features * cardinality, dim)
        self.norm_k = nn.LayerNorm(dim)
        self.cardinality = cardinality
        self.register_buffer("chosen", selection(frames, cardinality), persistent=False)
        # Not in the weights: steps of the optimiser would then be as large as the features are.
        self.register_buffer("temperature", torch.ones(()))

    def soft_start(self) -> None:
        """Start from orthogonal maps instead of random ones: they keep the distances of tuples as well as can be."""
        for linear in (self.k_linear, self.v_linear):
            nn.init.orthogonal_(linear.weight)
            nn.init.zeros_(linear.bias)

    @torch.no_grad()
    def soft_scale(self, clips: Tensor) -> None:
        """Set the temperature so that the values of the tuples of these clips, [n, T, D], vary by `SPREAD` in all."""
        values = (self.chosen @ self.encode(clips)[3]).flatten(0, 1)
        variance = values.var(0, unbiased=False).sum()
        if variance > 0:
            self.temperature.copy_(SPREAD / variance)

    def encode(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Project frames for each slot: [n, T, D] -> keys, their LayerNorm's factors and shifts, values.

        With x the sum of a tuple's centred slot projections, its key is LayerNorm(x) = x w / deviation + bias. Of the
        score of two keys, what depends on the query's alone cancels in the softmax over the support.

        Returns:
            Keys x w d^(-1/4) [n, slots, d], 1 / deviation [n, tuples], keys . bias d^(-1/4) [n, slots], values
            [n, slots, d].
        """
        frames = self.positions(clips)
        weight, bias = self.k_linear.weight, self.k_linear.bias
        centred = project_slots(frames, weight - weight.mean(0), bias - bias.mean())
        variance = ((self.chosen @ (centred @ centred.mT)) * self.chosen).sum(-1) / centred.shape[-1]
        quarter = centred.shape[-1] ** -0.25
        keys = centred * (self.norm_k.weight * quarter)
        spread = (variance.clamp_min(0) + self.norm_k.eps).rsqrt()
        values = project_slots(frames, self.v_linear.weight, self.v_linear.bias)
        return keys, spread, keys @ (self.norm_k.bias * quarter), values

    def forward(self, support: tuple[Tensor, ...], query: tuple[Tensor, ...], mask: Tensor | None = None) -> Tensor:
        """Mean squared distance, times the temperature, of a query's tuples to what they attend to in a class.

        Args:
            support: What `encode` gives, [B, N, K, ...].
            query: What `encode` gives, [B, Q, ...].
            mask: True where a support clip exists [B, N, K].

        Returns:
            [B, Q, N].
        """
        if mask is not None:
            support = tuple(part.where(mask.view(*mask.shape, *[1] * (part.dim() - 3)), 0) for part in support)
        centre = self._centre(support[3].detach(), mask)
        support_values, query_values = support[3] - centre[:, None, None], query[3] - centre[:, None]
        scores = _products(query[0], support[0])
        products = torch.unflatten(_products(query_values, support_values), -1, support[0].shape[1:4])
        products = products.movedim(3, 1).flatten(-2)
        within = support_values.flatten(2, 3)
        within = within @ within.mT
        distance = ((query_values @ query_values.mT) * (self.chosen.mT @ self.chosen)).sum((-2, -1))[..., None]
        tuples = len(self.chosen)
        step = max(1, BLOCK // (support[1].numel() * query[1].shape[1]))
        for start in range(0, tuples, step):
            part = slice(start, start + step)
            held = self._attend(scores, support, query[1][..., part], self.chosen[part], mask)
            lead = (*held.shape[:3], self.chosen.shape[1], -1)
            crossed = ((self.chosen[part].mT @ held).view(lead) * products).sum((-2, -1))
            flat = held.flatten(2, 3)
            own = ((flat @ within) * flat).sum(-1).view(*held.shape[:4]).sum(-1)
            distance = distance + (own - 2 * crossed).mT
        return distance.clamp_min(0) * (self.temperature / tuples)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers that `forward` holds at its peak for one episode: values, products of slots, attention."""
        tuples, slots = self.chosen.shape
        pairs = way * shot * queries
        values = (way * shot + queries) * slots * self.v_linear.out_features
        attention = pairs * tuples * (tuples + 3 * slots)
        return values + pairs * 3 * slots**2 + way * (shot * slots) ** 2 + min(2 * attention, 3 * BLOCK)

    def _centre(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """Mean value of each slot of the tuples over an episode's support: [B, N, K, slots, d] -> [B, slots, d].

        Less it, values have the same distances (attention sums to one), so it takes no gradient; without it expanded
        squares would lose digits.
        """
        clips = values.flatten(1, 2)
        total = clips.mean(1) if mask is None else clips.sum(1) / mask.flatten(1).sum(1)[:, None, None]
        slots = torch.unflatten(total, 1, (self.cardinality, -1))
        return slots.mean(2, keepdim=True).expand_as(slots).flatten(1, 2)

    def _attend(
        self, scores: Tensor, support: tuple[Tensor, ...], spread: Tensor, chosen: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attention of query tuples, summed over the support tuples that hold a slot projection.

        Args:
            scores: Inner products of the slots' keys, [B, Q, slots, N K slots].
            support: What `encode` gives, [B, N, K, ...].
            spread: Factors of these query tuples, [B, Q, p].
            chosen: Their rows of the selection, [p, slots].
            mask: True where a support clip exists [B, N, K].

        Returns:
            [B, N, Q, p, K slots].
        """
        batch, way, shot, slots = support[0].shape[:4]
        queries, rows = spread.shape[1:]
        logits = (spread[..., None] * chosen) @ scores + support[2].view(batch, 1, 1, -1)
        logits = logits.view(batch, queries * rows, way * shot, slots).transpose(1, 2)
        logits = logits @ (support[1].flatten(1, 2)[..., None, :] * self.chosen.mT)
        logits = torch.unflatten(logits, 1, (way, shot))
        if mask is not None:
            logits = logits.masked_fill(~mask[..., None, None], -math.inf)
        weights = logits.transpose(2, 3).flatten(-2).softmax(-1)
        held = torch.unflatten(weights, -1, (shot, -1)) @ self.chosen
        return held.view(batch, way, queries, rows, shot * slots)


def _products(query: Tensor, support: Tensor) -> Tensor:
    """Inner products of all slots: [B, Q, slots, d] and [B, N, K, slots, d] -> [B, Q, slots, N K slots]."""
    products = query.flatten(1, 2) @ support.flatten(1, 3).mT
    return torch.unflatten(products, 1, query.shape[1:3])
