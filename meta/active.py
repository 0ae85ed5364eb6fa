"""AMFIR on one page: active sample inference (ASI), mutual distillation (AMD) and multimodal inference (AMI).

Equations are those of "Active Multimodal Distillation for Few-shot Action Recognition" (AMFIR, arXiv:2506.13322);
sections are those of the method notes, which say which reading is taken where the paper leaves a choice. AMFAR
("Active Exploration of Multimodal Complementarity for Few-Shot Action Recognition", CVPR 2023) is the same code with
criterion `certainty`.

Everything is a function of psi [M, B, NQ, N]: the distances of B episodes' NQ queries to N prototypes as seen by M
modalities, temperature included. Any M >= 1 works; with one modality there is nobody to teach and nothing to fuse.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache.errors import UserError, pick


@dataclass(frozen=True, eq=False)
class Observation:
    """What the modalities show of a batch of episodes; made by `observe`."""

    psi: Tensor
    """Distances times temperature, [M, B, NQ, N]."""
    log_posteriors: Tensor
    """log p_i^m(k), Eq. 2, [M, B, NQ, N]."""
    labels: Tensor | None = None
    """Class positions of the queries, [NQ] or [B, NQ]; only the oracle `evidence` and the losses read them."""
    log_belief: Tensor | None = None
    """log q(m | o) of a fitted belief, [M, B, NQ]."""

    @property
    def posteriors(self) -> Tensor:
        """p_i^m(k), Eq. 2, [M, B, NQ, N]."""
        return self.log_posteriors.exp()

    @property
    def certainty(self) -> Tensor:
        """c_i^m = max_k p_i^m(k), Eq. 5, [M, B, NQ]."""
        return self.log_posteriors.amax(-1).exp()


def observe(psi: Tensor, labels: Tensor | None = None, log_belief: Tensor | None = None) -> Observation:
    """Posteriors p_i^m(k) = softmax_k(-psi_ik^m), Eq. 2.

    Args:
        psi: Distances times temperature, [M, B, NQ, N].
        labels: Class positions of the queries, [NQ] or [B, NQ].
        log_belief: log q(m | o), [M, B, NQ].
    """
    return Observation(psi, _log_softmax(-psi), labels, log_belief)


def _log_softmax(scores: Tensor) -> Tensor:
    """Over the last axis; with the few classes there, torch is several times faster when they stand first in memory."""
    return torch.log_softmax(scores.movedim(-1, 0).contiguous(), 0).movedim(0, -1)


# --- ASI (section 3.3): criteria, [M, B, NQ], lower = more reliable -------------------------------------------------


def free_energy(observation: Observation) -> Tensor:
    """F = -KL(u || p) = log N + mean_k log p(k), the default; at most 0 (method section 2: Eq. 1 and 3 as read)."""
    return math.log(observation.psi.shape[-1]) + observation.log_posteriors.mean(-1)


def expected_free_energy(observation: Observation) -> Tensor:
    """F - (log N - H(p)) = E_p[psi] - E_u[psi]: the free energy minus the epistemic value (method section 2)."""
    return observation.log_posteriors.mean(-1) + entropy(observation)


def max_prob(observation: Observation) -> Tensor:
    """-c, with Eq. 5's certainty: AMFAR's absolute certainty."""
    return -observation.certainty


def entropy(observation: Observation) -> Tensor:
    """H(p) = -sum_k p log p, in [0, log N]: AMFAR's relative certainty is h = -H."""
    return -(observation.posteriors * observation.log_posteriors).sum(-1)


def evidence(observation: Observation) -> Tensor:
    """-log p(y): a label oracle, for meta-training and for the cross-entropy (method section 2).

    Raises:
        UserError: If there are no labels.
    """
    if observation.labels is None:
        raise UserError("criterion 'evidence' needs the labels; at test there are none; use it in training only")
    log_p = observation.log_posteriors
    index = observation.labels.expand(log_p.shape[:-1])[..., None]
    return -log_p.gather(-1, index)[..., 0]


def raw_evidence(observation: Observation) -> Tensor:
    """-logsumexp_k(-psi) + log N: Eq. 1 taken literally. A diagnostic that does not work (method section 2)."""
    return math.log(observation.psi.shape[-1]) - torch.logsumexp(-observation.psi, -1)


def belief(observation: Observation) -> Tensor:
    """-log q(m | o) of the fitted belief.

    Raises:
        UserError: If no belief was fitted.
    """
    return -_log_belief(observation)


def _log_belief(observation: Observation) -> Tensor:
    if observation.log_belief is None:
        raise UserError("'belief' needs a fitted belief; none was given; fit it on base classes or use another name")
    return observation.log_belief


Criterion = Callable[[Observation], Tensor]

CRITERIA: dict[str, tuple[Criterion, ...]] = {
    "free-energy": (free_energy,),
    "expected-free-energy": (expected_free_energy,),
    "max-prob": (max_prob,),
    "entropy": (entropy,),
    "belief": (belief,),
    "evidence": (evidence,),
    "evidence-raw": (raw_evidence,),
    "certainty": (max_prob, entropy),
    "certainty-absolute": (max_prob,),
    "certainty-relative": (entropy,),
}
"""Criteria by name; a group needs the lead in every one listed. `certainty` is AMFAR's rule, and its two ablations are
named after the certainty that is left (method section 6)."""


def unreliability(observation: Observation, criterion: str) -> Tensor:
    """Value of one criterion, [M, B, NQ], lower = more reliable.

    Raises:
        UserError: If the criterion is unknown, lacks its input, or only forms groups.
    """
    values = pick(CRITERIA, criterion, "criterion")
    if len(values) > 1:
        raise UserError(f"criterion {criterion!r} only forms groups; it cannot rank modalities; use 'free-energy'")
    return values[0](observation)


def groups(observation: Observation, criterion: str = "free-energy", margin: float = 0.0) -> Tensor:
    """G_m: the queries whose most reliable modality is m, by more than `margin` over the runner-up, without gradient.

    Strictly more, as AMFAR writes it, so a tie belongs to no group. AMFAR's `certainty` asks for the lead in both of
    its certainties at once. One modality alone leads everywhere.

    Returns:
        Boolean [M, B, NQ], at most one True over M.
    """
    with torch.no_grad():
        leads = [_leads(value(observation), margin) for value in pick(CRITERIA, criterion, "criterion")]
    return torch.stack(leads).all(0)


def _leads(values: Tensor, margin: float) -> Tensor:
    if len(values) == 1:
        return torch.ones_like(values, dtype=torch.bool)
    best, runner_up = values.topk(2, 0, largest=False).values
    leads: Tensor = (values == best) & (runner_up - best > margin)
    return leads


# --- AMD (section 3.4); the objective that sums these losses is in objective.py -------------------------------------


def distillation_loss(teacher: Tensor, student: Tensor, group: Tensor) -> Tensor:
    """L_{m->n} = sum_{i in G_m} c_i^m KL(p_i^m || p_i^n) / sum_{i in G_m} c_i^m, averaged over the episodes.

    Eq. 4 and 5, with Eq. 6's sum over the teacher's group (method section 3). The teacher's posterior and certainty are
    detached. An empty group gives exactly 0, in value and gradient.

    Args:
        teacher: log p^m, [B, NQ, N].
        student: log p^n, [B, NQ, N].
        group: G_m, boolean [B, NQ].
    """
    teacher = teacher.detach()
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    weights = teacher.amax(-1).exp() * group
    tiny = torch.finfo(weights.dtype).tiny
    by_episode: Tensor = (weights * divergence).sum(-1) / weights.sum(-1).clamp_min(tiny)
    return by_episode.mean()


# --- AMI (section 3.5) ----------------------------------------------------------------------------------------------


def adaptive_weights(observation: Observation) -> Tensor:
    """alpha_i^m = c_i^m / sum_n c_i^n, Eq. 8, [M, B, NQ]."""
    return observation.certainty / observation.certainty.sum(0)


def equal_weights(observation: Observation) -> Tensor:
    """Equal alpha = 1 / M: late fusion, the ablation "without AMI"."""
    return torch.full_like(observation.psi[..., 0], 1 / len(observation.psi))


def belief_weights(observation: Observation) -> Tensor:
    """Weights alpha = q(m | o) of the fitted belief."""
    return _log_belief(observation).exp()


def select_weights(observation: Observation, criterion: str) -> Tensor:
    """1 for the modality that ASI finds most reliable, the first of equals, 0 for the others."""
    values = unreliability(observation, criterion)
    return torch.zeros_like(values).scatter_(0, values.min(0, keepdim=True).indices, 1.0)


def weighted_distance(observation: Observation, weights: Tensor) -> Tensor:
    """Fused log P(k | x_i) = log softmax_k(- sum_m alpha_i^m psi_ik^m), Eq. 7, [B, NQ, N]."""
    return _log_softmax(-(weights[..., None] * observation.psi).sum(0))


def mean_posterior(observation: Observation, weights: Tensor) -> Tensor:
    """Fused log sum_m alpha_i^m p_i^m(k), [B, NQ, N]."""
    return torch.logsumexp(observation.log_posteriors + weights.log()[..., None], 0)


Weights = Callable[[Observation, str], Tensor]
Combination = Callable[[Observation, Tensor], Tensor]

FUSIONS: dict[str, tuple[Weights, Combination]] = {
    "ami": (lambda observation, _: adaptive_weights(observation), weighted_distance),
    "late": (lambda observation, _: equal_weights(observation), weighted_distance),
    "posterior-mean": (lambda observation, _: equal_weights(observation), mean_posterior),
    "select": (select_weights, weighted_distance),
    "belief": (lambda observation, _: belief_weights(observation), weighted_distance),
}
"""Fusions by name: where the weights alpha come from, and what they weigh."""


@dataclass(frozen=True, eq=False)
class Inference:
    """Everything that explains how a batch of episodes was classified."""

    modalities: tuple[str, ...]
    """Names along the first axis of the tensors below."""
    psi: Tensor
    """Distances times temperature, [M, B, NQ, N]."""
    posteriors: Tensor
    """Eq. 2, [M, B, NQ, N]."""
    certainties: Tensor
    """Eq. 5, [M, B, NQ]."""
    free_energies: Tensor
    """ASI's default criterion, [M, B, NQ]."""
    weights: Tensor
    """alpha, [M, B, NQ], 1 in sum over the modalities."""
    logits: Tensor
    """log P(k | x_i), [B, NQ, N]."""

    @property
    def predictions(self) -> Tensor:
        """Class positions [B, NQ]; of equals the first, as torch.argmax does."""
        return self.logits.argmax(-1)


def fuse(observation: Observation, fusion: str = "ami", criterion: str = "free-energy") -> tuple[Tensor, Tensor]:
    """Fused log posteriors [B, NQ, N] and the weights alpha [M, B, NQ].

    Args:
        observation: With a belief if `fusion` or `criterion` asks for one.
        fusion: A key of `FUSIONS`.
        criterion: What `select` selects by; the others do not read it.

    Raises:
        UserError: If a name is unknown or its input is missing.
    """
    weigh, combine = pick(FUSIONS, fusion, "fusion")
    weights = weigh(observation, criterion)
    return combine(observation, weights), weights


def infer(
    observation: Observation, modalities: Sequence[str], fusion: str = "ami", criterion: str = "free-energy"
) -> Inference:
    """Classify a batch of episodes and keep what explains it; arguments and errors as `fuse` has them."""
    logits, weights = fuse(observation, fusion, criterion)
    return Inference(
        tuple(modalities),
        observation.psi,
        observation.posteriors,
        observation.certainty,
        free_energy(observation),
        weights,
        logits,
    )
