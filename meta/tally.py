"""What an evaluation counts: integers of a block of episodes, and their sums over any number of blocks.

Sums of integers do not depend on who counted a block, nor when: split over processes, the figures are the same to the
last digit. Nothing here grows with the number of episodes, but for the counts of each episode where they are kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .active import CRITERIA, FUSIONS, Observation, fuse, unreliability

TOP = 5
"""A query counts for the top-5 accuracy if its class is among so many."""

DIAGNOSED = tuple(name for name, scores in CRITERIA.items() if len(scores) == 1 and not name.startswith("certainty-"))
"""Criteria whose selection accuracy is reported, where their input is at hand."""

Share = tuple[float, float]
"""Accuracy and half-width of its 95 % confidence interval, percent."""


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Counts:
    """Integers that some episodes come down to."""

    modalities: dict[str, Tensor]
    """Right queries of each episode, modality alone, int64 [E]."""
    fusions: dict[str, Tensor]
    """Right queries of each episode, fused, int64 [E]."""
    selected: dict[str, int]
    """Contested queries for which a criterion, or `always-<modality>`, picks the right modality."""
    contested: int
    """Queries for which exactly one modality is right."""
    top: Tensor = field(default_factory=_none)
    """Queries of each episode whose class is among the first five by the configured fusion, int64 [E]."""
    cells: Tensor = field(default_factory=_none)
    """Cells of the confusion matrix that queries fell into by the configured fusion: true * classes + predicted,
    each once, int64 [n]; a block knows few of a large matrix."""
    hits: Tensor = field(default_factory=_none)
    """Queries in each of these cells, int64 [n]."""


def count(
    seen: Observation,
    labels: Tensor,
    classes: Tensor,
    num_classes: int,
    modalities: Sequence[str],
    fusion: str,
    criterion: str,
) -> Counts:
    """Count what was predicted in some episodes.

    Args:
        seen: What the modalities show of them.
        labels: Positions of the queries' classes, [NQ].
        classes: Which class each of an episode's positions is, below `num_classes`, [E, N].
        num_classes: Rows of the confusion matrix.
        modalities: Names.
        fusion: Whose confusion and top-5 are counted.
        criterion: What the fusion `select` selects by.

    Raises:
        UserError: If the fusion or criterion lacks its input.
    """
    # `max(...).indices` is the first of equals, as argmax is, and far faster where the axis is not the last in memory.
    right = seen.psi.argmin(-1) == labels
    names = [name for name in FUSIONS if name != "belief" or seen.log_belief is not None or fusion == name]
    fused: dict[str, Tensor] = {}
    for name in names:
        logits = fuse(seen, name, criterion)[0]
        predicted = logits.max(-1).indices
        fused[name] = (predicted == labels).sum(-1)
        if name == fusion:
            top = among_top(logits, labels).sum(-1)
            cells, hits = _confusion(predicted, labels, classes, num_classes)
    selected, contested = _selections(seen, right, modalities)
    alone = {name: hit.sum(-1) for name, hit in zip(modalities, right, strict=True)}
    return Counts(alone, fused, selected, contested, top, cells, hits)


def among_top(logits: Tensor, labels: Tensor, top: int = TOP) -> Tensor:
    """Whether each query's own class is among its `top` first; of equals the first class comes first, as in argmax.

    Args:
        logits: [E, NQ, N].
        labels: Positions of the queries' classes, [NQ].
        top: Places that count; with no more classes than that, every query's does.

    Returns:
        Boolean [E, NQ].
    """
    if logits.shape[-1] <= top:
        return torch.ones(logits.shape[:-1], dtype=torch.bool)
    own = logits.gather(-1, labels.expand(logits.shape[:-1])[..., None])
    earlier = torch.arange(logits.shape[-1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(-1) < top


def _confusion(predicted: Tensor, labels: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    true = classes[:, labels]
    cells, hits = torch.unique(true * num_classes + classes.gather(1, predicted), return_counts=True)
    return cells, hits


def _selections(seen: Observation, right: Tensor, modalities: Sequence[str]) -> tuple[dict[str, int], int]:
    contested = right.sum(0) == 1
    selected = {f"always-{name}": int((hit & contested).sum()) for name, hit in zip(modalities, right, strict=True)}
    for name in DIAGNOSED:
        if name == "evidence" or (name == "belief" and seen.log_belief is None):
            continue
        choice = unreliability(seen, name).min(0, keepdim=True).indices
        selected[name] = int((right.gather(0, choice)[0] & contested).sum())
    return selected, int(contested.sum())


def join(parts: Sequence[Counts]) -> Counts:
    """The counts of several parts' episodes, in the order given."""
    first = parts[0]
    cells, at = torch.unique(torch.cat([part.cells for part in parts]), return_inverse=True)
    return Counts(
        {name: torch.cat([part.modalities[name] for part in parts]) for name in first.modalities},
        {name: torch.cat([part.fusions[name] for part in parts]) for name in first.fusions},
        {name: sum(part.selected[name] for part in parts) for name in first.selected},
        sum(part.contested for part in parts),
        torch.cat([part.top for part in parts]),
        cells,
        torch.zeros_like(cells).scatter_add_(0, at, torch.cat([part.hits for part in parts])),
    )


@dataclass(eq=False)
class Sums:
    """Number, sum and sum of squares of one integer an episode."""

    number: int = 0
    total: int = 0
    squares: int = 0

    def add(self, values: Tensor) -> None:
        """Take the values of some episodes, int64 [E]."""
        self.number += len(values)
        self.total += int(values.sum())
        self.squares += int(values.square().sum())

    def share(self, queries: int) -> Share:
        """Mean share of an episode's `queries`, and 1.96 population standard deviations over sqrt(E); percent.

        NaN where nothing was counted.
        """
        if not self.number:
            return math.nan, math.nan
        variance = (self.number * self.squares - self.total**2) / self.number**2
        mean = 100 * self.total / (self.number * queries)
        return mean, 100 * 1.96 * math.sqrt(variance / self.number) / queries


@dataclass(eq=False)
class Tally:
    """Sums over the blocks of an evaluation; its size does not depend on their number, unless `keep` is set."""

    num_classes: int
    """Rows of the confusion matrix."""
    fusion: str
    """Whose counts of each episode are kept."""
    keep: bool = True
    """Whether they are."""
    modalities: dict[str, Sums] = field(default_factory=dict)
    """Right queries, modality alone."""
    fusions: dict[str, Sums] = field(default_factory=dict)
    """Right queries, fused."""
    top: Sums = field(default_factory=Sums)
    """Queries whose class is among the first five."""
    selected: dict[str, int] = field(default_factory=dict)
    """As in `Counts`."""
    contested: int = 0
    """As in `Counts`."""
    right: list[Tensor] = field(default_factory=list)
    """Of each block, where kept: right queries of its episodes by the fusion, int64."""

    def __post_init__(self) -> None:
        """Make the confusion matrix, int64 [C, C]: queries of a true class (row) by predicted class (column)."""
        self.confusion = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)

    def add(self, counts: Counts) -> None:
        """Take the counts of a block; the order of the blocks matters to what is kept alone."""
        for sums, counted in ((self.modalities, counts.modalities), (self.fusions, counts.fusions)):
            for name, values in counted.items():
                sums.setdefault(name, Sums()).add(values)
        self.top.add(counts.top)
        for name, hits in counts.selected.items():
            self.selected[name] = self.selected.get(name, 0) + hits
        self.contested += counts.contested
        self.confusion.view(-1).index_add_(0, counts.cells, counts.hits)
        if self.keep:
            self.right.append(counts.fusions[self.fusion])

    def class_accuracies(self) -> list[float | None]:
        """Accuracy of the queries of each true class, percent; None for a class that no episode drew."""
        queries = self.confusion.sum(1).tolist()
        right = self.confusion.diagonal().tolist()
        return [100 * hit / number if number else None for hit, number in zip(right, queries, strict=True)]
