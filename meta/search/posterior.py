"""Certainties c = max_k p(k) over very many prototypes, of which only the nearest are known."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .space import Doubles, Ids

TOLERANCE = 1e-3
"""Up to this relative distance of its two bounds a certainty counts as that of the posterior over all prototypes."""

Normaliser = Literal["exact", "bounded", "candidates"]


@dataclass(frozen=True, eq=False)
class Certainties:
    """c_i^m = max_k p_i^m(k) (AMFIR Eq. 5), its posterior normalised over the candidates of a query.

    Candidates are the prototypes nearest to the query in any modality: one set for all modalities, so that their
    posteriors speak of the same classes. What the others could add to the normaliser is bounded, and with it c.
    """

    values: Tensor
    """Over the candidates, [M, NQ]."""
    lower: Tensor
    """c over all N prototypes is no smaller, [M, NQ]."""
    upper: Tensor
    """c over all N prototypes is no larger, [M, NQ]."""
    complete: Tensor
    """Queries whose candidates are all prototypes, boolean [NQ]."""

    @property
    def tight(self) -> Tensor:
        """Queries whose bounds agree to `TOLERANCE` in every modality, boolean [NQ]."""
        return (self.upper <= self.lower * (1 + TOLERANCE)).all(0)

    @property
    def normaliser(self) -> Normaliser:
        """What the posteriors are normalised over.

        `exact`: all N prototypes. `bounded`: the candidates, but for every query the others matter less than
        `TOLERANCE`. `candidates`: the candidates, and for some query (see `tight`) the others may matter.
        """
        if bool(self.complete.all()):
            return "exact"
        return "bounded" if bool(self.tight.all()) else "candidates"

    @property
    def weights(self) -> Tensor:
        """alpha_i^m = c_i^m / sum_n c_i^n (AMFIR Eq. 8), [M, NQ]."""
        return self.values / self.values.sum(0)

    @property
    def weight_bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of the weights over all N prototypes, each [M, NQ]."""
        lower = self.lower / (self.lower + self.upper.sum(0) - self.upper)
        upper = self.upper / (self.upper + self.lower.sum(0) - self.lower)
        return lower, upper


@dataclass(frozen=True, eq=False)
class Candidates:
    """What is known of the prototypes near each query."""

    ids: Ids
    """[NQ, C]; the first of equal ones counts."""
    psi: Doubles
    """Their distances, [M, NQ, C]."""
    rounding: Doubles
    """Bound of the error of `psi`, [M, NQ, C]."""
    reach: Doubles
    """No prototype outside of the candidates is nearer than this, [M, NQ]; not true of approximate search."""


def certainties(candidates: Candidates, num: int, exact: bool) -> Certainties:
    """Certainties over the candidates, and what they can be over all prototypes.

    The normaliser lies between the candidates' sum of exp(-psi) and that plus (N - C) exp(-reach). This needs the truly
    nearest; where the search was approximate, nothing is known but 1 / N <= c <= 1.

    Args:
        candidates: Of each query.
        num: N, the number of prototypes.
        exact: Whether the candidates are truly the nearest.
    """
    first = torch.from_numpy(_first_of_equals(candidates.ids))
    psi, rounding = torch.from_numpy(candidates.psi), torch.from_numpy(candidates.rounding)
    outside = num - first.sum(-1)
    scores = (-psi).where(first, -torch.inf)
    best, place = scores.max(-1, keepdim=True)
    values = torch.exp(best[..., 0] - torch.logsumexp(scores, -1))
    if not exact:
        unknown = torch.zeros(len(outside), dtype=torch.bool)
        return Certainties(values, torch.full_like(values, 1 / num), torch.ones_like(values), unknown)
    # 1 / c is 1 and what the others add. The error of `reach` is no larger than that of the farthest candidate.
    others = torch.logsumexp((scores + rounding).scatter(-1, place, -torch.inf), -1)
    tail = outside.double().log() - torch.from_numpy(candidates.reach) + rounding.amax(-1)
    added = torch.logaddexp(others, tail) - best[..., 0] + rounding.gather(-1, place)[..., 0]
    lower = 1 / (1 + added.exp())
    upper = torch.exp((scores + rounding).amax(-1) - torch.logsumexp(scores - rounding, -1))
    # c is the largest of N numbers that sum to 1.
    return Certainties(values, lower.clamp_min(1 / num), upper.clamp_max(1), outside == 0)


def join_certainties(parts: Sequence[Certainties]) -> Certainties:
    """Those of several groups of queries, one after the other."""
    return Certainties(
        torch.cat([part.values for part in parts], 1),
        torch.cat([part.lower for part in parts], 1),
        torch.cat([part.upper for part in parts], 1),
        torch.cat([part.complete for part in parts]),
    )


def _first_of_equals(ids: Ids) -> NDArray[np.bool_]:
    """Mark in each row the first of equal ids."""
    order = ids.argsort(1, kind="stable")
    ordered = np.take_along_axis(ids, order, 1)
    first = np.ones(ids.shape, dtype=bool)
    np.put_along_axis(first, order[:, 1:], ordered[:, 1:] != ordered[:, :-1], 1)
    return first
