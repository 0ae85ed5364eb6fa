"""STRM: TRX on frames that were enriched over their patches and over time, with a second, simpler tuple similarity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache.errors import pick
from .base import Encoding, Head, Inputs, cross_entropy
from .grids import grid_side
from .tuples import Positions, TupleAttention, fitting, project_slots, selection, some_clips

SIDE = 4
"""Side of the grid of tokens that the patch level works on; larger ones are pooled to it."""

QCS_WEIGHT = 0.1
"""Share of the query-class similarity in the loss and in the logits."""

QCS_MODES = {"registered": True, "frozen_random": False}
"""Whether the similarity's weights are trained."""


@dataclass(frozen=True)
class StrmConfig:
    """Hyperparameters of `Strm`."""

    spatial: bool = True
    """Work on spatial tokens; False: on pooled frames, without the patch level."""
    cardinalities: tuple[int, ...] = (2,)
    """Frames of a tuple (Omega). Those above the frames of a clip are left out."""
    dim: int = 256
    """Width of TRX's keys and values."""
    dropout: float = 0.1
    """Wherever the original drops: on tokens and frames after positions are added, and before the similarity."""
    qcs: str = "registered"
    """The weights of the query-class similarity: `registered` (trained, as the paper has it) or `frozen_random` (never
    trained, as in the released code, where the optimiser and the checkpoints do not know of them)."""
    soft_start: bool = True
    """For frozen features: start from residual branches that add nothing and orthogonal maps, not from random ones, and
    scale logits by the spread of the base clips."""


class PatchEnrichment(nn.Module):
    """Attention among the tokens of a frame, then a residual perceptron: [m, P, D] -> [m, P, D]."""

    def __init__(self, tokens: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.positions = Positions(tokens, dim, dropout)
        self.query_proj, self.key_proj, self.value_conv = (nn.Linear(dim, dim) for _ in range(3))
        self.gamma = nn.Parameter(torch.zeros(1))
        half = dim // 2
        self.inp_fc, self.hid_fc, self.out_fc = nn.Linear(dim, half), nn.Linear(half, half), nn.Linear(half, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Enrich; the attention's energies are not divided by sqrt(D), as in the original."""
        placed: Tensor = self.positions(x)
        attention = (self.query_proj(placed) @ self.key_proj(placed).mT).softmax(-1)
        mixed = placed + self.gamma * (attention @ self.value_conv(placed))
        branch: Tensor = self.out_fc(self.hid_fc(self.inp_fc(mixed).relu()).relu())
        enriched: Tensor = mixed + branch
        return enriched


class FrameEnrichment(nn.Module):
    """A perceptron over time, then one over channels, each residual: [n, T, D] -> [n, T, D]."""

    def __init__(self, frames: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.positions = Positions(frames, dim, dropout)
        self.time_in, self.time_out = nn.Linear(frames, frames), nn.Linear(frames, frames)
        self.channel_in, self.channel_out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Enrich."""
        placed: Tensor = self.positions(x)
        mixed = placed + self.time_out(self.time_in(placed.mT).relu()).mT
        branch: Tensor = self.channel_out(self.channel_in(mixed).relu())
        enriched: Tensor = mixed + branch
        return enriched


class TupleSimilarity(nn.Module):
    """Distance of each query tuple to the nearest support tuple of a class, for one cardinality."""

    chosen: Tensor

    def __init__(self, frames: int, dim: int, cardinality: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim * cardinality, dim // 2)
        self.register_buffer("chosen", selection(frames, cardinality), persistent=False)

    def encode(self, frames: Tensor) -> Tensor:
        """Embed tuples: [n, T, D] -> [n, tuples, D / 2]."""
        slots = project_slots(self.dropout(frames), self.linear.weight, self.linear.bias)
        embedded: Tensor = (self.chosen @ slots).relu()
        return embedded

    def forward(self, support: Tensor, query: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mean over a query's tuples of their distances: [B, N, K, tuples, d], [B, Q, tuples, d] -> [B, Q, N].

        Inner products find the nearest tuple; its distance is then taken from the difference, exactly, and alone has a
        gradient (0 where both coincide).
        """
        nearest = self._nearest(support.detach(), query.detach(), mask)
        batch, way, queries = nearest.shape[:3]
        width = support.shape[-1]
        index = nearest.flatten(2)[..., None].expand(-1, -1, -1, width)
        found = support.flatten(2, 3).gather(2, index).view(batch, way, queries, -1, width)
        distance: Tensor = torch.linalg.vector_norm(query[:, None] - found, dim=-1)
        return distance.mean(-1).mT

    def _nearest(self, support: Tensor, query: Tensor, mask: Tensor | None) -> Tensor:
        """Which of a class's support tuples is nearest: positions among its K tuples, [B, N, Q, tuples]."""
        if mask is not None:
            support = support.where(mask[..., None, None], 0)
        centre = query.mean((1, 2))[:, None]
        tuples, others = query.flatten(1, 2) - centre, support.flatten(1, 3) - centre
        excess = others.square().sum(-1)[:, None] - 2 * tuples @ others.mT
        excess = excess.view(*excess.shape[:2], support.shape[1], support.shape[2], -1)
        if mask is not None:
            excess = excess.masked_fill(~mask[:, None, :, :, None], torch.inf)
        return torch.unflatten(excess.flatten(-2).argmin(-1), 1, query.shape[1:3]).movedim(-1, 1)


class Strm(Head):
    """Patch-level and frame-level enrichment, TRX, and a query-class similarity beside it.

    Thatipelli et al., "Spatio-temporal Relation Modeling for Few-shot Action Recognition", CVPR 2022, section 3;
    github.com/Anirudh257/strm, 54368fe. Logits are TRX's plus 0.1 of the similarity's; each has a cross-entropy of its
    own in the loss, with the same weights. Where code and paper differ: `StrmConfig.qcs`, and the similarity's dropout,
    which the code leaves on in evaluation, is off there, so that results repeat.

    Args:
        inputs: What the head is built for.
        config: Its hyperparameters.

    Raises:
        UserError: If tokens are needed and there are none, or they make no square, or no cardinality fits.
    """

    config_type: ClassVar[type[StrmConfig]] = StrmConfig

    def __init__(self, inputs: Inputs, config: StrmConfig) -> None:
        super().__init__(inputs)
        sizes = fitting(config.cardinalities, inputs.frames)
        trained = pick(QCS_MODES, config.qcs, "qcs")
        frames, dim, dropout = inputs.frames, inputs.dim, config.dropout
        self.patches: PatchEnrichment | None = None
        self.side = grid_side("strm", inputs, config.spatial)
        if config.spatial:
            self.patches = PatchEnrichment(min(self.side, SIDE) ** 2, dim, dropout)
        self.frames = FrameEnrichment(frames, dim, dropout)
        transformers = nn.ModuleList(TupleAttention(frames, dim, config.dim, size, dropout) for size in sizes)
        self.transformers = cast("Sequence[TupleAttention]", transformers)
        similarities = nn.ModuleList(TupleSimilarity(frames, dim, size, dropout) for size in sizes)
        self.similarities = cast("Sequence[TupleSimilarity]", similarities.requires_grad_(trained))
        self.soft_start = config.soft_start
        if self.soft_start:
            self._start_softly()

    def _start_softly(self) -> None:
        branches = [self.frames.time_out, self.frames.channel_out]
        if self.patches is not None:
            branches.append(self.patches.out_fc)
        for linear in branches:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        for transformer in self.transformers:
            transformer.soft_start()

    def start(self, clips: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """Set the temperatures of a soft start by the spread of the clips."""
        if not self.soft_start:
            return
        mode = self.training
        self.eval()
        with torch.no_grad():
            enriched = self.frames(self._pooled(some_clips(clips, generator).to(next(self.parameters()))))
        for transformer in self.transformers:
            transformer.soft_scale(enriched)
        self.train(mode)

    def encode(self, clips: Tensor) -> Encoding:
        """Enrich and embed: the similarity's tuples of each cardinality, then TRX's four tensors of each."""
        pooled = self._pooled(clips)
        tuples = [similarity.encode(pooled) for similarity in self.similarities]
        enriched = self.frames(pooled)
        return (*tuples, *(part for transformer in self.transformers for part in transformer.encode(enriched)))

    def _pooled(self, clips: Tensor) -> Tensor:
        """Frames as one feature each, enriched over their patches where there are any: -> [n, T, D]."""
        if self.patches is None:
            return clips.mean(2) if self.inputs.tokens else clips
        tokens = _coarse(clips.flatten(0, 1), self.side)
        pooled: Tensor = self.patches(tokens).mean(1)
        return pooled.view(*clips.shape[:2], -1)

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, N]."""
        relation, similarity = self._parts(support, query, mask)
        return relation + QCS_WEIGHT * similarity

    def learn(
        self, support: Encoding, query: Encoding, labels: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits, and the weighted cross-entropies of both parts."""
        relation, similarity = self._parts(support, query)
        losses = cross_entropy(relation, labels) + QCS_WEIGHT * cross_entropy(similarity, labels)
        return relation + QCS_WEIGHT * similarity, losses

    def _parts(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits of TRX and of the similarity, [B, Q, N] each."""
        count = len(self.similarities)
        similarity = [part(support[i], query[i], mask) for i, part in enumerate(self.similarities)]
        relation = [
            part(support[i : i + 4], query[i : i + 4], mask)
            for i, part in zip(range(count, 5 * count, 4), self.transformers, strict=True)
        ]
        return -torch.stack(relation).mean(0), -torch.stack(similarity).mean(0)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers of the largest cardinality's TRX, or of the similarity's products and of the tuples it finds."""
        largest = max(transformer.footprint(way, shot, queries) for transformer in self.transformers)
        tuples = max(len(similarity.chosen) for similarity in self.similarities)
        found = way * queries * tuples * (3 * shot * tuples + self.inputs.dim)
        return max(largest, found)

    def original_names(self) -> dict[str, str]:
        """Ours -> the original's. `patches` and `frames` are its `attn_pat` and `fr_enrich`.

        Released checkpoints lack the similarity's weights (`new_dist_loss_post_pat`) and load where `qcs` is
        `frozen_random`; where it is `registered`, a checkpoint needs them, named as by an nn.ModuleList.
        """
        return {name: _original(name) for name, parameter in self.named_parameters() if parameter.requires_grad}


RENAMED = {
    "patches.inp_fc": "attn_pat.Bot_MLP.inp_fc",
    "patches.hid_fc": "attn_pat.Bot_MLP.hid_fc",
    "patches.out_fc": "attn_pat.Bot_MLP.out_fc",
    "patches": "attn_pat",
    "frames.time_in": "fr_enrich.Tok_MLP.inp_fc",
    "frames.time_out": "fr_enrich.Tok_MLP.out_fc",
    "frames.channel_in": "fr_enrich.Bot_MLP.inp_fc",
    "frames.channel_out": "fr_enrich.Bot_MLP.out_fc",
    "similarities": "new_dist_loss_post_pat",
}
"""How names begin here -> there; the first that fits counts."""


def _original(name: str) -> str:
    for ours, theirs in RENAMED.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours).replace(".linear.", ".clsW.")
    return name


def _coarse(tokens: Tensor, side: int) -> Tensor:
    """Grids above 4 x 4 pooled to that by their maxima, as the original pools 7 x 7: [m, P, D] -> [m, 16, D]."""
    if side <= SIDE:
        return tokens
    return functional.adaptive_max_pool2d(torch.unflatten(tokens.mT, -1, (side, side)), SIDE).flatten(-2).mT
