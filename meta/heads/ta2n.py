"""TA2N: clips are aligned in time one by one, then each query with each class in time and in space."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...cache.errors import UserError
from .alignment import SpatialOffset, TemporalTransform, soft_box
from .base import Encoding, Head, Inputs
from .grids import grid_side, to_tokens
from .parts import FrameEmbedding


@dataclass(frozen=True)
class Ta2nConfig:
    """Sizes of TA2N."""

    spatial: bool = True
    """Whether frames are grids of tokens; False: one feature each, convolutions over time, no spatial offset."""
    dim: int = 128
    """Width of the frame embedding; 0: the cached features themselves."""
    locnet: int = 16
    """Channels of the network that reads the temporal transform."""
    mvnet: int = 16
    """Channels of the network that reads the spatial offset."""
    dropout: float = 0.0
    """Share of the features that training sets to 0."""
    scale: float = 2.0
    """Factor of the logits."""
    eps: float = 1e-8
    """Least length of a frame in the cosine."""
    identity_start: bool = True
    """Start at plain frame-by-frame cosines: keys and queries as they are, no value added; False: at random."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no head."""
        if min(self.locnet, self.mvnet) < 2:
            raise UserError(f"locnet is {self.locnet}, mvnet {self.mvnet}; each needs at least 2 channels; raise it")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is {self.dropout}; it is a share below 1; give 0 or more, but less than 1")


class Ta2n(Head):
    """Two-stage action alignment network (Li et al., AAAI 2022; R00Kie-Liu/TA2N 2becdd8, models/ta2n.py).

    Stage 1 resamples each clip in time (`TemporalTransform`). Stage 2 attends from the class's frames to the query's,
    A = softmax_y(k(s)_x . q(q)_y / sqrt(D)) on frame means, adds the attended values to the query's map, its own values
    to the class's map, and pools both with opposite boxes (`SpatialOffset`). Logits: - sum_t (1 - cos(s_t, q_t)).

    At several shots a class is the mean over its clips of what its first clip attends to in each, and queries go
    through the same value map. An episode whose classes have one clip each takes neither.

    Where code and paper differ this follows the code: the residual of the attention is the query's map at the SAME
    time, not a rearranged one; boxes are averaged over nine shifts also when testing. LayerNorm over the logits
    (`dist_norm`, off by default there) is left out. In training the original normalises supports and queries in two
    batches, here it is one; running statistics are used alike.
    """

    config_type = Ta2nConfig

    order_dependent = True
    """The first clip of a class asks the others, as in the original."""

    def __init__(self, inputs: Inputs, config: Ta2nConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.side = grid_side("ta2n", inputs, config.spatial)
        self.embed = FrameEmbedding(inputs.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        dim = self.embed.dim
        self.warp = TemporalTransform(dim, config.locnet, self.side)
        self.key, self.query, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.fusion_key, self.fusion_query, self.fusion_value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.offset = SpatialOffset(dim, config.mvnet, self.side) if config.spatial else None
        if config.identity_start:
            for same in (self.key, self.query, self.fusion_key, self.fusion_query, self.fusion_value):
                nn.init.eye_(same.weight)
            nn.init.zeros_(self.value.weight)

    def encode(self, clips: Tensor) -> Encoding:
        """Resampled maps [n, T, P, D], then what a clip contributes as a lone support, then as a query."""
        tokens = to_tokens(clips, self.inputs.tokens, self.side)
        maps: Tensor = self.warp(self.dropout(self.embed(tokens)))
        return maps, *self._as_support(maps), *self._as_query(maps)

    def _as_support(self, maps: Tensor) -> Encoding:
        """Values and keys [n, T, D]; with tokens the half of the first convolution."""
        means = maps.mean(2)
        value = self.value(means)
        half = () if self.offset is None else (self.offset.support_half(maps + value[:, :, None]),)
        return value, self.key(means), *half

    def _as_query(self, maps: Tensor) -> Encoding:
        """Values and queries [n, T, D]; with tokens the half of the first convolution and the spread of the values."""
        means = maps.mean(2)
        value = self.value(means)
        half = () if self.offset is None else (self.offset.query_half(maps), self.offset.spread(value))
        return value, self.query(means), *half

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, N]."""
        if mask is None:
            mask = torch.ones(support[0].shape[:3], dtype=torch.bool, device=support[0].device)
            lone = mask[:, 0, :].sum(-1) == 1
        else:
            lone = (mask.sum(-1) == 1).all(-1)
        if lone.all():
            return self._score_one(support, query, mask)
        fused = self._score_several(support[0], query[0], mask)
        if not lone.any():
            return fused
        return self._score_one(support, query, mask).where(lone[:, None, None], fused)

    def _score_one(self, support: Encoding, query: Encoding, mask: Tensor) -> Tensor:
        """Logits of the first clip that each class has."""
        own = 3 if self.offset is None else 4
        return self._compare(tuple(_first(part, mask) for part in support[:own]), (query[0], *query[own:]))

    def _score_several(self, support: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        """Logits of fused classes, from maps [B, N, K, T, P, D] and [B, Q, T, P, D]."""
        classes, queries = self.fusion_value(self._fuse(support, mask)), self.fusion_value(query)
        return self._compare(_each(self._as_support, classes), _each(self._as_query, queries))

    def _fuse(self, maps: Tensor, mask: Tensor) -> Tensor:
        """The class's clips as its first one sees them, [B, N, K, T, P, D] -> [B, N, T, P, D].

        The value map is linear and the weights of a clip sum to 1, so it may come after the sums over time and clips.
        """
        maps = maps.where(mask[..., None, None, None], 0)
        means = maps.mean(-2)
        asking = self.fusion_query(_first(means, mask))[:, :, None]
        attention = self.fusion_key(means) @ asking.mT / math.sqrt(means.shape[-1])
        weights = attention.softmax(-2).where(mask[..., None, None], 0) / mask.sum(-1)[..., None, None, None]
        fused = weights.flatten(2, 3).mT @ maps.flatten(4).flatten(2, 3)
        return torch.unflatten(fused, -1, maps.shape[-2:])

    def _compare(self, support: Encoding, query: Encoding) -> Tensor:
        """Stage 2 and the cosines of classes [B, N, ...] and queries [B, Q, ...]: [B, Q, N]."""
        (maps, value, key, *halves), (query_maps, query_value, asking, *query_halves) = support, query
        frames = key.shape[2]
        products = key.flatten(1, 2) @ asking.flatten(1, 2).mT / math.sqrt(key.shape[-1])
        products = torch.unflatten(torch.unflatten(products, -1, (-1, frames)), 1, (-1, frames))  # [B, N, T, Q, T]
        attention = products.transpose(2, 3).softmax(-1)
        attended = attention @ query_value[:, None]
        if self.offset is None:
            left, right = maps.squeeze(3)[:, :, None], query_maps.squeeze(3)[:, None]
        else:
            offsets = self.offset(*halves, *query_halves, attention)
            left = torch.einsum("bnqtp,bntpd->bnqtd", soft_box(offsets, self.side), maps)
            right = torch.einsum("bnqtp,bqtpd->bnqtd", soft_box(-offsets, self.side), query_maps)
        return -self.config.scale * self._distance(left + value[:, :, None], right + attended).mT

    def _distance(self, left: Tensor, right: Tensor) -> Tensor:
        """sum_t (1 - cos), [..., T, D] -> [...]."""
        lengths = [torch.linalg.vector_norm(clip, dim=-1).clamp_min(self.config.eps) for clip in (left, right)]
        cosines: Tensor = (left * right).sum(-1) / lengths[0] / lengths[1]
        return (1 - cosines).sum(-1)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers of the pairs' maps, masks and pooled frames, and of what several shots make anew."""
        frames, places, dim = self.inputs.frames, self.side**2, self.embed.dim
        pair = frames * (4 * dim + 2 * frames)
        clip = frames * dim * (places + 2)
        if self.offset is not None:
            pair += frames * (3 * self.config.mvnet * places + 5 * self.config.mvnet * 9 + 4 * places)
            clip += frames * self.config.mvnet * (places + 27)
        anew = 2 * clip * (way + queries) + clip * way * shot if shot > 1 else 0
        return way * queries * pair + anew

    def original_names(self) -> dict[str, str]:
        """Ours -> those of the original's `TA2N` module; none for the pooled variant, which it does not have.

        | ours | original (models/ta2n.py) |
        |---|---|
        | warp.first, .first_norm, .second, .second_norm, .hidden, .theta | firststage.locnet.0, .1, .4, .5, .10, .12 |
        | key, query, value | secondstage.keynet, .querynet, .valuenet |
        | fusion_key, fusion_query, fusion_value | keynet_multi, querynet_multi, valuenet_multi |
        | offset.first, ..., .hidden, .offset | secondstage.mvnet.0, .1, .4, .5, .10, .12 |
        """
        if self.offset is None:
            return {}
        layers = {"first": 0, "first_norm": 1, "second": 4, "second_norm": 5, "hidden": 10}
        modules = {f"warp.{ours}": f"firststage.locnet.{i}" for ours, i in (layers | {"theta": 12}).items()}
        modules |= {f"offset.{ours}": f"secondstage.mvnet.{i}" for ours, i in (layers | {"offset": 12}).items()}
        for ours in ("key", "query", "value"):
            modules |= {ours: f"secondstage.{ours}net", f"fusion_{ours}": f"{ours}net_multi"}
        own = (name.rpartition(".") for name in self.state_dict() if not name.startswith("embed."))
        return {f"{module}.{leaf}": f"{modules[module]}.{leaf}" for module, _, leaf in own}

    def load_original(self, state: Mapping[str, Tensor]) -> None:
        """Take the parameters from a checkpoint of the original's whole network (`align.` before each name) or module.

        Raises:
            UserError: If there is no original, or the checkpoint lacks a parameter, or one has another shape.
        """
        super().load_original({name.removeprefix("module.").removeprefix("align."): v for name, v in state.items()})


def _each(describe: Callable[[Tensor], Encoding], maps: Tensor) -> Encoding:
    """The maps [B, n, T, P, D], and what each of them contributes."""
    return maps, *(torch.unflatten(part, 0, maps.shape[:2]) for part in describe(maps.flatten(0, 1)))


def _first(values: Tensor, mask: Tensor) -> Tensor:
    """What stands at the first shot that a class has, [B, N, K, ...] -> [B, N, ...]."""
    position = mask.int().argmax(-1).view(*mask.shape[:2], *[1] * (values.dim() - 2))
    return values.take_along_dim(position, 2).squeeze(2)
