"""What a search among prototypes gives."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .posterior import Certainties, Normaliser, join_certainties


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The prototypes nearest to each query, the nearest first; of equally near ones the lower id."""

    ids: Tensor
    """Rows of the prototypes, [NQ, k]; k is no more than there are prototypes."""
    distances: Tensor
    """sum_m alpha_m psi_m, float64 [NQ, k]."""
    psi: Tensor
    """tau_m |q_m - t_m|^2, float64 [M, NQ, k]."""
    weights: Tensor
    """alpha, float64 [M, NQ]."""
    certainties: Certainties | None
    """What the weights come from; None where they were given."""
    alone: Tensor | None
    """Ids of those nearest in each modality alone, which the certainties come from, [M, NQ, c]; None likewise."""

    @property
    def normaliser(self) -> Normaliser | None:
        """What the posteriors behind AMI's weights are normalised over; None where the weights were given."""
        return self.certainties.normaliser if self.certainties else None


def join_neighbours(parts: Sequence[Neighbours]) -> Neighbours:
    """Those of several groups of queries, one after the other."""
    found = [part.certainties for part in parts if part.certainties]
    alone = [part.alone for part in parts if part.alone is not None]
    return Neighbours(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.distances for part in parts]),
        torch.cat([part.psi for part in parts], 1),
        torch.cat([part.weights for part in parts], 1),
        join_certainties(found) if found else None,
        torch.cat(alone, 1) if alone else None,
    )
