"""Evaluation with clean supports and harmed queries.

Support and query come from one pool of clips. The scorer gets two sets of features, the clean ones and behind them the
harmed ones, and the queries are looked up in the second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...meta.active import adaptive_weights, fuse
from ...meta.episodes import Episodes, EpisodeSampler, EpisodeShape
from ...meta.evaluate import EvaluationConfig, observations
from ...meta.model import Model
from ...meta.prototypes import Planner, Scorer, Scores
from ...meta.tally import Share, Sums
from ...meta.threads import one_thread
from ..features import FeatureSet, apply_projections

FUSIONS = ("ami", "late", "select", "belief")
"""Of all modalities; `belief` where one was fitted."""


class HarmedQueries:
    """A scorer whose queries are the harmed versions of the clips that episodes name.

    Args:
        scorer: Of 2 n clips: the n clean ones, then the n harmed ones in the same order.
        count: n.
    """

    def __init__(self, scorer: Scorer, count: int) -> None:
        self._scorer = scorer
        self._count = count

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names along the first axis of the scores."""
        return self._scorer.modalities

    def expect(self, episodes: int, shape: EpisodeShape) -> None:
        """Let the scorer plan."""
        if isinstance(self._scorer, Planner):
            self._scorer.expect(episodes, shape)

    def __call__(self, episodes: Episodes) -> Scores:
        """Distances of harmed queries to clean supports."""
        return self._scorer(Episodes(episodes.support, episodes.query + self._count))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What fusions and modalities make of the same episodes."""

    shares: Mapping[str, Share]
    """Fusion, or "MODALITY alone" -> accuracy and ci95, percent."""
    right: Mapping[str, Tensor]
    """Likewise -> right queries of each episode, int64 [E]."""
    weights: Mapping[str, float]
    """Modality -> its mean weight in AMI over all queries."""


@one_thread()
def measure(
    model: Model, clean: FeatureSet, harmed: Mapping[str, Tensor], class_ids: Sequence[int], config: EvaluationConfig
) -> Outcome:
    """Evaluate a model on harmed queries.

    Args:
        model: In evaluation mode.
        clean: The clips to draw from, not projected.
        harmed: Modality -> the same clips harmed, not projected; the queries of other modalities are clean.
        class_ids: The classes to draw from.
        config: Episodes, and what `select` selects by.

    Raises:
        UserError: If the episodes cannot be drawn.
    """
    scorer = HarmedQueries(model.scorer(_stack(model, clean, harmed)), len(clean.labels))
    sampler = EpisodeSampler(clean.labels, class_ids, config.shape, clean.class_names)
    labels, names = config.shape.query_labels(), model.modalities
    fusions = [name for name in FUSIONS if name != "belief" or model.belief is not None]
    parts: dict[str, list[Tensor]] = {}
    weights = torch.zeros(len(names), dtype=torch.float64)
    for _, seen in observations(scorer, sampler, config, range(config.num_blocks), belief=model.belief):
        # `max(...).indices` is the first of equals, as argmax is, and far faster where the axis is not the last.
        hits = {name: fuse(seen, name, config.criterion)[0].max(-1).indices == labels for name in fusions}
        hits |= {f"{name} alone": hit for name, hit in zip(names, seen.psi.argmin(-1) == labels, strict=True)}
        for name, hit in hits.items():
            parts.setdefault(name, []).append(hit.sum(-1))
        weights += adaptive_weights(seen).double().sum((1, 2))
    weights /= config.episodes * len(labels)
    right = {name: torch.cat(counts) for name, counts in parts.items()}
    return Outcome(
        {name: _share(counts, len(labels)) for name, counts in right.items()},
        right,
        dict(zip(names, weights.tolist(), strict=True)),
    )


def _share(right: Tensor, queries: int) -> Share:
    sums = Sums()
    sums.add(right)
    return sums.share(queries)


def _stack(model: Model, clean: FeatureSet, harmed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Clean clips and behind them their harmed versions, projected as the model's."""
    sides = [replace(clean, features={**clean.features, **part}) for part in ({}, harmed)]
    first, second = (apply_projections(side, model.projections).features for side in sides)
    return {name: torch.cat([first[name].float(), second[name].float()]) for name in model.streams}
