"""How far a posterior, or a choice of modality, can be trusted: calibration, and the ranking of right by criteria.

Everything here takes observations chunk by chunk, in any number, and keeps sums over bins; only the ranks of the AUROC
need the values themselves, of which a fixed number is kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .active import Observation, unreliability
from .tally import DIAGNOSED

CALIBRATION_BINS = 15
"""Bins of the expected calibration error, as many as Guo et al. take."""

MAX_RANKED = 2**18
"""Queries that an AUROC is computed from: all of 10,000 episodes of 25. Episodes are drawn alike, so the first ones of
more are a fair sample; its standard error is about 0.001."""


@dataclass(frozen=True)
class Bin:
    """The part of [0, 1] above `low`, up to and with `high`, and what fell into it."""

    low: float
    high: float
    count: int
    """Queries in it, at least one."""
    means: dict[str, float]
    """Mean of each quantity over them."""


class Bins:
    """Sums of quantities in bins of equal width over [0, 1]; 0 belongs to the first.

    Args:
        num: How many.
        names: The quantities.
    """

    def __init__(self, num: int, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._counts = torch.zeros(num, dtype=torch.int64)
        self._sums = torch.zeros(len(names), num, dtype=torch.float64)

    def add(self, position: Tensor, **quantities: Tensor) -> None:
        """Count queries.

        Args:
            position: Where they fall, in [0, 1], any shape.
            **quantities: Every quantity of theirs, shaped as `position`.
        """
        num = len(self._counts)
        index = (position.flatten().double() * num).ceil().long().sub(1).clamp(0, num - 1)
        self._counts += torch.bincount(index, minlength=num)
        for sums, name in zip(self._sums, self.names, strict=True):
            sums += torch.bincount(index, quantities[name].flatten().double(), num)

    @property
    def count(self) -> int:
        """Queries in all bins."""
        return int(self._counts.sum())

    def mean(self, name: str) -> float:
        """Mean of a quantity over all queries."""
        return self._sums[self.names.index(name)].sum().item() / self.count

    def filled(self) -> list[Bin]:
        """The bins that hold a query, ascending."""
        num, found = len(self._counts), []
        for position in self._counts.nonzero().flatten().tolist():
            count = int(self._counts[position])
            means = (self._sums[:, position] / count).tolist()
            found.append(Bin(position / num, (position + 1) / num, count, dict(zip(self.names, means, strict=True))))
        return found


class Calibration:
    """Expected calibration error, accuracy and negative log-likelihood of posteriors.

    Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), Eq. 2 and 5: the confidence of a query is the
    largest of its probabilities, bin b holds the queries with a confidence in ((b - 1) / B, b / B], and
    ECE = sum_b |b| / n * |accuracy(b) - confidence(b)|.

    Args:
        bins: Bins of equal width (B).
    """

    def __init__(self, bins: int = CALIBRATION_BINS) -> None:
        self._bins = Bins(bins, ("confidence", "accuracy", "nll"))

    def add(self, log_posteriors: Tensor, labels: Tensor, predictions: Tensor | None = None) -> None:
        """Count queries.

        Args:
            log_posteriors: log p(k), [..., NQ, N].
            labels: Class positions, [NQ] or [..., NQ].
            predictions: Class positions [..., NQ], where they are known more exactly than rounded posteriors tell:
                the smallest psi. None: the most probable class.
        """
        confidence, likely = log_posteriors.max(-1)
        right = (likely if predictions is None else predictions) == labels
        own = log_posteriors.gather(-1, labels.expand(right.shape)[..., None])[..., 0]
        self._bins.add(confidence.double().exp(), confidence=confidence.double().exp(), accuracy=right, nll=-own)

    @property
    def count(self) -> int:
        """Queries."""
        return self._bins.count

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]."""
        gaps = (part.count * abs(part.means["accuracy"] - part.means["confidence"]) for part in self.bins())
        return sum(gaps) / self.count

    @property
    def accuracy(self) -> float:
        """Share of right predictions, in [0, 1]."""
        return self._bins.mean("accuracy")

    @property
    def nll(self) -> float:
        """Mean of -log p(y), in nats."""
        return self._bins.mean("nll")

    def bins(self) -> list[Bin]:
        """The reliability diagram: means of `confidence` and `accuracy` (and `nll`) in the bins that hold a query."""
        return self._bins.filled()


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Probability that a positive scores above a negative, ties counted half (Mann and Whitney, 1947), exact.

    Args:
        scores: Any real type, [n]; NaN is not expected.
        positive: Boolean [n].

    Returns:
        In [0, 1]; None without a positive or without a negative.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    values, index = torch.unique(scores, return_inverse=True)
    of_value = torch.bincount(index[positive], minlength=len(values))
    others = torch.bincount(index[~positive], minlength=len(values))
    # Twice the pairs, so that the halves of ties are whole numbers.
    pairs = int((of_value * (2 * others.cumsum(0) - others)).sum())
    return pairs / (2 * positives * negatives)


class Ranking:
    """Scores and what they should tell apart, of the first queries that come.

    Args:
        limit: How many are kept.
    """

    def __init__(self, limit: int = MAX_RANKED) -> None:
        self.seen = 0
        """Queries that came, kept or not."""
        self._limit = limit
        self._scores: list[Tensor] = []
        self._positive: list[Tensor] = []

    def add(self, scores: Tensor, positive: Tensor) -> None:
        """Take queries, of any shape, in order."""
        free = max(0, self._limit - self.seen)
        self.seen += scores.numel()
        if free:
            self._scores.append(scores.flatten()[:free].clone())
            self._positive.append(positive.flatten()[:free].clone())

    @property
    def cut(self) -> bool:
        """Whether more came than are kept."""
        return self.seen > self._limit

    def auroc(self) -> float | None:
        """See `auroc`; None where nothing came."""
        return auroc(torch.cat(self._scores), torch.cat(self._positive)) if self.seen else None


@dataclass(frozen=True)
class Selected:
    """What a criterion knows about which modality is right."""

    criterion: str
    """A criterion, or `always-<modality>`."""
    accuracy: float | None
    """Share of the contested queries (exactly one modality right) for which the most reliable modality is the right
    one, in [0, 1]; None without such queries."""
    auroc: float | None
    """Among contested queries, the AUROC of a modality's lead (its reliability less that of the best other one) for
    "it is the right one", meant over the modalities; with two, it is the same for both. A constant preference has 0.5:
    this measures what the criterion knows of the query. None where no contested query tells."""
    right: dict[str, float | None]
    """Modality -> the AUROC of its reliability for "it is right", over all queries; None where it always is, or never.
    """


class Selection:
    """Selection accuracy, as `evaluate` has it, and AUROC of every criterion that needs no labels.

    Args:
        modalities: Names along the first axis of the observations.
        limit: Queries that an AUROC is computed from.
    """

    def __init__(self, modalities: Sequence[str], limit: int = MAX_RANKED) -> None:
        self.modalities = tuple(modalities)
        self.contested = 0
        """Queries for which exactly one modality is right."""
        self.limit = limit
        """Queries that an AUROC is computed from, at most."""
        self._picked: dict[str, int] = {}
        self._right: dict[str, dict[str, Ranking]] = {}
        self._contested: dict[str, dict[str, Ranking]] = {}

    def add(self, seen: Observation, labels: Tensor) -> None:
        """Take a chunk of observations; labels are the class positions of their queries, [NQ]."""
        right = seen.psi.argmin(-1) == labels
        contested = right.sum(0) == 1
        self.contested += int(contested.sum())
        for criterion, values in _unreliabilities(seen, self.modalities).items():
            choice = values.min(0, keepdim=True).indices
            picked = int((right.gather(0, choice)[0] & contested).sum())
            self._picked[criterion] = self._picked.get(criterion, 0) + picked
            for m, name in enumerate(self.modalities):
                self._ranking(self._right, criterion, name).add(-values[m], right[m])
                if len(values) > 1:
                    lead = (_without(values, m).amin(0) - values[m])[contested]
                    self._ranking(self._contested, criterion, name).add(lead, right[m][contested])

    def _ranking(self, of: dict[str, dict[str, Ranking]], criterion: str, modality: str) -> Ranking:
        return of.setdefault(criterion, {}).setdefault(modality, Ranking(self.limit))

    @property
    def cut(self) -> bool:
        """Whether an AUROC leaves out queries."""
        return any(ranking.cut for rankings in self._right.values() for ranking in rankings.values())

    def found(self) -> list[Selected]:
        """Criteria in the order of `CRITERIA`, then `always-<modality>`."""
        return [
            Selected(
                criterion,
                picked / self.contested if self.contested and len(self.modalities) > 1 else None,
                _mean(self._contested.get(criterion, {})),
                {name: ranking.auroc() for name, ranking in self._right[criterion].items()},
            )
            for criterion, picked in self._picked.items()
        ]


def _unreliabilities(seen: Observation, modalities: Sequence[str]) -> dict[str, Tensor]:
    """Criterion -> values [M, B, NQ]; `always-<modality>` where there is a choice."""
    names = [name for name in DIAGNOSED if name != "evidence" and (name != "belief" or seen.log_belief is not None)]
    values = {name: unreliability(seen, name) for name in names}
    if len(modalities) > 1:
        for m, name in enumerate(modalities):
            constant = torch.ones_like(seen.psi[..., 0])
            constant[m] = 0
            values[f"always-{name}"] = constant
    return values


def _without(values: Tensor, m: int) -> Tensor:
    return torch.cat([values[:m], values[m + 1 :]])


def _mean(rankings: Mapping[str, Ranking]) -> float | None:
    known = [value for value in (ranking.auroc() for ranking in rankings.values()) if value is not None]
    return sum(known) / len(known) if known else None
