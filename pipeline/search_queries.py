"""Queries to a gallery: their nearest prototypes by AMI's weights of each query, and how often the label is right."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..cache.errors import UserError
from ..meta.search import Neighbours, PrototypeIndex
from ..meta.search.posterior import Certainties, Normaliser
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
    """The k nearest by AMI's weights."""
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
            hits = self._labels[ids] == known
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
        found = index.search(embedded, max(k, *TOP), leave_out=own)
        assert found.certainties is not None
        assert found.alone is not None
        alone = {name: ids[:, : max(TOP)] for name, ids in zip(index.space.modalities, found.alone, strict=True)}
        yield Answers(start, found, alone, _kinds(found.certainties))
        if progress:
            progress(start + count, len(queries.clips))


def _kinds(found: Certainties) -> Tensor:
    """Places in `KINDS`, of each query alone: what is said of one does not depend on which are asked together."""
    return torch.where(found.complete, 0, torch.where(found.tight, 1, 2))
