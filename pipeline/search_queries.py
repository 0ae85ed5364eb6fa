"""Queries to a gallery: their nearest prototypes by AMI's weights of each query, and how often the label is right."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cache.errors import UserError
from ..meta.search import Neighbours, PrototypeIndex
from ..meta.search.index import posterior_depth
from ..meta.search.posterior import Candidates, Certainties, Normaliser, certainties
from .embedder import Embedder, Progress, embed_in_blocks
from .features import FeatureSet
from .gallery import Gallery

TOP = (1, 5)
"""Among how many of the nearest prototypes a label is looked for."""

KINDS: tuple[Normaliser, ...] = ("exact", "bounded", "candidates")
"""What a posterior is normalised over, the best first."""


@dataclass(frozen=True, eq=False)
class Queries:
    """Clips that ask."""

    data: FeatureSet
    """With the streams that the runs look at."""
    clips: Tensor
    """Indices [NQ]."""
    own: bool
    """Whether they are the gallery's clips: each asks for the others."""
    known: Tensor
    """Class id in the gallery of each query's label, -1 where no other clip there has it, [NQ]."""

    def in_gallery(self, gallery: Gallery) -> int:
        """How many are of another cache, and clips of the gallery by their ids: they are compared with themselves."""
        there = set() if self.own else {gallery.data.clip_ids[clip] for clip in gallery.clips.tolist()}
        return sum(self.data.clip_ids[clip] in there for clip in self.clips.tolist())

    def of_trained(self, embedder: Embedder) -> int:
        """How many are of classes that trained or validated a run, and known to the gallery."""
        names = embedder.trained_classes
        trained = torch.tensor([name in names for name in self.data.class_names])
        return int((trained[self.data.labels[self.clips]] & (self.known >= 0)).sum())


@dataclass(frozen=True, eq=False)
class Answers:
    """What a block of queries found."""

    start: int
    """Place of its first query among all."""
    nearest: Neighbours
    """The k nearest by AMI's weights; its certainties are None."""
    alone: dict[str, Tensor]
    """Branch -> the nearest in this modality alone, ids [NQ, as many as are looked at]."""
    kinds: Tensor
    """Places in `KINDS`, [NQ]."""

    @property
    def by_name(self) -> dict[str, Tensor]:
        """Ids of the nearest: fused, and in each modality alone."""
        return {"fused": self.nearest.ids, **self.alone}


class Tally:
    """Counts of right answers.

    Args:
        queries: All that are asked.
        gallery: What they are compared with.
    """

    def __init__(self, queries: Queries, gallery: Gallery) -> None:
        self._known, self._labels = queries.known, gallery.prototype_labels
        self._right: dict[str, list[int]] = {}
        self.kinds = dict.fromkeys(KINDS, 0)

    @property
    def labelled(self) -> int:
        """Queries whose label the gallery knows."""
        return int((self._known >= 0).sum())

    def add(self, answers: Answers) -> None:
        """Count a block."""
        for place, kind in enumerate(KINDS):
            self.kinds[kind] += int((answers.kinds == place).sum())
        known = self._known[answers.start : answers.start + len(answers.kinds), None]
        for name, ids in answers.by_name.items():
            hits = (self._labels[ids] == known) & (known >= 0)
            right = self._right.setdefault(name, [0] * len(TOP))
            for position, top in enumerate(TOP):
                right[position] += int(hits[:, :top].any(1).sum())

    @property
    def accuracy(self) -> dict[str, dict[str, float]] | None:
        """Shares of right answers in percent, fused and of each modality alone; None where no label is known."""
        if not self.labelled:
            return None
        return {
            name: {f"top{top}": 100 * count / self.labelled for top, count in zip(TOP, right, strict=True)}
            for name, right in self._right.items()
        }

    @property
    def normaliser(self) -> Normaliser:
        """The worst kind of all queries."""
        return next((kind for kind in reversed(KINDS) if self.kinds[kind]), "exact")


def open_queries(embedder: Embedder, gallery: Gallery, cache: Path | None) -> Queries:
    """Open the clips that ask.

    Args:
        embedder: The runs.
        gallery: What they ask.
        cache: Another cache, all of whose clips ask; None: each clip of the gallery asks for the others.

    Raises:
        UserError: If the cache does not fit the runs, or prototypes are no clips and there is no cache.
    """
    if cache is None and gallery.per != "clip":
        raise UserError(f"a clip cannot be left out of a mean; --per {gallery.per}; give --queries, or use --per clip")
    data = gallery.data if cache is None else embedder.load(cache)
    clips = gallery.clips if cache is None else torch.arange(len(data.labels))
    there = dict(zip(gallery.class_names, gallery.class_ids.tolist(), strict=True))
    counts = gallery.labels.bincount(minlength=len(gallery.data.class_names))
    if cache is None:
        # With itself left out, the only clip of a class finds no other.
        there = {name: class_id for name, class_id in there.items() if counts[class_id] > 1}
    translated = torch.tensor([there.get(name, -1) for name in data.class_names])
    return Queries(data, clips, cache is None, translated[data.labels[clips]])


def answer(
    embedder: Embedder, index: PrototypeIndex, queries: Queries, k: int, progress: Progress | None = None
) -> Iterator[Answers]:
    """Find the k nearest prototypes of each query, or as many as accuracies need, block by block."""
    for start, embedded in embed_in_blocks(embedder, queries.data, queries.clips):
        count = len(next(iter(embedded.values())))
        own = torch.arange(start, start + count) if queries.own else None
        yield nearest_of(index, embedded, max(k, *TOP), own, start)
        if progress:
            progress(start + count, len(queries.clips))


def nearest_of(
    index: PrototypeIndex, queries: dict[str, Tensor], k: int, own: Tensor | None = None, start: int = 0
) -> Answers:
    """Find the prototypes that are nearest to each query by AMI's weights (AMFIR Eq. 7 and 8), and by each modality.

    As `PrototypeIndex.search` without weights does it, but that a query's own prototype counts nowhere: it would be the
    nearest in every modality, and the certainties would say how lonely the query is.

    Args:
        index: The prototypes.
        queries: [NQ, d_m] of each modality.
        k: How many; all if there are fewer.
        own: The prototype of each query that is left out, [NQ]; None: none.
        start: Place of the first query among all.
    """
    modalities = index.space.modalities
    num = len(index.matrix) - (own is not None)
    count = posterior_depth(k, num)
    hot = torch.eye(len(modalities), dtype=torch.float64)[..., None].expand(-1, -1, len(next(iter(queries.values()))))
    lists = [_search(index, queries, count, weights, own) for weights in hot]
    found = _certainties(index, queries, lists, num)
    return Answers(
        start,
        _search(index, queries, min(k, num), found.weights, own),
        {name: near.ids[:, : max(TOP)] for name, near in zip(modalities, lists, strict=True)},
        _kinds(found, torch.cat([near.ids for near in lists], 1), num),
    )


def _search(
    index: PrototypeIndex, queries: dict[str, Tensor], count: int, weights: Tensor, own: Tensor | None
) -> Neighbours:
    """The `count` nearest; where there are own prototypes, of the others: one more is found, and one left out."""
    if own is None:
        return index.search(queries, count, weights)
    found = index.search(queries, count + 1, weights)
    other = found.ids != own[:, None]
    # An equal prototype of a lower id, or an approximate search, may have kept its own away: the last one goes instead.
    other[:, -1] &= ~other.all(1)
    places = other.nonzero()[:, 1].view(len(own), count)
    psi = found.psi.gather(2, places.expand(len(found.psi), -1, -1))
    return Neighbours(found.ids.gather(1, places), found.distances.gather(1, places), psi, found.weights, None)


def _certainties(index: PrototypeIndex, queries: dict[str, Tensor], lists: list[Neighbours], num: int) -> Certainties:
    """Certainties over the prototypes that are in any modality's list of the nearest."""
    psi = np.concatenate([near.psi.numpy() for near in lists], 2)
    norms = np.sqrt(index.space.squared_norms(index.space.place(queries)))
    ids = np.concatenate([near.ids.numpy() for near in lists], 1)
    reach = np.stack([near.distances[:, -1].numpy() for near in lists])
    is_exact = index.backend.exact or lists[0].ids.shape[1] == num
    return certainties(Candidates(ids, psi, index.space.rounding(psi, norms), reach), num, is_exact)


def _kinds(found: Certainties, candidates: Tensor, num: int) -> Tensor:
    """Places in `KINDS`, of each query alone: what is said of one does not depend on which are asked together."""
    ordered = candidates.sort(1).values
    complete = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1) == num
    return torch.where(complete, 0, torch.where(found.tight, 1, 2))
