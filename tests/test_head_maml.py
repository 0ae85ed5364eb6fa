"""MAML: its closed-form inner loop against gradient descent by autograd on parameters that are written out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from amfir.cache.errors import UserError
from amfir.meta.heads import Inputs
from amfir.meta.heads.maml import Maml, MamlConfig

pytestmark = pytest.mark.usefixtures("one_thread")

WAY, SHOT, QUERIES, FRAMES, DIM = 3, 2, 4, 3, 5
PLAIN = MamlConfig(dim=4, way=WAY, inner_rate=0.3, train_steps=3, test_steps=4)
CONFIGS = {
    "linear": PLAIN,
    "rows": replace(PLAIN, shared_start=False),
    "hidden": replace(PLAIN, hidden=6),
    "hidden-rows": replace(PLAIN, hidden=6, shared_start=False),
    "identity": replace(PLAIN, dim=0, shared_start=False, learn_rates=False),
}
BY_NAME = pytest.mark.parametrize("name", CONFIGS)


def build(config: MamlConfig, seed: int = 0) -> Maml:
    torch.manual_seed(seed)
    head = Maml(Inputs(FRAMES, DIM), config).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return head


def episodes(batch: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    support = torch.randn(batch, WAY, SHOT, FRAMES, DIM, generator=generator, dtype=torch.float64)
    return support, torch.randn(batch, QUERIES, FRAMES, DIM, generator=generator, dtype=torch.float64)


def forward(theta: list[Tensor], z: Tensor) -> Tensor:
    for weight, bias in zip(theta[:-2:2], theta[1:-2:2], strict=True):
        z = torch.relu(z @ weight.T + bias)
    return z @ theta[-2].T + theta[-1]


def first_values(head: Maml, way: int) -> tuple[list[Tensor], list[Tensor]]:
    """The learner's tensors and their rates, in the order of `forward`."""
    config, learner = head.config, head.learner
    rates = list(learner.log_rates.exp())
    width = config.hidden or head.frames.dim
    theta: list[Tensor] = []
    layers = [learner.first] if config.hidden else []
    if not config.shared_start:
        layers.append(getattr(learner, "output", learner.first) if config.hidden else learner.first)
    for layer in layers:
        assert isinstance(layer, torch.nn.Linear)
        theta += [layer.weight, layer.bias]
    if config.shared_start:
        # Any row will do, as long as all classes share it.
        row = torch.randn(width, dtype=torch.float64)
        theta += [row.expand(way, width).clone().requires_grad_(), torch.full((way,), 0.7).double().requires_grad_()]
    return theta, rates


def by_autograd(head: Maml, support: Tensor, query: Tensor, mask: Tensor | None, steps: int) -> Tensor:
    """One episode after another, one gradient step after another."""
    logits = []
    for b in range(len(support)):
        clips, labels = [], []
        for n in range(support.shape[1]):
            for k in range(support.shape[2]):
                if mask is None or mask[b, n, k]:
                    clips.append(support[b, n, k])
                    labels.append(n)
        z = embed(head, torch.stack(clips))
        theta, rates = first_values(head, support.shape[1])
        for _ in range(steps):
            loss = functional.cross_entropy(forward(theta, z), torch.tensor(labels))
            steepest = torch.autograd.grad(loss, theta, create_graph=head.config.second_order, retain_graph=True)
            theta = [t - rate * g for t, rate, g in zip(theta, rates, steepest, strict=True)]
        logits.append(forward(theta, embed(head, query[b])))
    return torch.stack(logits)


def embed(head: Maml, clips: Tensor) -> Tensor:
    rows = []
    for clip in clips:
        mean = torch.stack([head.frames(frame) for frame in clip]).mean(0)
        centred = mean - mean.mean()
        rows.append(centred / (centred.square().mean() + head.norm.eps).sqrt() * head.norm.weight + head.norm.bias)
    return torch.stack(rows)


def same_to_softmax(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left.log_softmax(-1), right.log_softmax(-1), rtol=1e-9, atol=1e-9)


UNEQUAL = torch.tensor([[[True, True], [True, False], [False, True]], [[True, False], [True, True], [True, True]]])


@BY_NAME
@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("masked", [False, True])
def test_logits_and_gradients_equal_an_unrolled_loop(name: str, second_order: bool, masked: bool) -> None:
    head = build(replace(CONFIGS[name], second_order=second_order))
    support, query = episodes()
    mask = UNEQUAL if masked else None
    ours, theirs = head(support, query, mask), by_autograd(head, support, query, mask, PLAIN.train_steps)
    same_to_softmax(ours, theirs)
    labels = torch.tensor([[0, 1, 2, 0], [2, 1, 1, 0]])
    learnt = [p for p in head.parameters() if p.requires_grad]
    grads = [
        torch.autograd.grad(functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), learnt)
        for logits in (ours, theirs)
    ]
    for parameter, mine, reference in zip(learnt, *grads, strict=True):
        assert reference.abs().max() > 1e-8, f"no gradient of {parameter.shape} to compare"
        torch.testing.assert_close(mine, reference, rtol=1e-7, atol=1e-11)


def test_first_and_second_order_differ_in_the_gradient_alone() -> None:
    support, query = episodes()
    found = []
    for second_order in (True, False):
        head = build(replace(CONFIGS["rows"], second_order=second_order))
        logits = head(support, query)
        weight = next(head.frames.parameters())
        found.append((logits.detach(), torch.autograd.grad(logits.log_softmax(-1)[..., 0].sum(), weight)[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=0)
    assert (found[0][1] - found[1][1]).abs().max() > 1e-3


@BY_NAME
def test_evaluation_takes_its_own_number_of_steps(name: str) -> None:
    head = build(CONFIGS[name]).eval()
    support, query = episodes()
    same_to_softmax(head(support, query), by_autograd(head, support, query, None, PLAIN.test_steps))
    with torch.no_grad():
        without_graph = head(support, query)
    torch.testing.assert_close(without_graph, head(support, query), rtol=0, atol=0)


def test_one_step_from_zero_is_the_formula_worked_by_hand() -> None:
    config = MamlConfig(dim=0, inner_rate=0.5, train_steps=1)
    head = Maml(Inputs(1, 2), config).double()
    # LayerNorm of two numbers is (+-1, -+1) up to its epsilon.
    support = torch.tensor([[[[[3.0, 1.0]]], [[[1.0, 3.0]]]]]).double()
    query = torch.tensor([[[[9.0, 5.0]]]]).double()
    # G = (1/2 - Y) / 2 = -+1/4 each; W = 1/2 * 1/4 (z_0 - z_1) for class 0, minus it for class 1; b = 0.
    # z_0 = (1, -1) = -z_1, so W_0 = (1/4, -1/4), and z_q = (1, -1): logits +-1/2.
    torch.testing.assert_close(head(support, query), torch.tensor([[[0.5, -0.5]]]).double(), rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients_are_right() -> None:
    head = build(CONFIGS["hidden-rows"])
    support, query = episodes(1)

    def probabilities(support: Tensor, query: Tensor) -> Tensor:
        logits: Tensor = head(support, query, UNEQUAL[:1])
        return logits.softmax(-1)

    assert torch.autograd.gradcheck(probabilities, (support.requires_grad_(), query.requires_grad_()))


@pytest.mark.parametrize("name", ["linear", "hidden"])
def test_shared_start_takes_any_number_of_ways_and_permutes_with_them(name: str) -> None:
    head = build(CONFIGS[name])
    generator = torch.Generator().manual_seed(3)
    support = torch.randn(2, 7, 1, FRAMES, DIM, generator=generator).double()
    query = torch.randn(2, 4, FRAMES, DIM, generator=generator).double()
    order = torch.randperm(7, generator=generator)
    logits = head(support, query)
    assert logits.shape == (2, 4, 7)
    torch.testing.assert_close(head(support[:, order], query), logits[..., order])


def test_other_ways_than_those_of_the_rows_are_refused_in_one_line() -> None:
    support, query = episodes()
    with pytest.raises(UserError, match=r"^the episodes have 3 ways; .* set head\.way=3 or head\.shared_start=true$"):
        build(replace(CONFIGS["rows"], way=5))(support, query)


@BY_NAME
def test_what_stands_in_absent_slots_changes_nothing(name: str) -> None:
    head = build(CONFIGS[name])
    support, query = episodes()
    encoded, queries = (head.encode(x.flatten(0, -3)) for x in (support, query))
    at_query = tuple(part.view(*query.shape[:2], -1) for part in queries)
    results = []
    for garbage in (0.0, 1e200, -7.0):
        filled = [
            part.view(*support.shape[:3], -1).masked_fill(~UNEQUAL[..., None], garbage).detach().requires_grad_()
            for part in encoded
        ]
        logits = head.score(tuple(filled), at_query, UNEQUAL)
        # The zeros of a shared start take no part.
        grads = torch.autograd.grad(logits.log_softmax(-1)[..., 0].sum(), filled, materialize_grads=True)
        results.append((logits, grads))
    for logits, grads in results:
        torch.testing.assert_close(logits, results[0][0], rtol=1e-12, atol=1e-12)
        for grad in grads:
            assert bool((grad[~UNEQUAL] == 0).all())


@BY_NAME
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3])
def test_degenerate_clips_give_finite_logits_and_gradients(name: str, scale: float) -> None:
    head = build(CONFIGS[name]).float()
    support, query = (torch.ones_like(clips).float() * scale for clips in episodes())
    support[:, 0] *= -1
    logits = head(support, query)
    logits.log_softmax(-1)[..., 1].sum().backward()
    assert bool(logits.isfinite().all())
    assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)


def test_rates_are_learnt_only_if_asked() -> None:
    assert build(PLAIN).learner.log_rates.requires_grad
    assert not build(CONFIGS["identity"]).learner.log_rates.requires_grad


@pytest.mark.parametrize("wrong", [{"inner_rate": 0.0}, {"way": 1}, {"hidden": -1}, {"train_steps": 0}])
def test_settings_that_make_no_learner_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(wrong))} is .*; head 'maml'; "):
        MamlConfig(**wrong)  # type: ignore[arg-type]
