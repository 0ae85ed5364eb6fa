import math

import pytest
import torch
from torch import Tensor

from amfir.meta.active import fuse, observe, unreliability
from amfir.meta.belief import Belief, fit_belief


def spoiled(seed: int, batch: int = 60, queries: int = 20, way: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Both modalities are always sure; one of them, at random, is wrong, and its query lies far from all prototypes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(way, (batch, queries), generator=generator)
    victim = torch.randint(2, (batch, queries), generator=generator)
    psi = 6 + torch.rand(2, batch, queries, way, generator=generator)
    centre = 4 + torch.rand(2, batch, queries, generator=generator)
    for m in range(2):
        wrong = (labels + torch.randint(1, way, labels.shape, generator=generator)) % way
        shown = torch.where(victim == m, wrong, labels)
        psi[m].scatter_(-1, shown[..., None], torch.rand(batch, queries, 1, generator=generator))
        centre[m] += 5 * (victim == m)
    return psi, centre, labels


def accuracy(psi: Tensor, labels: Tensor, fusion: str, criterion: str, log_belief: Tensor | None = None) -> float:
    logits, _ = fuse(observe(psi, log_belief=log_belief), fusion, criterion)
    return float((logits.argmax(-1) == labels).double().mean())


def slow_features(psi: Tensor, centre: Tensor) -> Tensor:
    out = torch.zeros(*psi.shape[:3], 4, dtype=torch.float64)
    for index in torch.cartesian_prod(*[torch.arange(n) for n in psi.shape[:3]]).tolist():
        m, b, i = index
        exponentials = [math.exp(-d) for d in psi[m, b, i].tolist()]
        p = [e / sum(exponentials) for e in exponentials]
        u = 1 / len(p)
        out[m, b, i] = torch.tensor(
            [
                max(p),
                -sum(x * math.log(x) for x in p),
                -sum(u * math.log(u / x) for x in p),
                float(centre[m, b, i]),
            ],
            dtype=torch.float64,
        )
    return out


def slow_loss(q: Tensor, psi: Tensor, labels: Tensor) -> float:
    """Mean over queries of KL(q || 1/M) - sum_m q(m) log p^m(y)."""
    total, num = 0.0, len(psi)
    for b in range(labels.shape[0]):
        for i in range(labels.shape[1]):
            for m in range(num):
                weight = float(q[m, b, i])
                log_p = float(torch.log_softmax(-psi[m, b, i].double(), -1)[labels[b, i]])
                total += weight * math.log(weight * num) - weight * log_p
    return total / labels.numel()


def test_it_finds_a_planted_rule_that_posteriors_cannot_see() -> None:
    psi, centre, labels = spoiled(0)
    belief = fit_belief(psi, centre, labels)
    psi, centre, labels = spoiled(1)
    log_q = belief.log_weights(psi, centre)
    assert accuracy(psi, labels, "select", "belief", log_q) > 0.99
    assert accuracy(psi, labels, "belief", "belief", log_q) > 0.99
    assert accuracy(psi, labels, "select", "max-prob") < 0.6
    assert belief.weights[3] < -abs(belief.weights[:3]).max()


def test_it_learns_that_one_modality_is_better_on_the_whole() -> None:
    psi, centre, labels = spoiled(2)
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(centre.shape, generator=generator)
    shuffle = torch.rand(psi[1].shape, generator=generator).argsort(-1)
    psi[1] = psi[1].gather(-1, shuffle)  # the second modality knows nothing
    belief = fit_belief(psi, centre, labels)
    assert belief.bias[0] > belief.bias[1] + 0.5
    assert belief.bias.sum().item() == pytest.approx(0, abs=1e-6)


def test_q_follows_the_formula_with_the_fit_statistics() -> None:
    psi, centre, labels = spoiled(3, batch=5)
    belief = fit_belief(psi, centre, labels)
    fitted = slow_features(psi, centre)
    mean = fitted.mean((0, 1, 2)).repeat(2, 1)
    std = fitted.std((0, 1, 2), correction=0).repeat(2, 1)
    mean[:, 3], std[:, 3] = centre.double().mean((1, 2)), centre.double().std((1, 2), correction=0)
    psi, centre, _ = spoiled(4, batch=3)
    phi = (slow_features(psi, centre) - mean[:, None, None]) / std[:, None, None]
    z = torch.einsum("mbif,f->mbi", phi, belief.weights) + belief.bias[:, None, None]
    expected = z.exp() / z.exp().sum(0)
    torch.testing.assert_close(belief.log_weights(psi, centre).exp().double(), expected, rtol=1e-4, atol=1e-6)


def test_the_fit_is_a_minimum_of_the_stated_loss() -> None:
    psi, centre, labels = spoiled(5, batch=4, queries=10)
    psi = psi * 0.3
    l2 = 1e-3
    fitted = fit_belief(psi, centre, labels, l2=l2)

    def loss(belief: Belief) -> float:
        penalty = l2 * float(belief.weights.square().sum() + belief.bias.square().sum())
        return slow_loss(belief.log_weights(psi.double(), centre).exp(), psi, labels) + penalty

    best = loss(fitted)
    for step in (0.02, -0.02):
        for k in range(4):
            weights = fitted.weights.clone()
            weights[k] += step
            assert loss(Belief(fitted.mean, fitted.scale, weights, fitted.bias)) > best
        for m in range(2):
            bias = fitted.bias.clone()
            bias[m] += step
            assert loss(Belief(fitted.mean, fitted.scale, fitted.weights, bias)) > best


def test_the_same_input_gives_the_same_belief_and_state_survives() -> None:
    psi, centre, labels = spoiled(6, batch=8)
    one, two = fit_belief(psi, centre, labels), fit_belief(psi, centre, labels)
    again = Belief.from_state(one.to_state())
    for name, value in one.to_state().items():
        assert torch.equal(value, two.to_state()[name])
        assert torch.equal(value, again.to_state()[name])
    assert torch.equal(again.log_weights(psi, centre), one.log_weights(psi, centre))


def test_no_gradient_reaches_the_encoders() -> None:
    psi, centre, labels = spoiled(7, batch=6)
    psi.requires_grad_()
    centre.requires_grad_()
    belief = fit_belief(psi, centre, labels)
    assert not belief.log_weights(psi, centre).requires_grad
    assert not any(value.requires_grad for value in belief.to_state().values())
    assert psi.grad is None
    assert centre.grad is None
    with torch.no_grad():
        fit_belief(psi, centre, labels)


def test_without_a_mean_prototype_typicality_is_the_mean_distance() -> None:
    psi, _, labels = spoiled(8, batch=6)
    without, with_mean = fit_belief(psi, None, labels), fit_belief(psi, psi.double().mean(-1), labels)
    assert torch.equal(without.weights, with_mean.weights)
    torch.testing.assert_close(without.log_weights(psi), with_mean.log_weights(psi, psi.double().mean(-1)))


def test_a_missing_modality_leaves_the_belief_of_the_others() -> None:
    psi, centre, labels = spoiled(9, batch=6)
    belief = fit_belief(psi, centre, labels)
    assert torch.equal(belief.keep([1]).log_weights(psi[1:], centre[1:]), torch.zeros_like(centre[1:]))
    swapped = belief.keep([1, 0]).log_weights(psi.flip(0), centre.flip(0))
    torch.testing.assert_close(swapped.flip(0), belief.log_weights(psi, centre))


def test_one_modality_and_constant_or_extreme_inputs_stay_finite() -> None:
    psi, centre, labels = spoiled(10, batch=4)
    alone = fit_belief(psi[:1], centre[:1], labels)
    assert (alone.log_weights(psi[:1], centre[:1]) == 0).all()
    constant = fit_belief(torch.ones(2, 3, 5, 4), torch.ones(2, 3, 5), torch.zeros(5, dtype=torch.int64))
    assert constant.log_weights(torch.ones(2, 3, 5, 4), torch.ones(2, 3, 5)).isfinite().all()
    belief = fit_belief(psi, centre, labels)
    for scale in (0.0, 1e6, 1e12):
        assert belief.log_weights(psi * scale, centre * scale).isfinite().all()
        extreme = fit_belief(psi * scale, centre * scale, labels)
        assert all(value.isfinite().all() for value in extreme.to_state().values())


def test_the_criterion_prefers_the_modality_with_more_belief() -> None:
    psi, centre, labels = spoiled(11, batch=6)
    log_q = fit_belief(psi, centre, labels).log_weights(psi, centre)
    choice = unreliability(observe(psi, log_belief=log_q), "belief").argmin(0)
    assert torch.equal(choice == 1, log_q[1] > log_q[0])
