"""Is an approximate search good enough, and is it worth it? Measured on held-out queries against exact search."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .approximate import Exact
from .layout import Layout
from .library import Floats, Found, Ids

TARGET = 0.99
"""recall@1 that an approximate search must reach on held-out queries, with confidence."""

CONFIDENCE = 1.645
"""Standard deviations of a one-sided 95 % bound."""

FASTER = 2
"""How much faster than exact search an approximate one must be to be worth its errors."""

DEPTH = 10
"""Neighbours whose recall is measured beside that of the first."""

FEWEST = 1000
"""Held-out queries: of 300, not one might be missed."""


@dataclass(frozen=True)
class Recall:
    """How much of an exact search an approximate one finds."""

    first: float
    """Share of queries whose best row was found."""
    least: float
    """The smallest such share among the kinds of queries: each modality alone, and fused."""
    queries: int

    @property
    def bound(self) -> float:
        """What recall@1 exceeds with 95 % confidence (Wilson's score interval)."""
        n, z = self.queries, CONFIDENCE
        centre = self.first + z * z / (2 * n)
        spread = z * math.sqrt(self.first * (1 - self.first) / n + z * z / (4 * n * n))
        return (centre - spread) / (1 + z * z / n)

    @property
    def suffices(self) -> bool:
        """Whether the target is met, by all queries with confidence and by each kind on the whole."""
        return self.bound >= TARGET and self.least >= TARGET


@dataclass(frozen=True, eq=False)
class Trial:
    """Held-out queries, what exact search finds for them, and in what time."""

    queries: Floats
    """[n, W]."""
    own: Ids
    """The row that a query was made of and that is no answer to it, or -1."""
    kinds: Ids
    """Of each query: the modality that it weighs alone, or M."""
    scores: Floats
    """Of the DEPTH best rows."""
    ids: Ids
    seconds: float
    """Of the exact search."""

    def recall(self, search: Callable[[Floats, int], Found]) -> Recall:
        """Compare a search; equal inner products count as equal rows."""
        scores, ids = _without(search(self.queries, self.ids.shape[1] + 1), self.own)
        tie = 1e-6 * np.maximum(1, np.abs(self.scores))
        first = (ids[:, 0] == self.ids[:, 0]) | (scores[:, 0] >= self.scores[:, 0] - tie[:, 0])
        least = min(float(first[self.kinds == kind].mean()) for kind in np.unique(self.kinds))
        return Recall(float(first.mean()), least, len(first))

    def speedup(self, search: Callable[[Floats, int], Found]) -> float:
        """How much faster than exact search it is, at its second try: the first reads what nobody has read."""
        seconds = [_timed(search, self.queries, self.ids.shape[1] + 1)[0] for _ in range(2)]
        return self.seconds / min(seconds)


def start_trial(exact: Exact, matrix: Floats, layout: Layout, held_out: Floats | None, seed: int) -> Trial:
    """Search held-out queries exactly; where they are few, also prototypes among all the others.

    Args:
        exact: What is to be approximated.
        matrix: [N, W], N > 1.
        layout: Of its columns.
        held_out: [n, W], or None.
        seed: Of the prototypes chosen, and of their weights.
    """
    given = matrix[:0] if held_out is None else held_out
    own, queries = _own_queries(matrix, layout, max(0, FEWEST - len(given)), seed)
    queries = np.concatenate([given, queries])
    own = np.concatenate([np.full(len(given), -1), own])
    seconds, found = _timed(exact.search, queries, min(DEPTH + 1, len(matrix)))
    scores, ids = _without(found, own)
    weights = -queries[:, layout.norms]
    alone = weights.max(1) > (1 - 1e-6) * weights.sum(1)
    return Trial(queries, own, np.where(alone, weights.argmax(1), weights.shape[1]), scores, ids, seconds)


def _own_queries(matrix: Floats, layout: Layout, number: int, seed: int) -> tuple[Ids, Floats]:
    """Prototypes as queries, one half of them with the weight on one modality, the other with random weights."""
    generator = np.random.default_rng(seed)
    own = generator.integers(len(matrix), size=number)
    count = len(layout.widths)
    weights = generator.dirichlet(np.ones(count), number).astype(np.float32)
    alone = np.arange(number) % 2 == 0
    weights[alone] = np.eye(count, dtype=np.float32)[generator.integers(count, size=int(alone.sum()))]
    queries = 2 * matrix[own]
    for columns, weight in zip(layout.columns, weights.T, strict=True):
        queries[:, columns] *= weight[:, None]
    queries[:, layout.norms] = -weights
    return own, queries


def _without(found: Found, own: Ids) -> Found:
    """Leave out a query's own row [NQ, k + 1] -> [NQ, k]; the last where it is not among them."""
    scores, ids = found
    keep = ids != own[:, None]
    keep[keep.all(1), -1] = False
    shape = (len(ids), ids.shape[1] - 1)
    return scores[keep].reshape(shape), ids[keep].reshape(shape)


def _timed(search: Callable[[Floats, int], Found], queries: Floats, k: int) -> tuple[float, Found]:
    started = time.perf_counter()
    found = search(queries, k)
    return time.perf_counter() - started, found


def tune(
    trial: Trial, search: Callable[[Floats, int], Found], settings: Sequence[int], apply: Callable[[int], None]
) -> str:
    """Apply the setting after the first that finds enough: other queries may be a little harder.

    Args:
        trial: Held-out queries.
        search: The approximate search.
        settings: From fast to thorough.
        apply: Makes the search use one.

    Returns:
        Why no setting is worth it; empty where one is.
    """
    reached = 0.0
    for position, setting in enumerate(settings):
        apply(setting)
        found = trial.recall(search)
        reached = max(reached, found.first)
        if found.suffices:
            apply(settings[min(position + 1, len(settings) - 1)])
            speedup = trial.speedup(search)
            return "" if speedup >= FASTER else f"with recall@1 of {TARGET} it has {speedup:.1f} times the speed"
    return f"recall@1 reached {reached:.3f}, not {TARGET} with confidence"
