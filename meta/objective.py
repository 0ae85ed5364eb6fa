"""The meta-training objective of AMFIR (section 3.6): each modality's cross-entropy and what the others teach it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache.errors import UserError, pick
from .active import CRITERIA, Observation, distillation_loss, evidence, groups

REDUCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {"mean": torch.mean, "sum": torch.sum}
"""How a loss reduces over an episode's queries: Eq. 10 sums, Eq. 6 averages; originals of the field do either."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """How the modalities teach each other (Eq. 9)."""

    criterion: str = "free-energy"
    """ASI's criterion for the groups, a key of `CRITERIA`."""
    strategy: str = "mutual"
    """`mutual`, `none`, or `<modality>-teacher`: that modality teaches the others on all queries (Figure 4)."""
    distillation_weight: float = 1.0
    """lambda of Eq. 9."""
    margin: float = 0.0
    """Lead that a query's best modality needs to be in a group, in the criterion's unit."""
    drop_groups: tuple[str, ...] = ()
    """Modalities whose groups are not distilled: ("rgb",) is Table 2's "without RD"."""
    reduction: str = "mean"
    """A key of `REDUCTIONS`."""

    def __post_init__(self) -> None:
        """Refuse unknown names and negative numbers."""
        pick(CRITERIA, self.criterion, "criterion")
        pick(REDUCTIONS, self.reduction, "reduction")
        if self.strategy not in ("mutual", "none") and not self.strategy.endswith("-teacher"):
            raise UserError(f"unknown strategy {self.strategy!r}; known: mutual, none, <modality>-teacher")
        for name in ("distillation_weight", "margin"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it cannot be negative; give 0 or more")


@dataclass(frozen=True, eq=False)
class Objective:
    """The loss of a batch of episodes and its parts."""

    total: Tensor
    """Eq. 9, scalar, mean over the episodes."""
    cross_entropy: Tensor
    """Each modality's own loss, [M]."""
    distillation: Tensor
    """L_{m->n}, teacher m in rows, student n in columns, [M, M], zero diagonal; before lambda."""
    groups: Tensor
    """ASI's groups, boolean [M, B, NQ], whether distilled or not."""


def objective(
    observation: Observation, modalities: Sequence[str], config: ObjectiveConfig, losses: Tensor | None = None
) -> Objective:
    """L = sum_m CE(p^m, y) + lambda sum_{m != n} L_{m->n}, Eq. 9.

    Eq. 10 is read as the cross-entropy on the labels (method section 4). A modality's psi receives gradient from its
    own cross-entropy and from the losses in which it is the student, from nothing else (Eq. 11). The batch's loss is
    the mean of its episodes' losses.

    Args:
        observation: With labels.
        modalities: Names along the first axis of psi.
        config: Strategy, criterion and weights.
        losses: Each modality's own loss of each query [M, B, NQ], for heads that do not learn by cross-entropy.

    Raises:
        UserError: If there are no labels, or the configuration names a modality that is not here.
    """
    own = evidence(observation) if losses is None else losses
    cross_entropy = REDUCTIONS[config.reduction](own, -1).mean(-1)
    grouped = groups(observation, config.criterion, config.margin)
    taught = _taught(grouped, modalities, config)
    log_p = observation.log_posteriors
    zero = log_p.new_zeros(())
    taught_by = [
        zero if m == n else distillation_loss(log_p[m], log_p[n], taught[m])
        for m in range(len(log_p))
        for n in range(len(log_p))
    ]
    distillation = torch.stack(taught_by).view(len(log_p), len(log_p))
    total = cross_entropy.sum() + config.distillation_weight * distillation.sum()
    return Objective(total, cross_entropy, distillation, grouped)


def _taught(grouped: Tensor, modalities: Sequence[str], config: ObjectiveConfig) -> Tensor:
    """The queries that each modality teaches the others, boolean [M, B, NQ]."""
    index = {name: m for m, name in enumerate(modalities)}
    if config.strategy == "mutual":
        taught = grouped.clone()
        for name in config.drop_groups:
            taught[pick(index, name, "modality")] = False
        return taught
    taught = torch.zeros_like(grouped)
    if config.strategy != "none":
        taught[pick(index, config.strategy.removesuffix("-teacher"), "modality")] = True
    return taught
