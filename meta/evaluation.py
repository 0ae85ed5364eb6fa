"""What an evaluation is asked for, and what it found."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..cache.errors import UserError, pick
from .active import CRITERIA, FUSIONS
from .episodes import EpisodeShape
from .tally import Share, Tally

BLOCK_EPISODES = 250
"""Episodes that share a generator. Part of what a seed means: another value, other episodes."""

SAMPLERS = {"uniform": "any classes", "hard": "classes that are hard to tell apart, see `confusable`"}
"""How an episode's classes are drawn, by name."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Which episodes, and how their modalities are fused."""

    shape: EpisodeShape = field(default_factory=EpisodeShape)
    """Way, shot and query."""
    episodes: int = 10_000
    """Number of episodes."""
    seed: int = 0
    """Seed of the episodes; equal seeds give equal episodes, and fewer episodes are the first of more."""
    fusion: str = "ami"
    """The fusion whose accuracy is the result's, a key of `FUSIONS`."""
    criterion: str = "free-energy"
    """What the fusion `select` selects by, a key of `CRITERIA`."""
    sampler: str = "uniform"
    """How classes are drawn, a key of `SAMPLERS`."""
    keep: bool = True
    """Keep the counts of each episode: they alone grow with the number of episodes."""

    def __post_init__(self) -> None:
        """Refuse unknown names and counts that mean nothing."""
        pick(FUSIONS, self.fusion, "fusion")
        pick(CRITERIA, self.criterion, "criterion")
        pick(SAMPLERS, self.sampler, "sampler")
        if self.episodes < 1:
            raise UserError(f"episodes is {self.episodes}; an accuracy needs at least 1; raise --episodes")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; seeds start at 0; give --seed 0 or more")

    @property
    def num_blocks(self) -> int:
        """Blocks that hold the episodes; the last one may be cut."""
        return -(-self.episodes // BLOCK_EPISODES)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; accuracies and intervals in percent."""

    method: str
    """Name of the method, as the caller calls it."""
    shape: EpisodeShape
    """Way, shot and query."""
    episodes: int
    """Number of episodes."""
    accuracy: float
    """Mean accuracy of the configured fusion."""
    ci95: float
    """Half-width of its 95 % confidence interval."""
    modalities: dict[str, Share]
    """Each modality alone."""
    fusions: dict[str, Share]
    """Each fusion; `belief` only where one was fitted."""
    selection_accuracy: dict[str, float]
    """How often each criterion picks the right modality among the queries where exactly one is right, and how often
    `always-<modality>` would; empty with one modality, or where there is no such query."""
    seconds: float
    """Time the evaluation took."""
    top5: float
    """Share of the queries whose class is among the first five of the configured fusion; 100 up to five ways."""
    per_class: dict[str, float | None]
    """Accuracy of each true class's queries by the configured fusion; None for a class that no episode drew."""
    confusion: Tensor = field(compare=False, repr=False)
    """Queries of a true class (row) that were taken for a class (column), int64 [C, C], in the order of `per_class`."""
    kept: Tensor | None = field(default=None, compare=False, repr=False)
    """Right queries of each episode by the configured fusion, int64 [E], where the configuration keeps them."""

    @property
    def right(self) -> Tensor:
        """Right queries of each episode by the configured fusion, int64 [E]: for paired differences."""
        assert self.kept is not None, "the configuration does not keep the counts of each episode"
        return self.kept

    @property
    def class_accuracy(self) -> float:
        """Mean of `per_class`: each class that was drawn weighs equally, however many queries it had."""
        known = [accuracy for accuracy in self.per_class.values() if accuracy is not None]
        return sum(known) / len(known) if known else float("nan")

    @property
    def episodes_per_second(self) -> float:
        """Speed."""
        return self.episodes / self.seconds

    def to_json(self) -> dict[str, object]:
        """The object that `eval --json` prints."""
        return {
            "method": self.method,
            "way": self.shape.way,
            "shot": self.shape.shot,
            "query": self.shape.query,
            "episodes": self.episodes,
            "accuracy": self.accuracy,
            "ci95": self.ci95,
            "modalities": {name: {"accuracy": a, "ci95": c} for name, (a, c) in self.modalities.items()},
            "fusions": {name: {"accuracy": a, "ci95": c} for name, (a, c) in self.fusions.items()},
            "selection_accuracy": self.selection_accuracy,
            "seconds": self.seconds,
            "episodes_per_second": self.episodes_per_second,
            "top5": self.top5,
            "class_accuracy": self.class_accuracy,
            "per_class": self.per_class,
        }


def conclude(
    tally: Tally, config: EvaluationConfig, method: str, class_names: Sequence[str], seconds: float
) -> Evaluation:
    """Accuracies, intervals and selection accuracies in percent.

    Args:
        tally: Sums of all blocks.
        config: What was evaluated.
        method: Name for the result.
        class_names: Of the rows of the confusion matrix.
        seconds: Time that it took.
    """
    queries = config.shape.way * config.shape.query
    fusions = {name: sums.share(queries) for name, sums in tally.fusions.items()}
    many = len(tally.modalities) > 1 and tally.contested > 0
    return Evaluation(
        method=method,
        shape=config.shape,
        episodes=config.episodes,
        accuracy=fusions[config.fusion][0],
        ci95=fusions[config.fusion][1],
        modalities={name: sums.share(queries) for name, sums in tally.modalities.items()},
        fusions=fusions,
        selection_accuracy={n: 100 * hits / tally.contested for n, hits in tally.selected.items()} if many else {},
        seconds=seconds,
        top5=tally.top.share(queries)[0],
        per_class=dict(zip(class_names, tally.class_accuracies(), strict=True)),
        confusion=tally.confusion,
        kept=torch.cat(tally.right) if config.keep else None,
    )
