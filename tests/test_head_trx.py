"""TRX against loops over tuples in float64, its factorisation, and the original's names."""

import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.heads.base import Inputs
from amfir.meta.heads.trx import Trx, TrxConfig
from amfir.meta.heads.tuples import project_slots, selection


def make(frames: int, dim: int = 6, width: int = 5, cardinalities: tuple[int, ...] = (2, 3)) -> Trx:
    """A head whose every parameter is random, LayerNorms and biases too."""
    torch.manual_seed(0)
    head = Trx(Inputs(frames, dim), TrxConfig(cardinalities=cardinalities, dim=width, dropout=0.1)).double().eval()
    for parameter in head.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return head


def episode(frames: int, dim: int = 6, shot: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 3, shot, frames, dim).double(), torch.randn(2, 4, frames, dim).double()


def position(frame: int, dim: int) -> Tensor:
    values = []
    for i in range(dim):
        angle = frame / 10000.0 ** (2 * (i // 2) / dim)
        values.append(0.1 * (math.sin(angle) if i % 2 == 0 else math.cos(angle)))
    return torch.tensor(values, dtype=torch.float64)


def tuples_of(clip: Tensor, cardinality: int) -> list[Tensor]:
    frames = [clip[t] + position(t, clip.shape[1]) for t in range(len(clip))]
    return [torch.cat([frames[t] for t in chosen]) for chosen in combinations(range(len(clip)), cardinality)]


def obvious(
    state: dict[str, Tensor], support: Sequence[Iterable[Tensor]], query: Tensor, cardinalities: list[int]
) -> Tensor:
    """Logits of one query from the formula: no tuple is factorised, no clip shared."""
    logits = []
    for clips in support:
        distances = []
        for head, size in enumerate(cardinalities):
            own = {name.removeprefix(f"transformers.{head}."): v for name, v in state.items() if f"rs.{head}." in name}

            def key(e: Tensor, own: dict[str, Tensor] = own) -> Tensor:
                x = own["k_linear.weight"] @ e + own["k_linear.bias"]
                normal = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
                return normal * own["norm_k.weight"] + own["norm_k.bias"]

            def value(e: Tensor, own: dict[str, Tensor] = own) -> Tensor:
                return own["v_linear.weight"] @ e + own["v_linear.bias"]

            in_class = [e for clip in clips for e in tuples_of(clip, size)]
            parts = []
            for e in tuples_of(query, size):
                scores = torch.stack([key(e) @ key(other) / math.sqrt(len(key(e))) for other in in_class])
                attention = scores.exp() / scores.exp().sum()
                prototype = torch.stack([a * value(other) for a, other in zip(attention, in_class, strict=True)]).sum(0)
                parts.append(((value(e) - prototype) ** 2).sum())
            distances.append(sum(parts[1:], parts[0]) / len(parts))
        logits.append(-sum(distances[1:], distances[0]) / len(distances))
    return torch.stack(logits)


def plain(head: Trx, support: Tensor, query: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """The unfactorised head in a few dense operations on concatenated tuples: for gradients."""
    frames, total = query.shape[-2], torch.zeros(())
    table = torch.stack([position(t, query.shape[-1]) for t in range(frames)]).to(query)
    for part, size in zip(head.transformers, sizes, strict=True):
        chosen = torch.tensor(list(combinations(range(frames), size)))
        left, right = ((clips + table)[..., chosen, :].flatten(-2) for clips in (query, support))
        keys = part.norm_k(part.k_linear(right)).flatten(2, 3)[:, None]
        scores = part.norm_k(part.k_linear(left))[:, :, None] @ keys.mT / math.sqrt(keys.shape[-1])
        found = scores.softmax(-1) @ part.v_linear(right).flatten(2, 3)[:, None]
        total = total - (part.v_linear(left)[:, :, None] - found).square().sum(-1).mean(-1)
    return total / len(sizes)


@pytest.mark.parametrize(("frames", "sizes"), [(3, (2, 3)), (5, (2,)), (4, (1, 3))])
def test_logits_are_the_formulas(frames: int, sizes: tuple[int, ...]) -> None:
    head = make(frames, cardinalities=sizes)
    support, query = episode(frames)
    expected = [
        [obvious(head.state_dict(), list(s), q, list(sizes)) for q in qs] for s, qs in zip(support, query, strict=True)
    ]
    torch.testing.assert_close(head(support, query), torch.stack([torch.stack(row) for row in expected]))


def test_an_absent_clip_is_as_if_it_had_never_been() -> None:
    head = make(4)
    support, query = episode(4, shot=3)
    mask = torch.tensor([[[1, 1, 1], [0, 1, 0], [1, 0, 1]]] * 2, dtype=torch.bool)
    encoded = head.encode(support.flatten(0, 2))
    garbage = tuple(
        torch.unflatten(part, 0, (2, 3, 3)).where(mask.view(2, 3, 3, *[1] * (part.dim() - 1)), 1e6) for part in encoded
    )
    asked = tuple(torch.unflatten(part, 0, (2, 4)) for part in head.encode(query.flatten(0, 1)))
    state = head.state_dict()
    expected = []
    for b in range(2):
        present = [list(clips[held]) for clips, held in zip(support[b], mask[b], strict=True)]
        expected.append(torch.stack([obvious(state, present, q, [2, 3]) for q in query[b]]))
    torch.testing.assert_close(head.score(garbage, asked, mask), torch.stack(expected))


def test_gradients_are_those_of_the_unfactorised_head() -> None:
    head = make(4, dim=7)
    support, query = (clips.requires_grad_() for clips in episode(4, dim=7))
    weights = torch.randn(2, 4, 3, dtype=torch.float64)
    wanted = [support, query, *(p for name, p in head.named_parameters() if "v_linear.bias" not in name)]
    ours = torch.autograd.grad((head(support, query) * weights).sum(), wanted)
    theirs = torch.autograd.grad((plain(head, support, query, (2, 3)) * weights).sum(), wanted)
    torch.testing.assert_close(ours, theirs)


def test_gradients_are_those_of_finite_differences() -> None:
    head = make(3, dim=4, width=3)
    support, query = (clips[:1, :2].requires_grad_() for clips in episode(3, dim=4))
    assert torch.autograd.gradcheck(lambda s, q: head(s, q), (support, query))


def test_blocks_of_query_tuples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    head = make(5)
    support, query = episode(5)
    expected = head(support, query)
    monkeypatch.setattr("amfir.meta.heads.tuples.BLOCK", 1500)
    torch.testing.assert_close(head(support, query), expected)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_single_precision_keeps_its_digits_far_from_the_origin(offset: float) -> None:
    head = make(6, dim=16, width=12)
    support, query = (clips + offset for clips in episode(6, dim=16))
    exact = plain(head, support, query, (2, 3))
    single = head.float()(support.float(), query.float())
    torch.testing.assert_close(single.double(), exact, rtol=0, atol=1e-4 * exact.abs().max().item())


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3])
def test_identical_clips_are_at_one_finite_distance(scale: float) -> None:
    head = make(5, dim=8).float()
    clip = scale * torch.randn(5, 8)
    support, query = clip.expand(1, 3, 2, 5, 8).clone().requires_grad_(), clip.expand(1, 2, 5, 8)
    logits = head(support, query)
    logits.sum().backward()
    assert support.grad is not None
    assert support.grad.isfinite().all()
    assert (logits <= 0).all()
    expected = plain(head, support, query, (2, 3)).detach()
    torch.testing.assert_close(logits.detach(), expected, rtol=1e-3, atol=1e-9)


def test_slot_projections_sum_to_the_map_of_a_tuple() -> None:
    frames, weight, bias = torch.randn(2, 6, 4).double(), torch.randn(5, 12).double(), torch.randn(5).double()
    sums = selection(6, 3).double() @ project_slots(frames, weight, bias)
    for row, (i, j, k) in enumerate(combinations(range(6), 3)):
        tuple_ = torch.cat([frames[:, i], frames[:, j], frames[:, k]], -1)
        torch.testing.assert_close(sums[:, row], tuple_ @ weight.T + bias)


def test_short_clips_do_without_the_larger_tuples() -> None:
    support, query = episode(2)
    torch.testing.assert_close(make(2)(support, query), make(2, cardinalities=(2,))(support, query))
    with pytest.raises(UserError, match=r"cardinalities are \(4,\); clips of 3 frames"):
        make(3, cardinalities=(4,))


def test_an_original_checkpoint_gives_the_formulas_logits() -> None:
    torch.manual_seed(3)
    state = {}
    for head, size in enumerate((2, 3)):
        for linear in ("k_linear", "v_linear"):
            state[f"transformers.{head}.{linear}.weight"] = torch.randn(5, 6 * size).double()
            state[f"transformers.{head}.{linear}.bias"] = torch.randn(5).double()
        for norm in ("norm_k", "norm_v"):
            state[f"transformers.{head}.{norm}.weight"] = torch.randn(5).double()
            state[f"transformers.{head}.{norm}.bias"] = torch.randn(5).double()
        state[f"transformers.{head}.pe.pe"] = torch.zeros(1, 6, 6)
    state["resnet.0.weight"] = torch.zeros(1)
    ours = make(4)
    ours.load_original(state)
    support, query = episode(4)
    expected = obvious(state, list(support[1]), query[1, 2], [2, 3])
    torch.testing.assert_close(ours(support, query)[1, 2], expected)


def test_the_soft_start_keeps_the_distances_of_wide_maps() -> None:
    torch.manual_seed(0)
    head = Trx(Inputs(4, 6), TrxConfig(dim=20))
    for part in head.transformers:
        product = part.v_linear.weight.T @ part.v_linear.weight
        torch.testing.assert_close(product, torch.eye(len(product)), atol=1e-5, rtol=0)


def test_dropout_acts_in_training_alone() -> None:
    head = make(4)
    clips = torch.randn(3, 4, 6).double()
    torch.testing.assert_close(head.encode(clips), head.encode(clips))
    head.train()
    assert not torch.equal(head.encode(clips)[0], head.encode(clips)[0])


def test_a_soft_start_does_not_feel_the_scale_of_the_features() -> None:
    support, query = (clips.float() for clips in episode(4))
    logits = []
    for scale in (1e3, 1e6):
        torch.manual_seed(0)
        head = Trx(Inputs(4, 6), TrxConfig(dim=20)).eval()
        head.start(scale * support.flatten(0, 2), torch.zeros(12), torch.Generator())
        logits.append(head(scale * support, scale * query))
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-2, atol=1e-2)
    assert 0.1 < logits[1].std(-1).mean() < 10
    plain_start = Trx(Inputs(4, 6), TrxConfig(soft_start=False))
    before = plain_start.transformers[0].v_linear.weight.clone()
    plain_start.start(support.flatten(0, 2), torch.zeros(12), torch.Generator())
    torch.testing.assert_close(plain_start.transformers[0].v_linear.weight, before)


def test_no_distance_is_below_zero() -> None:
    head = make(4, dim=8).float()
    # Still clips, all alike: every distance is zero, and only rounding is left of it.
    head.transformers[0].positions.table.zero_()
    head.transformers[1].positions.table.zero_()
    still = 100 * torch.randn(64, 1, 1, 1, 8)
    logits = head(still.expand(64, 2, 2, 4, 8) + 0.0, still[:, 0].expand(64, 3, 4, 8) + 0.0)
    assert (logits <= 0).all()
