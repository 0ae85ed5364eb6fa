"""HyRSM: clips related within themselves and to their episode, then compared as sets of frames.

Wang et al., "Hybrid Relation Guided Set Matching for Few-shot Action Recognition" (CVPR 2022); original:
alibaba-mmai-research/HyRSM (3d88d37), `CNN_HyRSM_1shot` and `CNN_HyRSM_5shot` in models/base/few_shot.py. Linear maps
are moved to where they are cheap, which changes nothing but rounding: all that is linear in a clip's related frames is
done once per clip, prototypes are means of that, and products with a support's fused frames are taken part by part, so
that these never exist for each query.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache.errors import UserError, pick
from ..prototypes import class_prototypes
from .base import Encoding, Head, Inputs, cross_entropy, shot_mean
from .parts import FrameEmbedding, sinusoids
from .relations import InterRelation, IntraRelation

POSITION_DROPOUT = 0.1
"""Of positioned frames, as in the original."""

SHOTS = {"prototype": True, "each": False}
"""Whether a class is one clip, the mean of its support clips."""

MATCHING = {"sum": False, "mean": True}
"""Whether the distance of two clips is divided by the number of frames."""


@dataclass(frozen=True)
class HyrsmConfig:
    """Shape and start of HyRSM; the defaults are the `fair` ones."""

    dim: int = 256
    """Width of a trained embedding of the frames before everything else; 0: none."""
    heads: int = 4
    """Heads of both attentions."""
    head_dim: int = 32
    """Width of a head; 0: the width of the frames / `heads`."""
    position_a: float = 256.0
    """A: frames are multiplied by sqrt(width / A) before positions are added; the width itself leaves them alone."""
    position_b: float = 1.0
    """B: factor of the positions."""
    doubled_positions: bool = False
    """Whether the wave lengths of the positions fall twice as fast as they should, as they do in the original."""
    shots: str = "prototype"
    """A key of `SHOTS`: `prototype` is the original's 5-shot module, `each` its 1-shot module; equal at one shot."""
    matching: str = "mean"
    """A key of `MATCHING`: the paper has the mean, its code the sum."""
    scale: float = 10.0
    """Factor of the distances."""
    class_weight: float = 0.15
    """Weight of the base classes' cross-entropy in the loss (lambda)."""
    identity_start: bool = True
    """Start with related and fused frames equal to their rectified input; otherwise with the original's random maps."""

    def __post_init__(self) -> None:
        """Refuse unknown names and sizes that mean nothing."""
        pick(SHOTS, self.shots, "shots of head 'hyrsm'")
        pick(MATCHING, self.matching, "matching of head 'hyrsm'")
        if self.heads < 1 or self.dim < 0 or self.head_dim < 0:
            raise UserError(f"{self}: heads must be 1 or more, widths 0 or more; head 'hyrsm'; mend its settings")
        if not self.position_a > 0:
            raise UserError(f"position_a is {self.position_a}; head 'hyrsm'; frames are divided by its root: raise it")


class Hyrsm(Head):
    """Frames related within a clip, clips related within an episode, sets of frames compared.

    `encode` gives, of the related frames h [n, T, D] and their mean z: the frame half of the fusion W_1 h + b [n, T,
    D], z itself [n, D], its queries, keys [n, H, d] and values after the output map [n, H, D]; and where there are base
    classes, the mean over frames of their log-probabilities [n, C]. All but the last are affine in h, so that the mean
    of a class's encodings is the encoding of its mean frames, which is what the original's 5-shot module takes.

    Readings: the code's sum over frames, not the paper's mean, in `paper`; the width of an attention head is D / 8 (256
    only at D = 2048); a head that is as wide as D keeps its output map, which the original leaves out.
    """

    config_type = HyrsmConfig
    positions: Tensor

    def __init__(self, inputs: Inputs, config: HyrsmConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.embed = FrameEmbedding(inputs.dim, config.dim)
        dim = self.embed.dim
        head_dim = config.head_dim or max(1, dim // config.heads)
        table = doubled_sinusoids if config.doubled_positions else sinusoids
        self.register_buffer("positions", table(inputs.frames, dim), persistent=False)
        self.intra = IntraRelation(dim, config.heads, head_dim)
        self.inter = InterRelation(dim, config.heads, head_dim)
        self.fuse = nn.Linear(2 * dim, dim)
        self.classify = nn.Linear(dim, inputs.classes) if inputs.classes else None
        if config.identity_start:
            self._start_as_identity()

    def _start_as_identity(self) -> None:
        nn.init.eye_(self.fuse.weight)
        for zero in (self.fuse.bias, self.intra.out.weight, self.intra.out.bias):
            nn.init.zeros_(zero)

    def encode(self, clips: Tensor) -> Encoding:
        """Relate a clip's frames, and do with them what needs no other clip: [n, T, D] -> see the class."""
        related = self._relate(self.embed(clips))
        frame_half = functional.linear(related, self.fuse.weight[:, : self.embed.dim], self.fuse.bias)
        mean = related.mean(-2)
        encoding = (frame_half, mean, *self.inter.encode(mean))
        if self.classify is None:
            return encoding
        return *encoding, self.classify(related).log_softmax(-1).mean(-2)

    def _relate(self, frames: Tensor) -> Tensor:
        scaled = frames * math.sqrt(self.embed.dim / self.config.position_a)
        placed = scaled + self.config.position_b * self.positions
        related: Tensor = self.intra(functional.dropout(placed, POSITION_DROPOUT, self.training))
        return related.relu()

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, N]."""
        support, query = support[:5], query[:5]
        way, shot = support[0].shape[1:3]
        if shot > 1 and SHOTS[self.config.shots]:
            clips = tuple(torch.unflatten(class_prototypes(p.flatten(3), mask), -1, p.shape[3:]) for p in support)
            return -self.config.scale * self._distances(clips, query)
        if mask is not None:
            support = tuple(part.where(mask.view(*mask.shape, *[1] * (part.dim() - 3)), 0) for part in support)
        clips = tuple(part.flatten(1, 2) for part in support)
        distances = self._distances(clips, query, None if mask is None else mask.flatten(1))
        return -self.config.scale * shot_mean(torch.unflatten(distances, -1, (way, shot)), mask)

    def _distances(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Distances of queries to clips (support clips or prototypes) [B, M, ...]; mask [B, M] -> [B, Q, M]."""
        related = self.inter(support[1:], query[1:], mask)
        tokens = functional.linear(related, self.fuse.weight[:, self.embed.dim :])
        return self._match(query[0] + tokens[:, :, -1:], support[0], tokens[:, :, :-1])

    def _match(self, query: Tensor, frames: Tensor, tokens: Tensor) -> Tensor:
        """Bidirectional mean Hausdorff distance of queries to clips whose frames are x_t + that clip's token.

        Args:
            query: Frames [B, Q, T, D].
            frames: x [B, M, T, D].
            tokens: [B, Q, M, D].

        Returns:
            [B, Q, M].
        """
        products = query.flatten(1, 2) @ frames.flatten(1, 2).mT
        products = torch.unflatten(torch.unflatten(products, -1, frames.shape[1:3]), 1, query.shape[1:3])
        products = products + (query @ tokens.mT)[..., None]
        lengths = torch.linalg.vector_norm(query, dim=-1).clamp_min(1e-12)
        similarity = products * _inverse_lengths(frames, tokens)[:, :, None] / lengths[..., None, None]
        over = torch.mean if MATCHING[self.config.matching] else torch.sum
        return over(1 - similarity.amax(2), -1) + over(1 - similarity.amax(4), 2)

    def learn(
        self, support: Encoding, query: Encoding, labels: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, Q, N] and losses [B, Q], to each of which an episode's classification of base classes is added.

        That is the mean over all frames of its clips, support and query, so that the losses' mean is the original's.
        """
        logits = self.score(support, query)
        losses = cross_entropy(logits, labels)
        if self.classify is None or classes is None:
            return logits, losses
        shot = support[0].shape[2]
        wanted = torch.cat([classes.repeat_interleave(shot, 1), classes.gather(1, labels)], 1)
        guesses = torch.cat([support[-1].flatten(1, 2), query[-1]], 1)
        aside = -guesses.gather(-1, wanted[..., None])[..., 0].mean(1)
        return logits, losses + self.config.class_weight * aside[:, None]

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers of the tokens, their steps and the products of frames."""
        clips = way if SHOTS[self.config.shots] else way * shot
        dim, frames = self.embed.dim, self.inputs.frames
        tokens = queries * (clips + 1) * (5 * dim + 3 * self.config.heads * (clips + 1))
        per_clip = (frames + self.config.heads + 3) * dim
        return tokens + 3 * queries * clips * frames**2 + (way * shot + 2 * queries) * per_clip

    def original_names(self) -> dict[str, str]:
        """Ours -> the original's: the relation within clips, that between clips, the 1x1 convolution, the classifier.

        `positions` are the first rows of its buffer `pe.pe` and are no part of a checkpoint here.
        """
        modules = {
            "intra.norm": "temporal_atte_before.norm",
            "intra.out": "temporal_atte_before.fn.to_out.0",
            "inter.out": "temporal_atte.fc",
            "inter.norm": "temporal_atte.layer_norm",
            "fuse": "layer2.0",
        }
        if self.classify is not None:
            modules["classify"] = "classification_layer"
        names = {
            f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in modules.items() for leaf in ("weight", "bias")
        }
        return names | {
            "intra.qkv.weight": "temporal_atte_before.fn.to_qkv.weight",
            "inter.query.weight": "temporal_atte.w_qs.weight",
            "inter.key.weight": "temporal_atte.w_ks.weight",
            "inter.value.weight": "temporal_atte.w_vs.weight",
        }

    def load_original(self, state: Mapping[str, Tensor]) -> None:
        """Take the original's parameters, also from a checkpoint of its trainer, where each name begins with `head.`.

        Raises:
            UserError: As `Head.load_original`.
        """
        super().load_original({name.removeprefix("module.").removeprefix("head."): v for name, v in state.items()})


def doubled_sinusoids(frames: int, dim: int) -> Tensor:
    """The original's position encoding, [frames, dim].

    Column i is sin(pos / 10000^(2i / dim)) where i is even and cos of the same where it is odd: with i, which counts
    columns, in place of half of it, and with one frequency for each column, not for each pair.
    """
    column = torch.arange(dim, dtype=torch.float64)
    angles = torch.arange(frames, dtype=torch.float64)[:, None] * 10000.0 ** (-2 * column / dim)
    return torch.where(column % 2 == 0, angles.sin(), angles.cos()).float()


def _inverse_lengths(frames: Tensor, tokens: Tensor) -> Tensor:
    """1 / |x_t + a| of all frames [B, M, T, D] and tokens [B, Q, M, D] -> [B, Q, M, T]."""
    cross = (frames @ tokens.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    of_frames, of_tokens = (torch.linalg.vector_norm(part, dim=-1).square() for part in (frames, tokens))
    apart = of_frames[:, None] + of_tokens[..., None]
    # Where both cancel, their difference is rounding, which must not be blown up.
    floor = 4 * torch.finfo(apart.dtype).eps * apart
    return torch.maximum(apart + 2 * cross, floor).clamp_min(1e-24).rsqrt()
