"""ASI, AMD and AMI against hand-worked numbers and against plain float64 loops that share no code with them."""

import math
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.active import (
    CRITERIA,
    FUSIONS,
    Observation,
    distillation_loss,
    fuse,
    groups,
    infer,
    observe,
    unreliability,
)
from amfir.meta.objective import ObjectiveConfig, objective

SCALAR = [name for name, values in CRITERIA.items() if len(values) == 1]

# One query, three classes, two modalities: softmax(-psi) is (1/2, 1/4, 1/4) and (8/10, 1/10, 1/10) by construction.
HALF = [-math.log(0.5), -math.log(0.25), -math.log(0.25)]
SURE = [-math.log(0.8), -math.log(0.1), -math.log(0.1)]


def hand_worked() -> Observation:
    psi = torch.tensor([HALF, SURE], dtype=torch.float64)[:, None, None] + torch.tensor([3.0, 7.0])[:, None, None, None]
    return observe(psi, torch.tensor([0]), torch.tensor([0.3, 0.7], dtype=torch.float64).log()[:, None, None])


def random_observation(
    modalities: int = 2, batch: int = 3, queries: int = 6, way: int = 5, dtype: torch.dtype = torch.float64
) -> Observation:
    generator = torch.Generator().manual_seed(modalities * 100 + way)
    psi = torch.rand(modalities, batch, queries, way, generator=generator, dtype=dtype) * 6
    labels = torch.randint(way, (batch, queries), generator=generator)
    log_belief = torch.rand(modalities, batch, queries, generator=generator, dtype=dtype).log_softmax(0)
    return observe(psi, labels, log_belief)


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    exponentials = [math.exp(v - top) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def slow(observation: Observation, value: Callable[[list[float], list[float], int, float], float]) -> Tensor:
    """`value(psi, p, label, log q)` of every modality and query, one after the other."""
    assert observation.labels is not None
    assert observation.log_belief is not None
    modalities, batch, queries, _ = observation.psi.shape
    labels = observation.labels.expand(batch, queries)
    out = torch.zeros(modalities, batch, queries, dtype=torch.float64)
    for m in range(modalities):
        for b in range(batch):
            for i in range(queries):
                psi = observation.psi[m, b, i].double().tolist()
                log_q = float(observation.log_belief[m, b, i])
                out[m, b, i] = value(psi, softmax([-x for x in psi]), int(labels[b, i]), log_q)
    return out


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def shannon(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p)


SLOW: dict[str, Callable[[list[float], list[float], int, float], float]] = {
    "free-energy": lambda psi, p, y, q: -kl([1 / len(p)] * len(p), p),
    "expected-free-energy": lambda psi, p, y, q: sum(a * d for a, d in zip(p, psi, strict=True)) - sum(psi) / len(psi),
    "max-prob": lambda psi, p, y, q: -max(p),
    "entropy": lambda psi, p, y, q: shannon(p),
    "belief": lambda psi, p, y, q: -q,
    "evidence": lambda psi, p, y, q: -math.log(p[y]),
    "evidence-raw": lambda psi, p, y, q: math.log(len(psi)) - math.log(sum(math.exp(-d) for d in psi)),
    "certainty-absolute": lambda psi, p, y, q: -max(p),
    "certainty-relative": lambda psi, p, y, q: shannon(p),
}


def test_posteriors_and_certainty_by_hand() -> None:
    seen = hand_worked()
    torch.testing.assert_close(
        seen.posteriors.flatten(), torch.tensor([0.5, 0.25, 0.25, 0.8, 0.1, 0.1], dtype=torch.float64)
    )
    torch.testing.assert_close(seen.certainty.flatten(), torch.tensor([0.5, 0.8], dtype=torch.float64))


@pytest.mark.parametrize(
    ("criterion", "half", "sure"),
    [
        ("free-energy", math.log(3) - 5 / 3 * math.log(2), math.log(3) + (math.log(0.8) + 2 * math.log(0.1)) / 3),
        (
            "expected-free-energy",
            -5 / 3 * math.log(2) + 1.5 * math.log(2),
            (math.log(0.8) + 2 * math.log(0.1)) / 3 - 0.8 * math.log(0.8) - 0.2 * math.log(0.1),
        ),
        ("max-prob", -0.5, -0.8),
        ("entropy", 1.5 * math.log(2), -0.8 * math.log(0.8) - 0.2 * math.log(0.1)),
        ("belief", -math.log(0.3), -math.log(0.7)),
        ("evidence", math.log(2), -math.log(0.8)),
        ("evidence-raw", 3 + math.log(3), 7 + math.log(3)),
    ],
)
def test_criteria_by_hand(criterion: str, half: float, sure: float) -> None:
    values = unreliability(hand_worked(), criterion)
    torch.testing.assert_close(values.flatten(), torch.tensor([half, sure], dtype=torch.float64))


@pytest.mark.parametrize("criterion", SCALAR)
@pytest.mark.parametrize(("modalities", "way"), [(1, 2), (2, 2), (2, 5), (3, 4)])
def test_criteria_equal_a_slow_loop(criterion: str, modalities: int, way: int) -> None:
    seen = random_observation(modalities, way=way)
    torch.testing.assert_close(unreliability(seen, criterion), slow(seen, SLOW[criterion]), rtol=1e-9, atol=1e-12)


def test_free_energy_is_never_above_zero_and_zero_for_equal_distances() -> None:
    assert (unreliability(random_observation(), "free-energy") < 0).all()
    level = observe(torch.full((2, 1, 4, 5), 3.0, dtype=torch.float64))
    torch.testing.assert_close(unreliability(level, "free-energy"), torch.zeros(2, 1, 4, dtype=torch.float64))


@pytest.mark.parametrize("criterion", ["free-energy", "expected-free-energy", "max-prob", "entropy", "evidence-raw"])
def test_criteria_in_float32_stay_close_to_float64(criterion: str) -> None:
    seen = random_observation()
    single = observe(seen.psi.float())
    torch.testing.assert_close(
        unreliability(single, criterion).double(), unreliability(seen, criterion), rtol=1e-5, atol=1e-5
    )


def test_missing_inputs_are_said_plainly() -> None:
    bare = observe(torch.zeros(2, 1, 1, 3))
    with pytest.raises(UserError, match=r"^criterion 'evidence' needs the labels; at test there are none; use it in"):
        unreliability(bare, "evidence")
    for ask in (lambda: unreliability(bare, "belief"), lambda: fuse(bare, "belief")):
        with pytest.raises(UserError, match=r"^'belief' needs a fitted belief; none was given; fit it on base classes"):
            ask()
    with pytest.raises(UserError, match=r"^criterion 'certainty' only forms groups; .*use 'free-energy'$"):
        unreliability(bare, "certainty")
    with pytest.raises(UserError, match=re.escape("unknown criterion 'free-enrgy'; did you mean 'free-energy'?")):
        unreliability(bare, "free-enrgy")
    with pytest.raises(UserError, match="unknown fusion 'lat'; did you mean 'late'"):
        fuse(bare, "lat")


# --- groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", SCALAR)
@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("margin", [0.0, 0.15])
def test_groups_equal_a_slow_loop(criterion: str, modalities: int, margin: float) -> None:
    seen = random_observation(modalities)
    values = slow(seen, SLOW[criterion])
    expected = torch.zeros_like(values, dtype=torch.bool)
    for b in range(values.shape[1]):
        for i in range(values.shape[2]):
            column = values[:, b, i].tolist()
            for m in range(modalities):
                others = column[:m] + column[m + 1 :]
                expected[m, b, i] = all(other - column[m] > margin for other in others)
    assert torch.equal(groups(seen, criterion, margin), expected)
    assert (expected.sum(0) <= 1).all()
    assert expected.any()


def test_a_tie_belongs_to_no_group() -> None:
    assert not groups(observe(torch.ones(2, 1, 3, 4))).any()


def test_amfar_needs_both_certainties() -> None:
    # p: r is surer by its maximum in all but the last query; by its entropy only in the first.
    rgb = [[0.8, 0.1, 0.1], [0.5, 0.25, 0.25], [0.4, 0.3, 0.3]]
    flow = [[0.6, 0.2, 0.2], [0.49, 0.49, 0.02], [0.9, 0.05, 0.05]]
    seen = observe(-torch.tensor([[rgb], [flow]], dtype=torch.float64).log())
    assert groups(seen, "certainty")[:, 0].tolist() == [[True, False, False], [False, False, True]]
    assert groups(seen, "certainty-absolute")[:, 0].tolist() == [[True, True, False], [False, False, True]]
    assert groups(seen, "certainty-relative")[:, 0].tolist() == [[True, False, False], [False, True, True]]


def test_amfar_equals_its_two_way_rule_on_random_posteriors() -> None:
    seen = random_observation(2, 4, 50, 3)
    c = slow(seen, lambda psi, p, y, q: max(p))
    h = slow(seen, lambda psi, p, y, q: sum(x * math.log(x) for x in p))
    expected = torch.stack([(c[0] > c[1]) & (h[0] > h[1]), (c[0] < c[1]) & (h[0] < h[1])])
    assert torch.equal(groups(seen, "certainty"), expected)
    assert (expected.sum(0) == 0).any()


# --- AMD ------------------------------------------------------------------------------------------------------------


def slow_distillation(teacher: Tensor, student: Tensor, group: Tensor) -> float:
    """Mean over episodes of the certainty-weighted mean divergence over each one's group."""
    losses = []
    for b in range(len(teacher)):
        top = bottom = 0.0
        for i in range(teacher.shape[1]):
            if group[b, i]:
                p, q = teacher[b, i].exp().tolist(), student[b, i].exp().tolist()
                top += max(p) * kl(p, q)
                bottom += max(p)
        losses.append(top / bottom if bottom else 0.0)
    return sum(losses) / len(losses)


def test_distillation_by_hand() -> None:
    teacher = torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.7, 0.3]]], dtype=torch.float64)
    student = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [0.1, 0.9]]], dtype=torch.float64)
    group = torch.tensor([[True, True, False]])
    first = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    second = 0.9 * math.log(1.8) + 0.1 * math.log(0.2)
    loss = distillation_loss(teacher.log(), student.log(), group)
    assert loss.item() == pytest.approx((0.5 * first + 0.9 * second) / 1.4, rel=1e-12)


@pytest.mark.parametrize("criterion", [*SCALAR, "certainty"])
@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_objective_equals_a_slow_loop(criterion: str, modalities: int, reduction: str) -> None:
    seen = random_observation(modalities, batch=4)
    names = ["rgb", "flow", "pose"][:modalities]
    config = ObjectiveConfig(criterion=criterion, distillation_weight=0.7, margin=0.05, reduction=reduction)
    loss = objective(seen, names, config)
    mask = groups(seen, criterion, 0.05)
    nll = slow(seen, SLOW["evidence"])
    cross_entropy = (nll.mean(-1) if reduction == "mean" else nll.sum(-1)).mean(-1)
    total = float(cross_entropy.sum())
    for m in range(modalities):
        for n in range(modalities):
            expected = 0.0 if m == n else slow_distillation(seen.log_posteriors[m], seen.log_posteriors[n], mask[m])
            assert loss.distillation[m, n].item() == pytest.approx(expected, rel=1e-9)
            total += 0.7 * expected
    torch.testing.assert_close(loss.cross_entropy, cross_entropy)
    assert loss.total.item() == pytest.approx(total, rel=1e-9)
    assert torch.equal(loss.groups, mask)


def test_strategies_choose_who_teaches_on_which_queries() -> None:
    seen = random_observation(2)
    names = ("rgb", "flow")
    log_p, everything = seen.log_posteriors, torch.ones(seen.psi.shape[1:3], dtype=torch.bool)
    rgb, flow = groups(seen)
    to_flow, to_rgb = (slow_distillation(log_p[0], log_p[1], g) for g in (rgb, everything))
    from_flow = slow_distillation(log_p[1], log_p[0], flow)
    from_flow_all = slow_distillation(log_p[1], log_p[0], everything)
    expected = {
        ("mutual", ()): (to_flow, from_flow),
        ("none", ()): (0, 0),
        ("rgb-teacher", ()): (to_rgb, 0),
        ("flow-teacher", ()): (0, from_flow_all),
        ("mutual", ("rgb",)): (0, from_flow),
        ("mutual", ("flow",)): (to_flow, 0),
        ("mutual", ("rgb", "flow")): (0, 0),
    }
    for (strategy, dropped), (rgb_to_flow, flow_to_rgb) in expected.items():
        loss = objective(seen, names, ObjectiveConfig(strategy=strategy, drop_groups=dropped))
        assert loss.distillation[0, 1].item() == pytest.approx(rgb_to_flow, rel=1e-9), (strategy, dropped)
        assert loss.distillation[1, 0].item() == pytest.approx(flow_to_rgb, rel=1e-9), (strategy, dropped)
        assert torch.equal(loss.groups, torch.stack([rgb, flow]))


def test_each_modality_learns_only_from_its_labels_and_as_a_student() -> None:
    base = random_observation(3)
    names = ["rgb", "flow", "pose"]
    psi = base.psi.clone().requires_grad_()
    seen = observe(psi, base.labels, base.log_belief)
    objective(seen, names, ObjectiveConfig(distillation_weight=0.7)).total.backward()  # type: ignore[no-untyped-call]
    assert psi.grad is not None
    masks = groups(base)
    assert base.labels is not None
    for n in range(3):
        # The same loss written with every other modality as a constant.
        own = base.psi[n].clone().requires_grad_()
        log_p = torch.log_softmax(-own, -1)
        loss = -log_p.gather(-1, base.labels[..., None])[..., 0].mean()
        for m in {0, 1, 2} - {n}:
            p = torch.softmax(-base.psi[m], -1)
            c = p.amax(-1) * masks[m]
            divergence = (p * (p.log() - log_p)).sum(-1)
            per_episode = [
                (c[b] * divergence[b]).sum() / c[b].sum() if masks[m, b].any() else own.sum() * 0 for b in range(3)
            ]
            loss = loss + 0.7 * torch.stack(per_episode).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(psi.grad[n], own.grad)


def test_a_teacher_receives_nothing_from_its_lesson() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.rand(2, 4, 5, generator=generator, requires_grad=True)
    student = torch.rand(2, 4, 5, generator=generator, requires_grad=True)
    group = torch.ones(2, 4, dtype=torch.bool)
    distillation_loss(teacher.log_softmax(-1), student.log_softmax(-1), group).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_an_empty_group_costs_exactly_nothing() -> None:
    psi = (torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(1)) * 5).requires_grad_()
    log_p = observe(psi).log_posteriors
    empty = torch.zeros(3, 4, dtype=torch.bool)
    loss = distillation_loss(log_p[0], log_p[1], empty)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0
    assert psi.grad is not None
    assert (psi.grad == 0).all()
    one = empty.clone()
    one[1, 2] = True
    assert distillation_loss(log_p[0], log_p[1], one).item() == pytest.approx(
        slow_distillation(log_p[0].detach(), log_p[1].detach(), one), rel=1e-5
    )


def test_objective_refuses_what_it_cannot_do() -> None:
    seen = random_observation(1)
    for config, message in (
        (ObjectiveConfig(strategy="rgb-teacher"), "unknown modality 'rgb'; known: flow"),
        (ObjectiveConfig(drop_groups=("rgb",)), "unknown modality 'rgb'; known: flow"),
    ):
        with pytest.raises(UserError, match=f"^{message}$"):
            objective(seen, ["flow"], config)
    for bad, message in (
        ({"strategy": "all"}, "unknown strategy 'all'; known: mutual, none, <modality>-teacher"),
        ({"reduction": "men"}, "unknown reduction 'men'; did you mean 'mean'? known: mean, sum"),
        ({"criterion": "entropi"}, "unknown criterion 'entropi'; did you mean 'entropy'?"),
        ({"distillation_weight": -1.0}, "distillation_weight is -1.0; it cannot be negative; give 0 or more"),
        ({"margin": math.nan}, "margin is nan; it cannot be negative; give 0 or more"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            ObjectiveConfig(**bad)


# --- AMI ------------------------------------------------------------------------------------------------------------


def slow_fusion(seen: Observation, fusion: str) -> tuple[Tensor, Tensor]:
    """Posteriors and weights, query by query."""
    assert seen.log_belief is not None
    modalities, batch, queries, way = seen.psi.shape
    fused = torch.zeros(batch, queries, way, dtype=torch.float64)
    weights = torch.zeros(modalities, batch, queries, dtype=torch.float64)
    for b in range(batch):
        for i in range(queries):
            psi = [seen.psi[m, b, i].tolist() for m in range(modalities)]
            p = [softmax([-d for d in row]) for row in psi]
            if fusion == "ami":
                alpha = [max(row) / sum(max(r) for r in p) for row in p]
            elif fusion in ("late", "posterior-mean"):
                alpha = [1 / modalities] * modalities
            elif fusion == "select":
                energies = [-kl([1 / way] * way, row) for row in p]
                alpha = [float(m == energies.index(min(energies))) for m in range(modalities)]
            else:
                alpha = [math.exp(float(seen.log_belief[m, b, i])) for m in range(modalities)]
            if fusion == "posterior-mean":
                row = [sum(a * r[k] for a, r in zip(alpha, p, strict=True)) for k in range(way)]
            else:
                row = softmax([-sum(a * r[k] for a, r in zip(alpha, psi, strict=True)) for k in range(way)])
            fused[b, i] = torch.tensor(row, dtype=torch.float64)
            weights[:, b, i] = torch.tensor(alpha, dtype=torch.float64)
    return fused, weights


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("modalities", "way"), [(1, 3), (2, 2), (2, 5), (3, 4)])
def test_fusions_equal_a_slow_loop(fusion: str, modalities: int, way: int) -> None:
    seen = random_observation(modalities, way=way)
    logits, weights = fuse(seen, fusion)
    expected, alpha = slow_fusion(seen, fusion)
    torch.testing.assert_close(logits.exp(), expected)
    torch.testing.assert_close(weights, alpha)
    torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))


def test_ami_by_hand() -> None:
    logits, weights = fuse(hand_worked())
    torch.testing.assert_close(weights.flatten(), torch.tensor([5 / 13, 8 / 13], dtype=torch.float64))
    # exp(-psi) to the power alpha: the products of powers of the posteriors, normalised.
    power = [0.5 ** (5 / 13) * 0.8 ** (8 / 13)] + [0.25 ** (5 / 13) * 0.1 ** (8 / 13)] * 2
    torch.testing.assert_close(
        logits.exp().flatten(), torch.tensor([x / sum(power) for x in power], dtype=torch.float64)
    )


def test_select_follows_the_criterion_it_is_given() -> None:
    # The first has the higher maximum, the second the lower entropy.
    seen = observe(-torch.tensor([[[[0.5, 0.25, 0.25]]], [[[0.49, 0.49, 0.02]]]]).log())
    assert fuse(seen, "select", "max-prob")[1].flatten().tolist() == [1, 0]
    assert fuse(seen, "select", "entropy")[1].flatten().tolist() == [0, 1]
    level = observe(torch.ones(2, 1, 1, 3))
    assert fuse(level, "select")[1].flatten().tolist() == [1, 0]


def test_inference_keeps_what_explains_it() -> None:
    seen = random_observation(2)
    result = infer(seen, ["rgb", "flow"], "select", "entropy")
    logits, weights = fuse(seen, "select", "entropy")
    assert result.modalities == ("rgb", "flow")
    assert torch.equal(result.logits, logits)
    assert torch.equal(result.weights, weights)
    assert torch.equal(result.psi, seen.psi)
    torch.testing.assert_close(result.posteriors, seen.log_posteriors.exp())
    torch.testing.assert_close(result.certainties, slow(seen, lambda psi, p, y, q: max(p)))
    torch.testing.assert_close(result.free_energies, slow(seen, SLOW["free-energy"]))
    assert torch.equal(result.predictions, logits.argmax(-1))


def test_one_modality_alone_is_its_own_posterior() -> None:
    seen = random_observation(1)
    for fusion in FUSIONS:
        weighted = fuse(observe(seen.psi, log_belief=torch.zeros_like(seen.psi[..., 0])), fusion)
        torch.testing.assert_close(weighted[0], seen.log_posteriors[0])
    assert groups(seen).all()
    assert objective(seen, ["rgb"], ObjectiveConfig()).distillation.tolist() == [[0]]


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e6, 1e12])
@pytest.mark.parametrize("strategy", ["mutual", "rgb-teacher", "none"])
def test_extreme_distances_give_no_nan_in_value_or_gradient(scale: float, strategy: str) -> None:
    base = random_observation(2, dtype=torch.float32)
    psi = (base.psi * scale).requires_grad_()
    seen = observe(psi, base.labels, base.log_belief)
    for criterion in SCALAR:
        assert unreliability(seen, criterion).isfinite().all()
    for fusion in FUSIONS:
        assert fuse(seen, fusion)[0].isfinite().all()
    for criterion in CRITERIA:
        config = ObjectiveConfig(criterion, strategy)
        total = objective(seen, ["rgb", "flow"], config).total
        (gradient,) = torch.autograd.grad(total, psi, retain_graph=True)
        assert total.isfinite()
        assert gradient.isfinite().all()
