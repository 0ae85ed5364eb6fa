"""Prototypes and the distances psi to them: for a batch of embedded episodes, and for episodes of clip indices."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..cache.errors import UserError, pick
from .episodes import Episodes, EpisodeShape

MAX_GRAM_CLIPS = 4096
"""Up to here all inner products of the clips may be computed once (64 MiB a modality) and looked up."""

LOOKUP_COST = 6
"""Time of looking up one inner product, in gathered and multiplied embedding values; measured on two CPU cores."""

MAX_GATHERED = 2**20
"""Embedding values gathered at once (4 MiB): larger pieces leave the processor's cache."""

Distance = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(|q|^2 [..., NQ, 1], |t|^2 [..., 1, N], q.t [..., NQ, N]) -> distance [..., NQ, N]."""


def squared_euclidean(query_norm: Tensor, prototype_norm: Tensor, product: Tensor) -> Tensor:
    """|q - t|^2, the default: Eq. 2 is then the posterior of a Gaussian class model (method section 1)."""
    return (query_norm + prototype_norm - 2 * product).clamp_min(0)


def euclidean(query_norm: Tensor, prototype_norm: Tensor, product: Tensor) -> Tensor:
    """|q - t|; the floor keeps the gradient finite (it is 0) where both coincide."""
    return squared_euclidean(query_norm, prototype_norm, product).clamp_min(1e-12).sqrt()


def cosine(query_norm: Tensor, prototype_norm: Tensor, product: Tensor) -> Tensor:
    """1 - cos(q, t); 1 where either is zero."""
    return 1 - product * query_norm.clamp_min(1e-12).rsqrt() * prototype_norm.clamp_min(1e-12).rsqrt()


DISTANCES: dict[str, Distance] = {
    "squared-euclidean": squared_euclidean,
    "euclidean": euclidean,
    "cosine": cosine,
}


def distances(query: Tensor, prototypes: Tensor, name: str = "squared-euclidean") -> Tensor:
    """Distances of queries to prototypes, before the temperature.

    Args:
        query: Embeddings [..., NQ, d].
        prototypes: Prototypes [..., N, d].
        name: A key of `DISTANCES`.

    Returns:
        [..., NQ, N], at least 0 (cosine: up to rounding).

    Raises:
        UserError: If the distance is unknown.
    """
    distance = pick(DISTANCES, name, "distance")
    if name != "cosine":
        # A shift changes no difference, so the centre takes no gradient; without it the expanded square loses digits.
        centre = prototypes.detach().mean(-2, keepdim=True)
        query, prototypes = query - centre, prototypes - centre
    norms = query.square().sum(-1)[..., :, None], prototypes.square().sum(-1)[..., None, :]
    return distance(*norms, query @ prototypes.mT)


def class_prototypes(support: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean embedding of each class's support clips (method section 1: the plain mean).

    Args:
        support: Embeddings [..., N, K, d].
        mask: True where a support clip exists [..., N, K], for classes with fewer than K; at least one in each class.

    Returns:
        [..., N, d].
    """
    if mask is None:
        return support.mean(-2)
    assert bool(mask.any(-1).all()), "a class has no support clip"
    # Absent slots may hold anything, NaN too: `where` keeps them out, a product would not.
    return support.where(mask[..., None], 0).sum(-2) / mask.sum(-1, keepdim=True)


class Scores(NamedTuple):
    """What the modalities say of a batch of episodes."""

    psi: Tensor
    """Distances to the prototypes times temperature, [M, B, NQ, N]."""
    centre: Tensor
    """psi to the mean prototype, [M, B, NQ]: the raw typicality of a query."""


class Scorer(Protocol):
    """Anything that turns episodes of clip indices into distances; evaluation works on any of them."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names in the order of the tensors' first axis."""

    def __call__(self, episodes: Episodes) -> Scores:
        """Score the view-0 clips of a batch of episodes."""


@runtime_checkable
class Planner(Protocol):
    """A scorer whose least work depends on how much will be asked; it is told before the first episode."""

    def expect(self, episodes: int, shape: EpisodeShape) -> None:
        """Plan for so many episodes of this shape; fewer or more may come, at worse speed."""


class PrototypeScorer:
    """Nearest mean prototype on clips that were embedded once.

    Few clips: their Gram matrix is computed once, and each distance follows from looked-up inner products, also at
    several shots: q.t = mean_k q.s_k and |t|^2 = mean_kl s_k.s_l. Many clips, or so many pairs in an episode that the
    look-ups cost more: embeddings are gathered and multiplied.

    Args:
        embeddings: Modality -> [clips, d] floating point, on the CPU; d may differ between modalities.
        temperatures: Modality -> factor of its distances; 1 where left out.
        distance: A key of `DISTANCES`.

    Raises:
        UserError: If the distance is unknown or there is no modality.
    """

    def __init__(
        self,
        embeddings: Mapping[str, Tensor],
        temperatures: Mapping[str, float] | None = None,
        distance: str = "squared-euclidean",
    ) -> None:
        if not embeddings:
            raise UserError("no modality to score; embeddings; give at least one stream")
        self.modalities = tuple(embeddings)
        self.distance = distance
        self._distance = pick(DISTANCES, distance, "distance")
        self._temperatures = [(temperatures or {}).get(name, 1.0) for name in self.modalities]
        self._embeddings = [
            values if distance == "cosine" else values - values.mean(0, keepdim=True) for values in embeddings.values()
        ]

    def __call__(self, episodes: Episodes) -> Scores:
        """Score the view-0 clips of a batch of episodes, without gradient."""
        with torch.no_grad():
            parts = [self._score(m, episodes) for m in range(len(self.modalities))]
        pairs = [(psi * tau, centre * tau) for (psi, centre), tau in zip(parts, self._temperatures, strict=True)]
        return Scores(torch.stack([psi for psi, _ in pairs]), torch.stack([centre for _, centre in pairs]))

    def _score(self, m: int, episodes: Episodes) -> tuple[Tensor, Tensor]:
        # NK (NQ + NK) look-ups of an episode, against (NQ + NK) d values gathered: NQ + NK cancels.
        num_clips, width = self._embeddings[m].shape
        if num_clips <= MAX_GRAM_CLIPS and LOOKUP_COST * episodes.support[0].numel() < width:
            return self._look_up_products(m, episodes)
        return self._gather_embeddings(m, episodes)

    @cached_property
    def _grams(self) -> list[Tensor]:
        return [values @ values.T for values in self._embeddings]

    def _look_up_products(self, m: int, episodes: Episodes) -> tuple[Tensor, Tensor]:
        gram = self._grams[m]
        batch, way, shot = episodes.support.shape
        query, support = episodes.query.flatten(1), episodes.support.flatten(1)
        product = look_up(gram, query[:, :, None], support[:, None, :])
        between = look_up(gram, support[:, :, None], support[:, None, :])
        if shot > 1:
            product = product.view(batch, -1, way, shot).mean(-1)
            between = between.view(batch, way, shot, way, shot).mean((2, 4))
        query_norm = gram.diagonal()[query][:, :, None]
        psi = self._distance(query_norm, between.diagonal(dim1=1, dim2=2)[:, None, :], product)
        centre = self._distance(query_norm, between.mean((1, 2))[:, None, None], product.mean(-1, keepdim=True))
        return psi, centre[..., 0]

    def _gather_embeddings(self, m: int, episodes: Episodes) -> tuple[Tensor, Tensor]:
        values = self._embeddings[m]
        gathered = (episodes.support[0].numel() + episodes.query[0].numel()) * values.shape[1]
        chunk = max(1, MAX_GATHERED // gathered)
        parts = []
        for start in range(0, len(episodes), chunk):
            part = episodes[start : start + chunk]
            prototypes = class_prototypes(values[part.support])
            query = values[part.query.flatten(1)]
            centre = distances(query, prototypes.mean(1, keepdim=True), self.distance)[..., 0]
            parts.append((distances(query, prototypes, self.distance), centre))
        return torch.cat([psi for psi, _ in parts]), torch.cat([centre for _, centre in parts])


def look_up(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read matrix[rows, columns]; one flat index_select is four times as fast as that."""
    flat = rows * matrix.shape[1] + columns
    return matrix.view(-1).index_select(0, flat.view(-1)).view(flat.shape)


def encode_clips(
    features: Tensor,
    head: Callable[[Tensor], Tensor],
    *,
    clips: Tensor | None = None,
    view: int = 0,
    chunk_clips: int = 512,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Embed each clip once.

    Args:
        features: Cached features of one modality, [clips, views, T, D], any floating point, memory-mapped or not.
        head: [n, T, D] float32 -> [n, d], in evaluation mode.
        clips: Indices of the clips to embed; None for all.
        view: The stored view to take.
        chunk_clips: Clips that go through the head at once.
        device: Where the head lives.

    Returns:
        [clips, d] on the CPU, where gathers are cheap, without gradient.
    """
    wanted = torch.arange(len(features)) if clips is None else clips
    parts = []
    with torch.no_grad():
        for start in range(0, len(wanted), chunk_clips):
            part = features[wanted[start : start + chunk_clips], view]
            parts.append(head(part.to(device, torch.float32)).cpu())
    return torch.cat(parts)
