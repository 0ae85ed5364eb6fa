import math

import pytest
import torch
from torch import Tensor

from amfir.meta.temperature import SEARCH_FACTOR, fit_temperature, initial_temperature


def planted(tau: float, queries: int = 4_000, way: int = 4) -> tuple[Tensor, Tensor]:
    """Distances whose labels are drawn from softmax(-tau psi)."""
    generator = torch.Generator().manual_seed(5)
    psi = torch.rand(1, queries, way, generator=generator, dtype=torch.float64) * 3 + 1e5
    labels = torch.multinomial(torch.softmax(-tau * psi[0], -1), 1, generator=generator).T
    return psi, labels


def cross_entropy(psi: Tensor, labels: Tensor, tau: float) -> float:
    return torch.nn.functional.cross_entropy(-tau * psi.flatten(0, 1), labels.flatten()).item()


def test_initial_temperature_makes_the_mean_distance_eight() -> None:
    psi = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) * 1e4
    assert (psi * initial_temperature(psi)).mean().item() == pytest.approx(8, rel=1e-5)
    assert initial_temperature(torch.zeros(2, 3)) == 1.0


@pytest.mark.parametrize(("tau", "scale"), [(0.3, 1e5), (2.0, 1.0), (9.0, 1e-4)])
def test_fit_equals_the_best_of_a_dense_grid_and_finds_the_planted_value(tau: float, scale: float) -> None:
    psi, labels = planted(tau)
    fitted = fit_temperature(psi * scale, labels)
    grid = torch.linspace(math.log(tau) - 0.25, math.log(tau) + 0.25, 101).exp().tolist()
    best = min(grid, key=lambda t: cross_entropy(psi, labels, t))
    assert fitted * scale == pytest.approx(best, rel=5e-3)
    assert cross_entropy(psi, labels, fitted * scale) <= cross_entropy(psi, labels, best) + 1e-9
    assert fitted * scale == pytest.approx(tau, rel=0.2)
    assert fit_temperature(psi * scale, labels) == fitted


def test_labels_may_be_shared_by_all_episodes_and_the_input_is_float32() -> None:
    psi = torch.rand(30, 6, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    psi.scatter_add_(-1, labels.expand(30, 6)[..., None], torch.full((30, 6, 1), -0.4))
    assert fit_temperature(psi, labels) == pytest.approx(fit_temperature(psi.double(), labels.expand(30, 6)), rel=1e-9)


def test_perfect_separation_and_no_distances_end_at_finite_values() -> None:
    labels = torch.tensor([0, 1, 2])
    apart = 4 * (1 - torch.eye(3)) + 50
    start = 8 / (4 * 2 / 3)
    assert 1 < fit_temperature(apart[None], labels) / start <= SEARCH_FACTOR * 1.001
    assert 0 < fit_temperature(torch.zeros(1, 3, 3), labels) < math.inf
