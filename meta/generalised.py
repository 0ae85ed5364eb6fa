"""Generalised few-shot: queries of base and novel classes are classified over the prototypes of both together.

A model in use knows its base classes and learns new ones; that the new ones are told apart among themselves says little
about whether the base classes swallow their queries. Base prototypes are the means of one seeded half of each base
class's clips, the queries come from the other half; novel prototypes are the means of an episode's support. AMI's
certainties are those over the joint prototypes. The head was trained on base clips, or on the choice of its
training's length where they validate, so that the accuracy of base queries is no estimate for clips it never saw.

The harmonic mean of both accuracies (Xian et al., "Zero-Shot Learning: A Comprehensive Evaluation", TPAMI 2019, Eq. 21)
is that of the overall accuracies; its interval follows from the variances of an episode's counts by the delta method.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache.errors import UserError
from .active import fuse, observe
from .belief import Belief
from .episodes import Episodes, EpisodeSampler
from .evaluate import MAX_VALUES, Engine, EvaluationConfig, draw_block, here
from .prototypes import class_prototypes, distances
from .tally import Share, Sums
from .threads import one_thread


@dataclass(frozen=True, eq=False)
class Space:
    """Embedded clips, and how far apart they are."""

    embeddings: Mapping[str, Tensor]
    """Modality -> [clips, d] on the CPU."""
    temperatures: Mapping[str, float]
    """Modality -> factor of its distances."""
    distances: Mapping[str, str]
    """Modality -> a key of `prototypes.DISTANCES`."""


@dataclass(frozen=True)
class Generalised:
    """What a generalised evaluation found; accuracies and intervals in percent."""

    base: Share
    """Queries of base classes, over all prototypes."""
    novel: Share
    """Queries of novel classes, over all prototypes."""
    harmonic_mean: Share
    """Of the two."""
    novel_alone: Share
    """The same novel queries over the novel prototypes alone."""
    base_classes: int
    """Base prototypes beside each episode's novel ones."""
    base_clips: int
    """Clips that base queries are drawn from."""

    def to_json(self) -> dict[str, Any]:
        """The object under `generalised` of `eval --json`."""
        shares = ("base", "novel", "harmonic_mean", "novel_alone")
        return {
            **{name: dict(zip(("accuracy", "ci95"), getattr(self, name), strict=True)) for name in shares},
            "base_classes": self.base_classes,
            "base_clips": self.base_clips,
            "base_clips_trained_the_head": True,
        }


def evaluate_generalised(
    space: Space,
    labels: Tensor,
    base_ids: Sequence[int],
    novel_ids: Sequence[int],
    config: EvaluationConfig,
    *,
    sampler: EpisodeSampler | None = None,
    belief: Belief | None = None,
    class_names: Sequence[str] | None = None,
    engine: Engine = here,
) -> Generalised:
    """Evaluate on the episodes of an ordinary evaluation, each with as many base queries as novel ones.

    Args:
        space: Of all clips.
        labels: Class ids [clips].
        base_ids: Base classes.
        novel_ids: Novel classes.
        config: Episodes and fusion.
        sampler: Draws the episodes from the same labels and novel classes; None: uniformly.
        belief: Fitted on the same modalities in this order.
        class_names: `class_names[i]` names class id i.
        engine: Runs the blocks.

    Raises:
        UserError: If a base class has fewer than two clips, or the episodes cannot be drawn.
    """
    halves = split_clips(labels, base_ids, config.seed, class_names)
    job = GeneralisedJob(
        space,
        [torch.stack([values[clips].mean(0) for clips, _ in halves]) for values in space.embeddings.values()],
        [clips for _, clips in halves],
        sampler or EpisodeSampler(labels, novel_ids, config.shape, class_names),
        config,
        belief,
    )
    sums = GeneralisedSums()
    engine(job, config.num_blocks, sums.add)
    return sums.conclude(config.shape.way * config.shape.query, len(base_ids), sum(len(clips) for _, clips in halves))


def split_clips(
    labels: Tensor, class_ids: Sequence[int], seed: int, class_names: Sequence[str] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Halves of each class's clips, the first one the larger where they cannot be equal: for prototypes, for queries.

    Raises:
        UserError: If a class has fewer than two clips.
    """
    halves = []
    for class_id in class_ids:
        clips = torch.nonzero(labels == class_id).flatten()
        if len(clips) < 2:
            name = str(class_id) if class_names is None else class_names[class_id]
            raise UserError(
                f"base class {name!r} has {len(clips)} clips; --generalised needs one for its prototype and one "
                "that is asked for; leave the class out"
            )
        order = torch.randperm(len(clips), generator=_generator(seed, class_id))
        half = (len(clips) + 1) // 2
        halves.append((clips[order[:half]].sort().values, clips[order[half:]].sort().values))
    return halves


def _generator(*key: int) -> torch.Generator:
    # The last word keeps these numbers apart from those that episodes are drawn with.
    state = np.random.SeedSequence((*key, 1)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


Counted = dict[str, Tensor]
"""Right queries of each episode: `base`, `novel` over all prototypes, and `alone`, novel over novel; int64 [E]."""


@dataclass(frozen=True, eq=False)
class GeneralisedJob:
    """Counts right predictions in a block of episodes; it can travel to another process."""

    space: Space
    """Of all clips."""
    prototypes: Sequence[Tensor]
    """Base prototypes of each modality, [C, d]."""
    queries: Sequence[Tensor]
    """Clips of each base class that may be asked for."""
    sampler: EpisodeSampler
    """Of the novel classes."""
    config: EvaluationConfig
    """Episodes and fusion."""
    belief: Belief | None = None
    """Of the fusion `belief`."""

    @one_thread()
    @torch.no_grad()
    def __call__(self, block: int) -> Counted:
        """Count a block."""
        shape, num_base = self.config.shape, len(self.queries)
        episodes = draw_block(self.sampler, self.config, block)
        base_clips, base_labels = self.draw_base(len(episodes), block)
        values = len(self.prototypes) * 2 * shape.way * shape.query * (num_base + shape.way)
        chunk = max(1, MAX_VALUES // values)
        parts = []
        for start in range(0, len(episodes), chunk):
            part = slice(start, start + chunk)
            parts.append(self._count(episodes[part], base_clips[part], base_labels[part]))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def draw_base(self, number: int, block: int) -> tuple[Tensor, Tensor]:
        """Base queries of a block's episodes: a class uniformly, then one of its clips; clips and classes [E, NQ]."""
        generator = _generator(self.config.seed, block, 1)
        size = (number, self.config.shape.way * self.config.shape.query)
        classes = torch.randint(len(self.queries), size, generator=generator)
        sizes = torch.tensor([len(clips) for clips in self.queries])
        place = (torch.rand(size, generator=generator, dtype=torch.float64) * sizes[classes]).long()
        return torch.cat(list(self.queries))[(sizes.cumsum(0) - sizes)[classes] + place], classes

    def _count(self, episodes: Episodes, base_clips: Tensor, base_labels: Tensor) -> Counted:
        asked = episodes.query.flatten(1)
        joint, centre = self._distances(episodes.support, torch.cat([base_clips, asked], 1))
        predicted = self._predict(joint, centre)
        num_base, labels = len(self.queries), self.config.shape.query_labels()
        of_base, of_novel = predicted[:, : base_clips.shape[1]], predicted[:, base_clips.shape[1] :]
        novel = joint[:, :, base_clips.shape[1] :, num_base:]
        alone = self._predict(novel, self._centre(episodes.support, asked))
        return {
            "base": (of_base == base_labels).sum(-1),
            "novel": (of_novel == labels + num_base).sum(-1),
            "alone": (alone == labels).sum(-1),
        }

    def _predict(self, psi: Tensor, centre: Tensor) -> Tensor:
        log_belief = None if self.belief is None else self.belief.log_weights(psi, centre)
        seen = observe(psi, log_belief=log_belief)
        return fuse(seen, self.config.fusion, self.config.criterion)[0].max(-1).indices

    def _distances(self, support: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Psi of clips [B, Q] to the joint prototypes [M, B, Q, C + N], base first, and to their mean [M, B, Q]."""
        psi, centre = [], []
        for (name, values), base in zip(self.space.embeddings.items(), self.prototypes, strict=True):
            novel, query = class_prototypes(values[support]), values[clips]
            way, number = novel.shape[1], len(base)
            middle = (base.sum(0) + novel.sum(1)) / (number + way)
            # The base prototypes are the same in all episodes: one product, and no copy of them for each.
            parts = [self._scaled(name, query.flatten(0, 1), base).view(*clips.shape, number)]
            parts.append(self._scaled(name, query, novel))
            psi.append(torch.cat(parts, -1))
            centre.append(self._scaled(name, query, middle[:, None])[..., 0])
        return torch.stack(psi), torch.stack(centre)

    def _centre(self, support: Tensor, clips: Tensor) -> Tensor:
        """Psi of clips [B, Q] to the mean of the novel prototypes alone, [M, B, Q]."""
        values = self.space.embeddings.items()
        middles = {name: class_prototypes(part[support]).mean(1, keepdim=True) for name, part in values}
        return torch.stack([self._scaled(name, part[clips], middles[name])[..., 0] for name, part in values])

    def _scaled(self, name: str, query: Tensor, prototypes: Tensor) -> Tensor:
        return distances(query, prototypes, self.space.distances[name]) * self.space.temperatures[name]


@dataclass(eq=False)
class GeneralisedSums:
    """Sums over blocks."""

    sums: dict[str, Sums] = field(default_factory=lambda: {name: Sums() for name in ("base", "novel", "alone")})
    """Of the counts of an episode."""
    products: int = 0
    """Sum of base * novel."""

    def add(self, counted: Counted) -> None:
        """Take a block."""
        for name, sums in self.sums.items():
            sums.add(counted[name])
        self.products += int((counted["base"] * counted["novel"]).sum())

    def conclude(self, queries: int, base_classes: int, base_clips: int) -> Generalised:
        """Percentages; `queries` are an episode's novel ones, and as many base ones."""
        shares = {name: sums.share(queries) for name, sums in self.sums.items()}
        harmonic = self._harmonic(queries)
        return Generalised(shares["base"], shares["novel"], harmonic, shares["alone"], base_classes, base_clips)

    def _harmonic(self, queries: int) -> Share:
        """H = 2 a b / (a + b), var H = g' S g / E with g = (2 b^2, 2 a^2) / (a + b)^2, S the counts' covariance."""
        base, novel = self.sums["base"], self.sums["novel"]
        if base.total + novel.total == 0:
            return 0.0, 0.0
        number = base.number
        a, b = base.total / number, novel.total / number
        by_base, by_novel = 2 * b**2 / (a + b) ** 2, 2 * a**2 / (a + b) ** 2
        spread = [number * s.squares - s.total**2 for s in (base, novel)]
        shared = number * self.products - base.total * novel.total
        variance = by_base**2 * spread[0] + by_novel**2 * spread[1] + 2 * by_base * by_novel * shared
        deviation = math.sqrt(max(0.0, variance / number**2) / number)
        return 100 * 2 * a * b / (a + b) / queries, 100 * 1.96 * deviation / queries
