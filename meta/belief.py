"""The amortised belief q(m | o): which modality to trust for a query, learnt on held-out episodes of base classes.

Method section 2. What the posteriors cannot tell, typicality does: an embedding unlike any seen before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .active import entropy, evidence, free_energy, observe

NUM_FEATURES = 4
TYPICALITY = 3


@dataclass(frozen=True, eq=False)
class Belief:
    """q(m | o_i) = softmax_m(w . phi_i^m + b_m), phi = (c, H, free-energy, typicality), standardised.

    All tensors float64. Modalities are known by their position; the owner keeps their names.
    """

    mean: Tensor
    """Mean of the features over the fit's queries, [M, 4]; certainty, entropy and free energy share theirs over the
    modalities, typicality has its own: method section 2's mu_m."""
    scale: Tensor
    """Their standard deviations likewise, [M, 4]."""
    weights: Tensor
    """w, [4], shared by the modalities."""
    bias: Tensor
    """b_m, [M]."""

    def log_weights(self, psi: Tensor, centre: Tensor | None = None) -> Tensor:
        """Evaluate log q(m | o), [M, B, NQ], without gradient to the inputs.

        Args:
            psi: Distances times temperature, [M, B, NQ, N].
            centre: psi to the mean prototype, [M, B, NQ]; None for heads without vector prototypes: mean_k psi.
        """
        standard = (_features(psi, centre) - _over_queries(self.mean)) / _over_queries(self.scale)
        return _log_belief(standard, self.weights, self.bias).to(psi.dtype)

    def keep(self, positions: Sequence[int]) -> "Belief":
        """The belief over some of its modalities, for when another one is missing."""
        kept = list(positions)
        return Belief(self.mean[kept], self.scale[kept], self.weights, self.bias[kept])

    def to_state(self) -> dict[str, Tensor]:
        """Plain tensors for a checkpoint."""
        return {"mean": self.mean, "scale": self.scale, "weights": self.weights, "bias": self.bias}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Belief":
        """The belief that `to_state` wrote."""
        return cls(state["mean"], state["scale"], state["weights"], state["bias"])


def fit_belief(psi: Tensor, centre: Tensor | None, labels: Tensor, l2: float = 1e-3, steps: int = 200) -> Belief:
    """Fit a belief by minimising the mean of KL(q || 1/M) - sum_m q(m) log p_i^m(y_i) over queries.

    Args:
        psi: Distances times temperature on episodes of base-class clips that trained no head, [M, B, NQ, N].
        centre: psi to the mean prototype, [M, B, NQ], or None; see `Belief.log_weights`.
        labels: Class positions, [NQ] or [B, NQ].
        l2: Weight of the squared parameters; it also fixes sum_m b_m = 0.
        steps: Most L-BFGS iterations; some 20 are usual.

    Returns:
        The belief, the same on every call with the same input on the same machine.
    """
    features = _features(psi, centre)
    mean, scale = _statistics(features)
    standard = (features - _over_queries(mean)) / _over_queries(scale)
    log_likelihood = -evidence(observe(psi.detach().double(), labels))
    weights = torch.zeros(NUM_FEATURES, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(psi), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        log_q = _log_belief(standard, weights, bias)
        # KL(q || 1/M) without its constant log M.
        value = (log_q.exp() * (log_q - log_likelihood)).sum(0).mean()
        value = value + l2 * (weights.square().sum() + bias.square().sum())
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Belief(mean, scale, weights.detach(), bias.detach())


def _features(psi: Tensor, centre: Tensor | None) -> Tensor:
    """Phi before it is standardised, [M, B, NQ, 4], float64, detached."""
    observation = observe(psi.detach().double())
    typicality = observation.psi.mean(-1) if centre is None else centre.detach().double()
    return torch.stack([observation.certainty, entropy(observation), free_energy(observation), typicality], -1)


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, [M, 4] each; a constant feature gets the deviation 1."""
    by_modality = features.flatten(1, 2)
    pooled = features.flatten(0, 2)
    mean = pooled.mean(0).repeat(len(features), 1)
    scale = pooled.std(0, correction=0).repeat(len(features), 1)
    mean[:, TYPICALITY] = by_modality[..., TYPICALITY].mean(1)
    scale[:, TYPICALITY] = by_modality[..., TYPICALITY].std(1, correction=0)
    return mean, scale.where(scale > 1e-9 * mean.abs().clamp_min(1e-9), 1.0)


def _over_queries(values: Tensor) -> Tensor:
    return values[:, None, None, :]


def _log_belief(standard: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    return torch.log_softmax(standard @ weights + bias[:, None, None], 0)
