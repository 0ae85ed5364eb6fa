"""ARN against one clip and one pair at a time, written from the formulas."""

import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amfir.cache.errors import UserError
from amfir.meta import heads
from amfir.meta.heads import Inputs, build_head
from amfir.meta.heads.arn import Arn

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"width": 8, "comparator": 3}


def make(tokens: int = 9, frames: int = 4, dim: int = 5, **settings: Any) -> Arn:
    """A head whose every parameter and running statistic is random."""
    name = "arn" if tokens else "arn[pooled]"
    head = build_head(name, Inputs(frames, dim, tokens), {**SMALL, **settings}).double().eval()
    assert isinstance(head, Arn)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point() and name != "gain":
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.4)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    with torch.no_grad():
        head.log_power.fill_(math.log(200))
    return head


def clips(*lead: int, tokens: int = 9, frames: int = 4, dim: int = 5, seed: int = 1) -> Tensor:
    shape = (*lead, frames, *([tokens] if tokens else []), dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalised(norm: nn.BatchNorm1d | nn.BatchNorm2d, value: Tensor, channel: int) -> Tensor:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    return (value - mean[channel]) / math.sqrt(variance[channel] + 1e-5) * norm.weight[channel] + norm.bias[channel]


def slow_clip(head: Arn, clip: Tensor) -> Tensor:
    """Power-normalised correlations of one clip, [T, P, D] -> [C, C]."""
    frames, places, _ = clip.shape
    width, side = head.config.width, math.isqrt(places)
    rows = torch.empty(frames, places, width, dtype=torch.float64)
    for t in range(frames):
        for p in range(places):
            mapped = head.map.weight @ clip[t, p] + head.map.bias
            rows[t, p] = torch.stack([normalised(head.norm, mapped[c], c).clamp_min(0) for c in range(width)])
    image = rows.permute(2, 0, 1).reshape(1, width, frames, side, side)
    own = head.state_dict()
    kernels, biases = ([own[f"attention.{i}.{name}"] for i in (0, 2)] for name in ("weight", "bias"))
    if places == 1:
        # A convolution over time is a whole one whose kernel is zero beside the middle.
        kernels = [functional.pad(kernel, (1, 1, 1, 1)) for kernel in kernels]
    hidden = functional.conv3d(image, kernels[0], biases[0], padding=1).clamp_min(0)
    attention = torch.sigmoid(functional.conv3d(hidden, kernels[1], biases[1], padding=1))
    total = torch.zeros(width, width, dtype=torch.float64)
    for t in range(frames):
        for p in range(places):
            row = attention[0, 0, t, p // side, p % side] * rows[t, p]
            total += torch.outer(row, row) / (frames * places)
    total /= total.trace()
    eta = 200.0
    return (1 - torch.exp(-eta * total)) / (1 + torch.exp(-eta * total))


def slow_relation(head: Arn, query: Tensor, support: Tensor) -> float:
    net = head.comparator
    image = net.first(torch.stack([query, support])[None])[0]
    for norm, step in ((net.first_norm, net.second), (net.second_norm, None)):
        image = torch.stack([normalised(norm, image[c], c) for c in range(len(image))]).clamp_min(0)
        image = image.unfold(1, 2, 2).unfold(2, 2, 2).amax((-1, -2))
        if step is not None:
            image = step(image[None])[0]
    score = float(net.score(net.hidden(image.flatten()).clamp_min(0)))
    if head.gain is None:
        return score
    return score + float(head.gain) * float((query * support).sum() / (query.norm() * support.norm()))


@torch.no_grad()
def slow_logits(head: Arn, support: Tensor, query: Tensor, mask: Tensor | None = None) -> Tensor:
    """[N, K, T, P, D] and [Q, T, P, D] -> [Q, N]."""
    classes = []
    for n, shots in enumerate(support):
        here = [slow_clip(head, clip) for k, clip in enumerate(shots) if mask is None or mask[n, k]]
        classes.append(sum(here[1:], here[0]) / len(here))
    rows = [[slow_relation(head, slow_clip(head, clip), c) for c in classes] for clip in query]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("gain", [0.0, 7.0])
@pytest.mark.parametrize(("tokens", "frames"), [(9, 4), (4, 2), (0, 5), (0, 2)])
def test_logits_equal_a_slow_reference(tokens: int, frames: int, gain: float) -> None:
    head = make(tokens, frames, gain=gain)
    support, query = clips(1, 3, 2, tokens=tokens, frames=frames), clips(1, 2, tokens=tokens, frames=frames, seed=2)
    slow = (support[0], query[0]) if tokens else (support[0][..., None, :], query[0][..., None, :])
    mask = torch.tensor([[1, 1], [0, 1], [1, 0]]).bool()
    torch.testing.assert_close(head(support, query)[0], slow_logits(head, *slow), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        head(support, query, mask[None])[0], slow_logits(head, *slow, mask), rtol=1e-9, atol=1e-9
    )


def test_what_the_mask_leaves_out_changes_nothing() -> None:
    head = make(0)
    encoded = head.encode(clips(6, tokens=0))[0].view(1, 3, 2, 8, 8)
    query = head.encode(clips(2, tokens=0, seed=2))[0][None]
    mask = torch.tensor([[[1, 1], [0, 1], [1, 0]]]).bool()
    garbage = encoded.where(mask[..., None, None], 1e9)
    torch.testing.assert_close(head.score((garbage,), (query,), mask), head.score((encoded,), (query,), mask))


def test_the_start_is_the_cosine_of_correlations() -> None:
    head = build_head("arn[pooled]", Inputs(4, 5), {**SMALL, "gain": 7.0}).double().eval()
    support, query = clips(1, 3, 1, tokens=0), clips(1, 2, tokens=0, seed=2)
    maps = [head.encode(part[0].flatten(0, -3))[0].flatten(1) for part in (query, support)]
    expected = 7.0 * functional.cosine_similarity(maps[0][:, None], maps[1][None], dim=-1)
    torch.testing.assert_close(head(support, query)[0], expected)


def test_start_takes_the_statistics_of_the_base_clips() -> None:
    head = build_head("arn", Inputs(4, 5, 9), SMALL).double()
    assert isinstance(head, Arn)
    base = 3 + 2 * clips(6)
    head.start(base, torch.arange(6), torch.Generator())
    rows = functional.batch_norm(
        head.map(base).flatten(0, 2), head.norm.running_mean, head.norm.running_var, training=False
    )
    torch.testing.assert_close(rows.mean(0), torch.zeros(8, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.ones(8, dtype=torch.float64), atol=1e-3, rtol=0)


def test_losses_are_cross_entropy_and_the_squared_error_of_relation_scores() -> None:
    labels = torch.tensor([[2, 0]])
    for loss in ("ce", "mse"):
        head = make(0, loss=loss)
        encoding = head.encode(clips(3, tokens=0))[0].view(1, 3, 1, 8, 8), head.encode(clips(2, tokens=0))[0][None]
        logits, losses = head.learn((encoding[0],), (encoding[1],), labels)
        assert torch.equal(logits, head.score((encoding[0],), (encoding[1],)))
        for q, label in enumerate((2, 0)):
            row = logits[0, q].tolist()
            if loss == "ce":
                expected = math.log(sum(math.exp(v) for v in row)) - row[label]
            else:
                expected = sum((1 / (1 + math.exp(-v)) - (n == label)) ** 2 for n, v in enumerate(row)) / 3
            assert losses[0, q].item() == pytest.approx(expected)


@pytest.mark.parametrize("tokens", [4, 0])
def test_gradients_are_right(tokens: int) -> None:
    head = make(tokens, frames=2, dim=2, width=4, comparator=2)
    support, query = clips(1, 2, 2, tokens=tokens, frames=2, dim=2), clips(1, 1, tokens=tokens, frames=2, dim=2)
    names = ["log_power", "gain", "map.weight", "attention.0.weight", "comparator.first.weight"]

    def logits(s: Tensor, q: Tensor, *parameters: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), (s, q))
        return result

    own = dict(head.named_parameters())
    given = [x.detach().clone().requires_grad_() for x in (support, query, *(own[name] for name in names))]
    assert torch.autograd.gradcheck(logits, given, fast_mode=True)


@pytest.mark.parametrize("tokens", [9, 0])
@pytest.mark.parametrize("factor", [0.0, 1e-3, 1e3])
def test_degenerate_clips_give_finite_logits_and_gradients(tokens: int, factor: float) -> None:
    head = build_head("arn" if tokens else "arn[pooled]", Inputs(2, 5, tokens), SMALL)
    clip = (factor * clips(1, tokens=tokens, frames=2)).float()
    for training in (True, False):
        head.train(training).zero_grad()
        support = clip.expand(4, *clip.shape[1:]).reshape(1, 2, 2, *clip.shape[1:]).requires_grad_()
        logits = head(support, clip[None])
        torch.testing.assert_close(logits[..., 0], logits[..., 1])
        logits.logsumexp(-1).sum().backward()
        gradients = [support.grad, *(p.grad for p in head.parameters())]
        assert logits.isfinite().all()
        assert all(g.isfinite().all() for g in gradients if g is not None)


def test_settings_that_make_no_head_are_refused() -> None:
    for settings, message in (
        ({"loss": "mae"}, "unknown loss"),
        ({"width": 3}, "width of 4"),
        ({"gain": -1.0}, "gain"),
    ):
        with pytest.raises(UserError, match=message):
            build_head("arn[pooled]", Inputs(8, 4), settings)
    with pytest.raises(UserError, match="needs spatial tokens"):
        build_head("arn", Inputs(8, 4))


def test_profiles_are_the_papers_sizes_and_the_defaults() -> None:
    profiles = tomllib.loads((Path(heads.__file__).parent / "arn.toml").read_text())
    paper = build_head("arn", Inputs(8, 12, 49), profiles["paper"]["head"])
    assert isinstance(paper, Arn)
    assert paper.comparator.first.weight.shape == (64, 2, 3, 3)
    assert paper.comparator.hidden.weight.shape == (8, 64 * 16 * 16)
    assert (paper.gain, paper.config.loss) == (None, "mse")
    fair = build_head("arn", Inputs(8, 12, 49), profiles["fair"]["head"])
    assert isinstance(fair, Arn)
    assert fair.config == Arn.config_type()
    assert fair.footprint(5, 5, 25) == 5 * fair.footprint(5, 1, 5)
