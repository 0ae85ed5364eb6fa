"""Whether two methods differ on the episodes that both were evaluated on.

The same episodes are hard for all methods, so differences vary far less from episode to episode than accuracies do.
Episodes share clips: the figures speak of these clips and classes, not of others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.05
"""Adjusted p below which a difference is called significant."""


@dataclass(frozen=True)
class Difference:
    """Mean difference between two methods over common episodes."""

    mean: float
    """In the unit of the values."""
    ci95: float
    """Half-width of its 95 % confidence interval."""
    p: float
    """Two-sided, by the normal approximation; adjusted once `holm` was applied."""

    @property
    def significant(self) -> bool:
        """Whether p is below `LEVEL`."""
        return self.p < LEVEL


def mean_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean of an episode's values [E] and half-width of its 95 % confidence interval, 1.96 population sd / sqrt(E)."""
    return float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values))


def paired_difference(values: NDArray[np.float64], others: NDArray[np.float64]) -> Difference:
    """Compare two methods episode by episode.

    Args:
        values: A method's accuracy in each episode, [E].
        others: Another method's in the same episodes, [E].

    Returns:
        `values` minus `others`. Where all episodes differ by the same, p is 0, or 1 if by nothing.
    """
    mean, ci95 = mean_interval(values - others)
    if ci95 == 0:
        return Difference(mean, 0.0, 1.0 if mean == 0 else 0.0)
    return Difference(mean, ci95, math.erfc(abs(mean) / (ci95 / 1.96) / math.sqrt(2)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p of several comparisons so that the chance of one false finding among them stays below the level.

    Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979): the i-th smallest of m
    is multiplied by m - i + 1, and none is smaller than one before it.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for before, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - before) * p_values[place]))
        adjusted[place] = largest
    return adjusted
