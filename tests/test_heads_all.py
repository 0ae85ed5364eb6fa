"""What every head promises, for all of them in both profiles."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from amfir.cache.errors import UserError
from amfir.meta.heads import HEADS, Head, Inputs, build_head
from amfir.meta.profiles import load_profile

from .headcases import Case, base_classes, built, episode, learn, same, trainable

NEEDS_CLASS_ORDER = {("matching-fce", "fair"), ("matching-fce", "paper"), ("maml", "paper")}
"""An LSTM over the support set; a learnt row for each position of a class."""

CASES = [Case(name, profile) for name in HEADS for profile in ("fair", "paper")]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.profile}")


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_have_a_column_for_each_class_and_the_features_dtype(case: Case, dtype: torch.dtype) -> None:
    head = case.build(dtype)
    for way, shot, queries in ((3, 1, 1), (3, 2, 5)):
        support, query = (clips.to(dtype) for clips in episode(case, way=way, shot=shot, queries=queries))
        logits = head(support, query)
        assert (logits.shape, logits.dtype) == ((2, queries, way), dtype)
        assert bool(logits.isfinite().all())
        assert float(logits.detach().std(-1).max()) > 0


@each_case
def test_permuted_supports_change_nothing(case: Case) -> None:
    head = built(case)
    if head.order_dependent:
        pytest.skip("the method's own definition depends on the order")
    support, query = episode(case)
    shuffled = support.clone()
    shuffled[:, 0], shuffled[:, 2] = support[:, 0, [2, 0, 1]], support[:, 2, [1, 0, 2]]
    same(head(shuffled, query), head(support, query))


@each_case
def test_permuted_classes_permute_the_columns(case: Case) -> None:
    if (case.name, case.profile) in NEEDS_CLASS_ORDER:
        pytest.skip("the method's own definition depends on the order")
    head, (support, query) = built(case), episode(case)
    same(head(support[:, [2, 0, 1]], query), head(support, query)[..., [2, 0, 1]])


@each_case
def test_permuted_queries_permute_the_rows_and_other_queries_do_not_matter(case: Case) -> None:
    head, (support, query) = built(case), episode(case)
    logits = head(support, query)
    same(head(support, query[:, [3, 1, 0, 2]]), logits[:, [3, 1, 0, 2]])
    same(head(support, query[:, 1:2]), logits[:, 1:2])


@each_case
def test_a_batch_equals_its_episodes_one_by_one(case: Case) -> None:
    head, (support, query) = built(case), episode(case, batch=3)
    logits = head(support, query)
    same(head(support.flip(0), query.flip(0)), logits.flip(0))
    same(torch.cat([head(support[i : i + 1], query[i : i + 1]) for i in range(3)]), logits)


@each_case
def test_clips_encoded_once_and_gathered_score_like_forward(case: Case) -> None:
    head, clips = built(case), case.clips(9, seed=3)
    support = torch.tensor([[[0, 3], [1, 4], [2, 5]], [[8, 1], [7, 2], [6, 3]]])
    query = torch.tensor([[6, 7, 8], [0, 5, 4]])
    encoding = head.encode(clips)
    assert all(len(part) == 9 for part in encoding)
    for number in (0, 4):
        alone = head.encode(clips[number : number + 1])
        for part, whole in zip(alone, encoding, strict=True):
            same(part[0], whole[number])
    gathered = head.score(tuple(part[support] for part in encoding), tuple(part[query] for part in encoding))
    same(gathered, head(clips[support], clips[query]))


@each_case
@pytest.mark.parametrize("kept", [[1], [0, 2], [0, 1, 2]])
def test_classes_cut_by_the_mask_equal_shorter_classes(case: Case, kept: list[int]) -> None:
    head, (support, query) = built(case), episode(case)
    mask = torch.zeros(2, 3, 3, dtype=torch.bool)
    mask[..., kept] = True
    same(head(support, query, mask), head(support[:, :, kept], query))


@each_case
def test_classes_of_unequal_length_do_not_feel_the_padding(case: Case) -> None:
    head, (support, query) = built(case), episode(case)
    mask = torch.tensor([[[1, 1, 1], [1, 0, 0], [1, 1, 0]], [[1, 0, 0], [1, 1, 0], [1, 1, 0]]]).bool()
    logits = head(support, query, mask)
    assert bool(logits.isfinite().all())
    # The same clips in the same order, at other places of five.
    wide, places = case.clips(2, 3, 5, seed=4), torch.zeros(2, 3, 5, dtype=torch.bool)
    for b, n in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        count = int(mask[b, n].sum())
        at = [0, 2, 4] if count == 3 else [[3], [1, 4]][count - 1]
        wide[b, n, at] = support[b, n, :count]
        places[b, n, at] = True
    same(head(wide, query, places), logits)


@each_case
def test_what_stands_where_no_clip_is_changes_nothing(case: Case) -> None:
    head, (support, query) = built(case), episode(case)
    mask = torch.tensor([[[1, 1, 0], [0, 0, 1], [1, 1, 1]], [[0, 1, 0], [1, 1, 0], [0, 1, 1]]]).bool()
    logits = head(support, query, mask)
    for garbage in (torch.nan, torch.inf, 1e3):
        spoiled = support.clone()
        spoiled[~mask] = garbage
        same(head(spoiled, query, mask), logits)
    encoding, asked = (head.encode(clips.flatten(0, -head_axes(case))) for clips in (support, query))
    encoded = tuple(torch.unflatten(part, 0, (2, 3, 3)).clone() for part in encoding)
    for part in encoded:
        part[~mask] = 100 * torch.rand_like(part[~mask]) - 50
    same(head.score(encoded, tuple(torch.unflatten(part, 0, (2, 4)) for part in asked), mask), logits)


def head_axes(case: Case) -> int:
    """Axes of a clip and one more: the last of those to flatten."""
    return 4 if case.spatial else 3


@each_case
def test_absent_clips_take_no_gradient_and_spoil_none(case: Case) -> None:
    head, (support, query) = built(case), episode(case)
    mask = torch.tensor([[[1, 1, 0], [0, 0, 1], [1, 1, 1]], [[0, 1, 0], [1, 1, 0], [0, 1, 1]]]).bool()
    support[~mask] = torch.nan
    support.requires_grad_()
    weight = torch.linspace(-1, 1, 24, dtype=torch.float64).view(2, 4, 3)
    (gradient,) = torch.autograd.grad((head(support, query, mask) * weight).sum(), [support])
    assert bool(gradient.isfinite().all())
    assert float(gradient[~mask].abs().max()) == 0
    assert float(gradient[mask].abs().max()) > 0


@each_case
@pytest.mark.parametrize(("frames", "dim"), [(2, 6), (3, 9), (8, 6), (32, 6)])
def test_clips_of_any_length_and_width_are_taken(case: Case, frames: int, dim: int) -> None:
    head = case.build(frames=frames, dim=dim).train()
    support, query = episode(case, batch=1, shot=2, queries=3, frames=frames, dim=dim)
    support.requires_grad_()
    _, losses = learn(head, support, query, base_classes(1, 3))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert losses.shape == (1, 3)
    assert support.grad is not None
    assert bool(losses.isfinite().all() and support.grad.isfinite().all())


class TrainingLoss(nn.Module):
    """The training loss as a module, which `functional_call` can give other parameters."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        return learn(self.head, support, query, base_classes(1, 3))[1]


@each_case
@pytest.mark.parametrize("shot", [1, 2])
def test_gradients_of_the_training_loss_are_those_of_finite_differences(case: Case, shot: int) -> None:
    head = case.build(frames=3, dim=3).train()
    support, query = episode(case, batch=1, shot=shot, queries=3, frames=3, dim=3)
    parameters = trainable(head)
    chosen = sorted({list(parameters)[len(parameters) * i // 4] for i in range(4)}) if parameters else []

    def loss(support: Tensor, query: Tensor, *values: Tensor) -> Tensor:
        swapped = {f"head.{name}": value for name, value in zip(chosen, values, strict=True)}
        losses: Tensor = functional_call(TrainingLoss(head), swapped, (support, query))
        return losses

    values = [parameters[name].detach().clone().requires_grad_() for name in chosen]
    assert torch.autograd.gradcheck(
        loss, (support.requires_grad_(), query.requires_grad_(), *values), fast_mode=True, rtol=1e-3, atol=1e-5
    )


@each_case
@pytest.mark.parametrize("kind", ["identical", "zero", "large", "small", "still"])
def test_degenerate_features_give_finite_logits_and_gradients(case: Case, kind: str) -> None:
    support, query = (clips.float() for clips in episode(case, batch=1, shot=2, queries=3))
    if kind == "identical":
        support, query = support[:, :1, :1].expand_as(support).clone(), support[:, 0, :1].expand_as(query).clone()
    elif kind == "still":
        support, query = (clips[..., :1, :].expand_as(clips).clone() for clips in (support, query))
    else:
        factor = {"zero": 0.0, "large": 1000.0, "small": 1e-3}[kind]
        support, query = factor * support, factor * query
    for training in (False, True):
        head = case.build(torch.float32).train(training)
        inputs = support.clone().requires_grad_(), query.clone().requires_grad_()
        logits, losses = learn(head, *inputs, base_classes(1, 3))
        (losses.sum() + head.penalty()).backward()  # type: ignore[no-untyped-call]
        assert bool(logits.isfinite().all() and losses.isfinite().all())
        gradients = [value.grad for value in (*inputs, *head.parameters()) if value.grad is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@each_case
def test_a_gradient_step_on_an_episode_lowers_its_loss(case: Case) -> None:
    head = case.build().train()
    support, query = episode(case, batch=2, shot=2, queries=6)
    logits, losses = learn(head, support, query, base_classes(2, 3))
    assert (logits.shape, losses.shape) == ((2, 6, 3), (2, 6))
    assert bool(losses.isfinite().all())
    if not (parameters := trainable(head)):
        assert case.profile == "paper"
        return
    gradients = torch.autograd.grad(losses.mean(), list(parameters.values()), allow_unused=True)
    norm = torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm()
    with torch.no_grad():
        for value, gradient in zip(parameters.values(), gradients, strict=True):
            if gradient is not None:
                value.sub_(1e-5 * gradient / norm)
        after = learn(head, support, query, base_classes(2, 3))[1]
    assert float(after.mean()) < float(losses.detach().mean())


@each_case
def test_every_parameter_is_trained(case: Case) -> None:
    head = case.build().train()
    support, query = episode(case, batch=2, shot=2, queries=6)
    if not (parameters := trainable(head)):
        return
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    moved = set()
    for _ in range(4):  # behind a gate that starts closed, the gradient is 0 at first
        optimizer.zero_grad()
        learn(head, support, query, base_classes(2, 3))[1].mean().backward()  # type: ignore[no-untyped-call]
        assert [name for name, value in parameters.items() if value.grad is None] == []
        moved |= {name for name, value in parameters.items() if value.grad is not None and bool(value.grad.any())}
        optimizer.step()
    # No gradient may be left of a vector that all clips share: a loss of differences does not see it.
    assert [name for name, value in parameters.items() if value.dim() > 1 and name not in moved] == []


@each_case
def test_a_batch_of_training_episodes_has_the_losses_of_each(case: Case) -> None:
    head, (support, query) = built(case), episode(case, shot=2)
    classes = base_classes(2, 3)
    logits, losses = learn(head, support, query, classes)
    same(logits, head(support, query))
    for i in range(2):
        part = slice(i, i + 1)
        same(learn(head, support[part], query[part], classes[part])[1], losses[part])


@each_case
def test_heads_train_without_base_classes_and_have_a_scalar_penalty(case: Case) -> None:
    head = case.build(classes=0).train()
    _, losses = learn(head, *episode(case, shot=1))
    penalty = head.penalty().detach()
    assert losses.shape == (2, 4)
    assert bool(losses.isfinite().all())
    assert penalty.shape == ()
    assert float(penalty) >= 0


@each_case
def test_the_footprint_is_positive_and_grows(case: Case) -> None:
    head = built(case)
    for way, shot, queries in ((2, 1, 2), (5, 1, 5), (5, 5, 25)):
        here = head.footprint(way, shot, queries)
        assert isinstance(here, int)
        assert 0 < here < head.footprint(2 * way, shot, queries)
        assert here < head.footprint(way, shot, 4 * queries)
        assert here <= head.footprint(way, 2 * shot, queries)


@each_case
def test_a_head_survives_its_state(case: Case) -> None:
    head, (support, query) = built(case), episode(case)
    other = build_head(case.name, case.inputs(), case.settings(), seed=5).double().eval()
    other.load_state_dict({name: value.clone() for name, value in head.state_dict().items()})
    same(other(support, query), head(support, query))


@each_case
def test_the_seed_decides_the_parameters_and_leaves_other_randomness_alone(case: Case) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (
        build_head(case.name, case.inputs(), case.settings(), seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.keys() == again.keys() == other.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    if case.profile == "fair" and case.name != "temporal":  # whose start is drawn by `start`
        assert any(not torch.equal(first[name], other[name]) for name in first)


@each_case
def test_original_names_are_names_of_the_state(case: Case) -> None:
    head = built(case)
    names = head.original_names()
    assert set(names) <= set(head.state_dict())
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("name", HEADS)
def test_settings_that_are_not_there_or_of_another_type_are_refused(name: str) -> None:
    inputs = Case(name, "fair").inputs()
    defaults = HEADS[name].load().config_type(**HEADS[name].settings)
    own = next(key for key, value in vars(defaults).items() if type(value) is int)
    with pytest.raises(UserError, match=rf"unknown setting of head .*; did you mean '{own}'"):
        build_head(name, inputs, {f"{own}x": 3})
    with pytest.raises(UserError, match=rf"{own} is 'wide'; .* int such as \d+$"):
        build_head(name, inputs, {own: "wide"})
    with pytest.raises(UserError, match=rf"{own}.*-1"):
        build_head(name, inputs, {own: -1})
    for key in HEADS[name].settings:
        with pytest.raises(UserError, match=rf"unknown setting of head .* '{key}'; "):
            build_head(name, inputs, {key: HEADS[name].settings[key]})


def test_heads_that_do_not_exist_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown head 'protonett'; did you mean 'protonet'"):
        build_head("protonett", Inputs(4, 6))
    with pytest.raises(UserError, match=r"unknown head 'trex'; did you mean 'trx'"):
        load_profile("trex")


@pytest.mark.parametrize("name", [name for name in HEADS if Case(name, "fair").spatial])
def test_heads_that_need_tokens_name_their_pooled_variant(name: str) -> None:
    assert f"{name}[pooled]" in HEADS
    with pytest.raises(UserError, match=rf"head '{name}' needs spatial tokens; .* or use '{name}\[pooled\]'$"):
        build_head(name, Inputs(4, 6))


def test_profiles_are_read_and_overridden() -> None:
    profile = load_profile("protonet", "paper", ["head.dim=12", "training.optimizer=sgd", "head.per_dim = true"])
    assert (profile.head["dim"], profile.head["per_dim"], profile.training["optimizer"]) == (12, True, "sgd")
    assert load_profile("protonet", "paper").head["dim"] == 0
    assert load_profile("ta2n[pooled]", "paper").head == load_profile("ta2n", "paper").head
    assert load_profile("protonet", settings=["head.cardinalities=[2, 3]"]).head["cardinalities"] == [2, 3]


@pytest.mark.parametrize("setting", ["head.dim", "dim=3", "head.=3", "head.dim=", "=3"])
def test_settings_that_cannot_be_read_are_refused(setting: str) -> None:
    with pytest.raises(UserError, match=rf"cannot read '{setting}'; --set; write head.NAME=VALUE"):
        load_profile("protonet", settings=[setting])


def test_profiles_and_parts_that_do_not_exist_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown profile 'fiar'; did you mean 'fair'"):
        load_profile("protonet", "fiar")
    with pytest.raises(UserError, match=r"unknown part of a profile 'heads'; did you mean 'head'"):
        load_profile("protonet", settings=["heads.dim=3"])
