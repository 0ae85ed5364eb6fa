"""TARN against one pair of clips at a time, gates and softmaxes written out."""

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amfir.cache.errors import UserError
from amfir.meta import heads
from amfir.meta.heads import Inputs, build_head
from amfir.meta.heads.tarn import Tarn

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"dim": 0, "hidden": 3, "relation": 4}


def make(dim: int = 5, frames: int = 4, **settings: Any) -> Tarn:
    head = build_head("tarn", Inputs(frames, dim), {**SMALL, "identity_start": False, **settings}).double().eval()
    assert isinstance(head, Tarn)
    with torch.no_grad():
        head.align_bias.copy_(torch.linspace(-1, 2, len(head.align_bias)))
    return head


def clips(*lead: int, frames: int = 4, dim: int = 5, seed: int = 1) -> Tensor:
    return torch.randn(*lead, frames, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_gru(gru: nn.GRU, frames: list[Tensor], suffix: str = "") -> list[Tensor]:
    """States of one direction after each frame, gate by gate."""
    parts = [getattr(gru, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    w_in, w_state, b_in, b_state = (part.detach().chunk(3) for part in parts)
    state, states = torch.zeros(gru.hidden_size, dtype=torch.float64), []
    for frame in frames:
        seen = [w_in[g] @ frame + b_in[g] for g in range(3)]
        known = [w_state[g] @ state + b_state[g] for g in range(3)]
        reset, update = torch.sigmoid(seen[0] + known[0]), torch.sigmoid(seen[1] + known[1])
        state = (1 - update) * torch.tanh(seen[2] + reset * known[2]) + update * state
        states.append(state)
    return states


def slow_encode(head: Tarn, clip: Tensor) -> list[Tensor]:
    forth = slow_gru(head.encoder, list(clip))
    back = slow_gru(head.encoder, list(clip.flip(0)), "_reverse")[::-1]
    return [torch.cat(pair) for pair in zip(forth, back, strict=True)]


def slow_relation(head: Tarn, support: Tensor, query: Tensor) -> float:
    """The score of one support and one query clip, [T, D] each, before its sigmoid."""
    s, q = slow_encode(head, support), slow_encode(head, query)
    b = torch.tensor([[float((head.align.weight @ x + head.align_bias) @ y) for y in q] for x in s])
    weights = b.double().exp()
    weights /= weights.sum(0, keepdim=True) if head.config.softmax_axis == "support" else weights.sum(1, keepdim=True)
    compared, cosines = [], []
    for y, e in enumerate(q):
        h = sum((weights[x, y] * s[x] for x in range(1, len(s))), weights[0, y] * s[0])
        cosine = e @ h / (e.norm() * h.norm())
        cosines.append(float(cosine))
        kinds = {"mult": e * h, "subt": e - h, "euccos": torch.stack([cosine, (e - h).norm()])}
        compared.append(kinds[head.config.comparison])
    score = float(head.out(slow_gru(head.relation, compared)[-1]))
    return score + (0.0 if head.gain is None else float(head.gain) * sum(cosines) / len(cosines))


@torch.no_grad()
@pytest.mark.parametrize("gain", [0.0, 4.0])
@pytest.mark.parametrize("axis", ["support", "query"])
@pytest.mark.parametrize("comparison", ["mult", "subt", "euccos"])
def test_relation_scores_equal_a_slow_pair_by_pair_reference(comparison: str, axis: str, gain: float) -> None:
    head = make(comparison=comparison, softmax_axis=axis, gain=gain)
    support, query = clips(2, 3, 1), clips(2, 2, seed=2)
    expected = [
        [[slow_relation(head, support[b, n, 0], query[b, q]) for n in range(3)] for q in range(2)] for b in range(2)
    ]
    # The reference rounds the products of alignment to float32.
    torch.testing.assert_close(head(support, query), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_shots_are_averaged_as_the_loss_sees_them() -> None:
    support, query = clips(1, 2, 3), clips(1, 2, seed=2)
    mask = torch.tensor([[[1, 0, 1], [0, 1, 0]]]).bool()
    for loss in ("ce", "bce"):
        head = make(loss=loss)
        for some in (None, mask):
            logits = head(support, query, some)
            for n in range(2):
                shots = [k for k in range(3) if some is None or some[0, n, k]]
                for q in range(2):
                    scores = [slow_relation(head, support[0, n, k], query[0, q]) for k in shots]
                    if loss == "ce":
                        expected = sum(scores) / len(scores)
                    else:
                        mean = sum(1 / (1 + math.exp(-r)) for r in scores) / len(scores)
                        expected = math.log(mean / (1 - mean))
                    assert float(logits[0, q, n]) == pytest.approx(expected, abs=1e-5)


def test_saturated_relation_scores_stay_finite() -> None:
    head = make(loss="bce")
    pairs = torch.tensor([[[[500.0, 900.0], [-900.0, -500.0], [-900.0, 900.0]]]], requires_grad=True)
    logits = head.reduce(pairs)
    # Means of sigmoids: 1 less (e^-500)/2, its mirror image, and a half.
    torch.testing.assert_close(logits[0, 0], torch.tensor([500 + math.log(2), -500 - math.log(2), 0.0]))
    torch.autograd.backward(logits.sum())
    assert pairs.grad is not None
    assert pairs.grad.isfinite().all()


def test_the_binary_loss_is_the_mean_over_classes() -> None:
    head = make(loss="bce")
    support = tuple(part.view(1, 3, 1, 4, 6) for part in head.encode(clips(3)))
    query = tuple(part[None] for part in head.encode(clips(2, seed=2)))
    logits, losses = head.learn(support, query, torch.tensor([[2, 0]]))
    assert torch.equal(logits, head.score(support, query))
    for q, label in enumerate((2, 0)):
        relations = [1 / (1 + math.exp(-v)) for v in logits[0, q].tolist()]
        expected = -sum(math.log(r if n == label else 1 - r) for n, r in enumerate(relations)) / 3
        assert losses[0, q].item() == pytest.approx(expected)


def test_over_the_supports_frames_the_bias_cancels() -> None:
    support, query = clips(1, 3, 1), clips(1, 2, seed=2)
    for axis, same in (("support", True), ("query", False)):
        head = make(softmax_axis=axis)
        before = head(support, query)
        nn.init.zeros_(head.align_bias)
        assert torch.allclose(head(support, query), before) == same


def test_pairs_of_a_matrix_are_those_of_episodes() -> None:
    head = make()
    encoded = head.encode(clips(6))
    matrix = head.pair(tuple(part[:2] for part in encoded), tuple(part[2:] for part in encoded))
    episode = head.score(
        tuple(torch.unflatten(part[2:], 0, (1, 2, 2)) for part in encoded), tuple(part[None, :2] for part in encoded)
    )
    torch.testing.assert_close(matrix.view(2, 2, 2).mean(-1), episode[0])


@pytest.mark.parametrize("frames", [2, 32])
def test_short_and_long_clips_and_pooled_tokens_work(frames: int) -> None:
    head = make(frames=frames)
    logits = head(clips(1, 2, 1, frames=frames), clips(1, 2, frames=frames))
    assert logits.shape == (1, 2, 2)
    tokens = build_head("tarn", Inputs(frames, 5, 4), SMALL)
    pooled = build_head("tarn", Inputs(frames, 5), SMALL)
    some = torch.randn(3, frames, 4, 5)
    torch.testing.assert_close(tokens.encode(some), pooled.encode(some.mean(2)))


@pytest.mark.parametrize("comparison", ["mult", "subt", "euccos"])
def test_gradients_are_right(comparison: str) -> None:
    head = make(dim=2, frames=2, hidden=2, relation=2, comparison=comparison, gain=3.0)
    names = ["align.weight", "encoder.weight_hh_l0", "relation.weight_ih_l0", "gain"]

    def logits(s: Tensor, q: Tensor, *parameters: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (s, q))
        return result

    own = dict(head.named_parameters())
    given = [clips(1, 2, 2, frames=2, dim=2), clips(1, 1, frames=2, dim=2, seed=2), *(own[name] for name in names)]
    assert torch.autograd.gradcheck(logits, [x.detach().clone().requires_grad_() for x in given])


@pytest.mark.parametrize("comparison", ["mult", "subt", "euccos"])
@pytest.mark.parametrize("factor", [0.0, 1e-3, 1e3])
def test_degenerate_clips_give_finite_logits_and_gradients(comparison: str, factor: float) -> None:
    head = build_head("tarn", Inputs(3, 5), {**SMALL, "comparison": comparison, "dim": 6})
    clip = (factor * clips(1, frames=3)).float()
    support = clip.repeat(4, 1, 1).view(1, 2, 2, 3, 5).requires_grad_()
    logits = head(support, clip[None])
    torch.testing.assert_close(logits[..., 0], logits[..., 1])
    logits.logsumexp(-1).sum().backward()
    gradients = [support.grad, *(p.grad for p in head.parameters())]
    assert logits.isfinite().all()
    assert all(g.isfinite().all() for g in gradients if g is not None)


def test_a_checkpoint_of_the_unofficial_code_goes_in_under_its_own_names() -> None:
    settings: dict[str, Any] = {"comparison": "euccos", "softmax_axis": "query", "gain": 0.0}
    head, other = make(**settings), build_head("tarn", Inputs(4, 5), {**SMALL, **settings}, seed=3).double()
    names = head.original_names()
    assert set(names) == set(head.state_dict())
    assert names["encoder.weight_hh_l0_reverse"] == "feats_gru.weight_hh_l0_reverse"
    assert (names["align.weight"], names["align_bias"], names["out.bias"]) == ("W.weight", "bias", "dml_fc.bias")
    other.load_original({names[ours]: value for ours, value in head.state_dict().items()})
    torch.testing.assert_close(other(clips(1, 2, 1), clips(1, 2)), head(clips(1, 2, 1), clips(1, 2)))


def test_settings_that_make_no_head_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"comparison": "mul"}, "unknown comparison .* did you mean 'mult'"),
        ({"softmax_axis": "time"}, "unknown softmax_axis"),
        ({"loss": "mse"}, "unknown loss"),
        ({"hidden": 0}, "at least 1"),
        ({"dropout": 1.0}, "below 1"),
        ({"gain": -1.0}, "cannot be negative"),
    ]
    for settings, message in wrong:
        with pytest.raises(UserError, match=message):
            build_head("tarn", Inputs(8, 4), settings)


def test_profiles_are_the_papers_sizes_and_the_defaults() -> None:
    profiles = tomllib.loads((Path(heads.__file__).parent / "tarn.toml").read_text())
    paper = build_head("tarn", Inputs(8, 12), profiles["paper"]["head"])
    assert isinstance(paper, Tarn)
    assert paper.encoder.weight_hh_l0.shape == (768, 256)
    assert paper.relation.weight_ih_l0.shape == (768, 512)
    assert torch.equal(paper.align_bias, torch.ones(512))
    assert (paper.gain, paper.config.loss) == (None, "bce")
    fair = build_head("tarn", Inputs(8, 12), profiles["fair"]["head"])
    assert isinstance(fair, Tarn)
    assert fair.config == Tarn.config_type()
    assert fair.footprint(5, 5, 25) == 25 * fair.footprint(5, 1, 5)
