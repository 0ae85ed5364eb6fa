"""TA2N against one pair of clips at a time: concatenated maps through whole convolutions, boxes token by token."""

import math
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from amfir.cache.errors import UserError
from amfir.meta import heads
from amfir.meta.heads import Inputs, build_head
from amfir.meta.heads.alignment import resampling, soft_box
from amfir.meta.heads.grids import halve
from amfir.meta.heads.ta2n import Ta2n

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"dim": 0, "locnet": 4, "mvnet": 4, "identity_start": False, "scale": 1.0}


def make(tokens: int = 9, frames: int = 4, dim: int = 5, seed: int = 0, **settings: Any) -> Ta2n:
    """A head whose every parameter and running statistic is random, so that nothing hides behind a zero."""
    name = "ta2n" if tokens else "ta2n[pooled]"
    head = build_head(name, Inputs(frames, dim, tokens), {**SMALL, **settings}).double().eval()
    assert isinstance(head, Ta2n)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in head.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.4)
            if name.endswith("running_var"):
                tensor += 0.5
    # Positions between frames, some of them beyond the ends.
    head.warp.theta.bias.data = torch.tensor([1.5, 0.4], dtype=torch.float64)
    return head


def clips(*lead: int, tokens: int = 9, frames: int = 4, dim: int = 5, seed: int = 1) -> Tensor:
    shape = (*lead, frames, *([tokens] if tokens else []), dim)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the slow reference ---------------------------------------------------------------------------------------------


def pooled(grids: Tensor, *, time: bool) -> Tensor:
    """Max over windows of two, written out; a last odd row is dropped, an axis of one stays."""
    for axis in (-3, -2, -1) if time else (-2, -1):
        if (size := grids.shape[axis]) > 1:
            pairs = [grids.narrow(axis, 2 * i, 2).amax(axis) for i in range(size // 2)]
            grids = torch.stack(pairs, axis)
    return grids


def normalised(norm: nn.BatchNorm3d, grid: Tensor) -> Tensor:
    rows = [
        (grid[c] - norm.running_mean[c]) / (norm.running_var[c] + 1e-5).sqrt() * norm.weight[c] + norm.bias[c]  # type: ignore[index]
        for c in range(len(grid))
    ]
    return torch.stack(rows)


def grid_of(clip: Tensor) -> Tensor:
    """[T, P, D] -> [D, T, side, side]."""
    side = math.isqrt(clip.shape[1])
    return clip.permute(2, 0, 1).reshape(clip.shape[2], clip.shape[0], side, side)


def slow_warp(head: Ta2n, clip: Tensor) -> Tensor:
    net = head.warp
    x = net.first(grid_of(clip)[None])[0]
    x = pooled(normalised(net.first_norm, x), time=True).relu()
    x = pooled(normalised(net.second_norm, net.second(x[None])[0]), time=True).relu()
    a, b = torch.tanh(net.theta(net.hidden(x.flatten(1).amax(1)).relu())).tolist()
    frames = clip.shape[0]
    grid = torch.tensor([[a * (-1 + 2 * t / (frames - 1)) + b, -1.0] for t in range(frames)], dtype=torch.float64)
    row = clip.flatten(1).T[None, :, None]
    moved = functional.grid_sample(row, grid[None, None], align_corners=True, padding_mode="zeros")
    return moved[0, :, 0].T.reshape(clip.shape)


def slow_box(shift: tuple[float, float], side: int) -> Tensor:
    """Mean over nine boxes, each normalised, token by token."""
    total = torch.zeros(side, side, dtype=torch.float64)
    for step_x in (-0.2, 0.0, 0.2):
        for step_y in (-0.2, 0.0, 0.2):
            box = torch.zeros(side, side, dtype=torch.float64)
            for i in range(side):
                for j in range(side):
                    y = abs(-1 + 2 * i / (side - 1) + shift[1] + step_y)
                    x = abs(-1 + 2 * j / (side - 1) + shift[0] + step_x)
                    fall = [1 if v < 1 else max(0.0, 1 - (v - 1) * (side - 1) / 2) for v in (x, y)]
                    box[i, j] = fall[0] * fall[1]
            total += box / box.sum() / 9
    return total.flatten()


def slow_offsets(head: Ta2n, support: Tensor, query: Tensor) -> Tensor:
    net = head.offset
    assert net is not None
    x = net.first(torch.cat([grid_of(support), grid_of(query)])[None])[0]
    x = pooled(normalised(net.first_norm, x), time=False).relu()
    x = pooled(normalised(net.second_norm, net.second(x[None])[0]), time=False).relu()
    x = x.flatten(2).amax(2)
    offsets = torch.tanh(net.offset(net.hidden(x[None]).relu()))[0].T
    assert offsets.abs().max() < 0.99, "saturated offsets would hide mistakes"
    return 0.75 * offsets


def slow_pair(head: Ta2n, support: Tensor, query: Tensor) -> float:
    """Stage 2 and the logit of one class and one query, [T, P, D] each."""
    frames, places, dim = support.shape
    s, q = support.mean(1), query.mean(1)
    keys, queries = [head.key.weight @ f for f in s], [head.query.weight @ f for f in q]
    moved_query = torch.empty_like(query)
    for x in range(frames):
        weights = torch.softmax(torch.stack([keys[x] @ queries[y] / math.sqrt(dim) for y in range(frames)]), 0)
        attended = sum(weights[y] * (head.value.weight @ q[y]) for y in range(frames))
        moved_query[x] = query[x] + attended
    moved_support = support + torch.stack([head.value.weight @ f for f in s])[:, None]
    boxes = torch.full((2, frames, places), 1 / places, dtype=torch.float64)
    if places > 1:
        for t, (x_shift, y_shift) in enumerate(slow_offsets(head, moved_support, moved_query).tolist()):
            side = math.isqrt(places)
            boxes[0, t], boxes[1, t] = slow_box((x_shift, y_shift), side), slow_box((-x_shift, -y_shift), side)
    logit = 0.0
    for t in range(frames):
        left, right = boxes[0, t] @ moved_support[t], boxes[1, t] @ moved_query[t]
        logit -= 1 - float(functional.normalize(left, dim=0) @ functional.normalize(right, dim=0))
    return logit


def slow_class(head: Ta2n, shots: list[Tensor]) -> Tensor:
    """The first clip's view of all of a class's clips (at least one here stands for several)."""
    frames, _, dim = shots[0].shape
    asking = [head.fusion_query.weight @ f for f in shots[0].mean(1)]
    total = torch.zeros_like(shots[0])
    for clip in shots:
        keys = [head.fusion_key.weight @ f for f in clip.mean(1)]
        for y in range(frames):
            weights = torch.softmax(torch.stack([keys[x] @ asking[y] / math.sqrt(dim) for x in range(frames)]), 0)
            for x in range(frames):
                total[y] += weights[x] * (clip[x] @ head.fusion_value.weight.T) / len(shots)
    return total


@torch.no_grad()
def slow_logits(head: Ta2n, support: Tensor, query: Tensor, mask: Tensor | None = None) -> Tensor:
    """Logits of one episode, [N, K, T, P, D] and [Q, T, P, D] -> [Q, N]."""
    way, shot = support.shape[:2]
    queries = [slow_warp(head, clip) for clip in query]
    several = shot > 1 if mask is None else bool((mask.sum(-1) > 1).any())
    classes = []
    for n in range(way):
        here = [slow_warp(head, support[n, k]) for k in range(shot) if mask is None or mask[n, k]]
        classes.append(slow_class(head, here) if several else here[0])
    if several:
        queries = [clip @ head.fusion_value.weight.T for clip in queries]
    return torch.tensor([[slow_pair(head, s, q) for s in classes] for q in queries], dtype=torch.float64)


# --- logits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "frames"), [(49, 8), (16, 2), (9, 5), (4, 3), (0, 8), (0, 2)])
def test_logits_equal_a_slow_pair_by_pair_reference(tokens: int, frames: int) -> None:
    head = make(tokens, frames)
    support, query = clips(1, 3, 1, tokens=tokens, frames=frames), clips(1, 2, tokens=tokens, frames=frames, seed=2)
    slow = (support, query) if tokens else (support[..., None, :], query[..., None, :])
    torch.testing.assert_close(head(support, query)[0], slow_logits(head, slow[0][0], slow[1][0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tokens", [9, 0])
def test_several_shots_are_fused_by_the_first_one_present(tokens: int) -> None:
    head = make(tokens)
    support, query = clips(3, 3, 3, tokens=tokens), clips(3, 2, tokens=tokens, seed=2)
    # The last episode has one clip a class: nothing to fuse, whatever stands beside it in the batch.
    shots = [[[1, 1, 1], [1, 0, 1], [0, 1, 0]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]], [[1, 0, 0], [0, 0, 1], [0, 1, 0]]]
    mask = torch.tensor(shots).bool()
    logits = head(support, query, mask)
    for b in range(3):
        slow = (support[b], query[b]) if tokens else (support[b][..., None, :], query[b][..., None, :])
        torch.testing.assert_close(logits[b], slow_logits(head, *slow, mask[b]), rtol=1e-9, atol=1e-9)
    garbage = support.where(mask.view(3, 3, 3, *[1] * (support.dim() - 3)), 1e6)
    encoded = head.encode(garbage.flatten(0, 2)), head.encode(query.flatten(0, 1))
    by_parts = head.score(
        tuple(torch.unflatten(part, 0, (3, 3, 3)) for part in encoded[0]),
        tuple(torch.unflatten(part, 0, (3, 2)) for part in encoded[1]),
        mask,
    )
    torch.testing.assert_close(by_parts, logits)
    assert Ta2n.order_dependent
    assert not torch.allclose(head(support.flip(2), query), head(support, query))


def test_the_start_is_frame_by_frame_cosines_of_the_resampled_clips() -> None:
    head = build_head("ta2n", Inputs(4, 5, 9), {**SMALL, "identity_start": True, "scale": 3.0}).double().eval()
    support, query = clips(1, 2, 1), clips(1, 3, seed=2)
    weights = resampling(torch.tensor([[math.tanh(2.0), 0.0]], dtype=torch.float64), 4)[0]
    box = slow_box((0.0, 0.0), 3)
    s, q = (torch.einsum("tx,...xpd,p->...td", weights, c, box) for c in (support[0, :, 0], query[0]))
    expected = 3.0 * (functional.cosine_similarity(q[:, None], s[None], dim=-1) - 1).sum(-1)
    torch.testing.assert_close(head(support, query)[0], expected, rtol=1e-6, atol=1e-6)


def test_pooled_heads_take_the_mean_of_tokens_where_there_are_some() -> None:
    head = build_head("ta2n[pooled]", Inputs(4, 5, 9), SMALL).eval()
    bare = build_head("ta2n[pooled]", Inputs(4, 5), SMALL).eval()
    support, query = clips(1, 2, 1).float(), clips(1, 3).float()
    torch.testing.assert_close(head(support, query), bare(support.mean(-2), query.mean(-2)))


# --- parts ----------------------------------------------------------------------------------------------------------


def test_resampling_interpolates_and_is_zero_beyond_the_ends() -> None:
    weights = resampling(torch.tensor([[1.0, 0.0], [0.5, 0.75]]), 5)
    torch.testing.assert_close(weights[0], torch.eye(5))
    # Positions 2.5, 3, 3.5, 4, 4.5: the last one is half a frame beyond the end.
    expected = torch.zeros(5, 5)
    for t, pairs in enumerate([((2, 0.5), (3, 0.5)), ((3, 1.0),), ((3, 0.5), (4, 0.5)), ((4, 1.0),), ((4, 0.5),)]):
        for x, weight in pairs:
            expected[t, x] = weight
    torch.testing.assert_close(weights[1], expected)


@pytest.mark.parametrize("side", [2, 4, 7])
def test_boxes_equal_a_loop_over_tokens_and_move_the_right_way(side: int) -> None:
    for shift in ((0.0, 0.0), (0.7, -0.3), (-0.75, 0.75), (0.11, 0.52)):
        box = soft_box(torch.tensor(shift, dtype=torch.float64), side)
        torch.testing.assert_close(box, slow_box(shift, side), rtol=1e-9, atol=1e-12)
        assert float(box.sum()) == pytest.approx(1)
    # Places are compared AFTER the shift is added to them: a positive x keeps the columns of the left half.
    assert soft_box(torch.tensor([0.7, 0.0]), 7).view(7, 7).sum(0).argmax() < 3


def test_halving_is_the_originals_pooling_and_leaves_short_axes() -> None:
    grid = clips(2, 3, frames=8, tokens=7, dim=7)
    torch.testing.assert_close(halve(grid, time=True), functional.max_pool3d(grid, 2))
    torch.testing.assert_close(halve(grid, time=False), functional.max_pool3d(grid, (1, 2, 2)))
    assert halve(grid[:, :, :1, :4, :1], time=True).shape == (2, 3, 1, 2, 1)


# --- gradients and odd input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tokens", "shot"), [(4, 1), (4, 2), (0, 2)])
def test_gradients_are_right(tokens: int, shot: int) -> None:
    head = make(tokens, frames=2, dim=2, locnet=2, mvnet=2)
    support, query = clips(1, 2, shot, tokens=tokens, frames=2, dim=2), clips(1, 1, tokens=tokens, frames=2, dim=2)
    names = ["warp.theta.weight", "value.weight", "fusion_key.weight", *(["offset.first.weight"] if tokens else [])]

    def logits(s: Tensor, q: Tensor, *parameters: Tensor) -> Tensor:
        changed = dict(zip(names, parameters, strict=True))
        result: Tensor = torch.func.functional_call(head, changed, (s, q))
        return result

    own = dict(head.named_parameters())
    given = [x.detach().clone().requires_grad_() for x in (support, query, *(own[name] for name in names))]
    assert torch.autograd.gradcheck(logits, given, fast_mode=True)


@pytest.mark.parametrize("tokens", [9, 0])
@pytest.mark.parametrize("factor", [0.0, 1e-3, 1e3])
def test_degenerate_clips_give_finite_logits_and_gradients(tokens: int, factor: float) -> None:
    head = build_head("ta2n" if tokens else "ta2n[pooled]", Inputs(3, 5, tokens), {"dim": 6, "locnet": 4, "mvnet": 4})
    clip = (factor * clips(1, tokens=tokens, frames=3)).float()
    for training in (True, False):
        head.train(training).zero_grad()
        support = clip.expand(4, *clip.shape[1:]).reshape(1, 2, 2, *clip.shape[1:]).requires_grad_()
        logits = head(support, clip[None])
        torch.testing.assert_close(logits[..., 0], logits[..., 1])
        logits.logsumexp(-1).sum().backward()
        gradients = [support.grad, *(p.grad for p in head.parameters())]
        assert logits.isfinite().all()
        assert all(g.isfinite().all() for g in gradients if g is not None)


# --- the original's checkpoints and settings ------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "align.", "module."])
def test_an_original_checkpoint_goes_in_under_its_own_names(prefix: str) -> None:
    head, other = make(9), make(9, seed=5)
    names = head.original_names()
    assert set(names) == set(head.state_dict())
    assert names["warp.first.weight"] == "firststage.locnet.0.weight"
    assert names["warp.second_norm.running_var"] == "firststage.locnet.5.running_var"
    assert names["warp.theta.bias"] == "firststage.locnet.12.bias"
    assert names["key.weight"] == "secondstage.keynet.weight"
    assert names["fusion_value.weight"] == "valuenet_multi.weight"
    assert names["offset.offset.weight"] == "secondstage.mvnet.12.weight"
    state = {prefix + names[ours]: value for ours, value in head.state_dict().items()}
    for short in ("secondstage.keynet", "keynet_multi", "valuenet_multi"):
        state[f"{prefix}{short}.weight"] = state[f"{prefix}{short}.weight"][..., None]  # a 1 x 1 convolution there
    other.load_original({**state, "resnet.conv1.weight": torch.zeros(1)})
    support, query = clips(1, 2, 2), clips(1, 2, seed=2)
    torch.testing.assert_close(other(support, query), head(support, query))


def test_the_pooled_variant_has_no_original() -> None:
    with pytest.raises(UserError, match="has no parameters of an original"):
        make(0).load_original({})


def test_grids_that_cannot_be_are_refused() -> None:
    for tokens, message in ((0, "needs spatial tokens"), (12, "square grid .* have 12"), (1, "have 1")):
        with pytest.raises(UserError, match=message):
            build_head("ta2n", Inputs(8, 4, tokens))
    for settings, message in (({"locnet": 1}, "at least 2 channels"), ({"dropout": 1.0}, "below 1")):
        with pytest.raises(UserError, match=message):
            build_head("ta2n[pooled]", Inputs(8, 4), settings)


def test_the_paper_profile_has_the_originals_sizes_and_the_fair_one_the_defaults() -> None:
    profiles = tomllib.loads((Path(heads.__file__).parent / "ta2n.toml").read_text())
    head = build_head("ta2n", Inputs(8, 12, 49), profiles["paper"]["head"])
    assert isinstance(head, Ta2n)
    assert head.offset is not None
    assert head.warp.first.weight.shape == (64, 12, 3, 3, 3)
    assert [layer.weight.shape[0] for layer in (head.warp.second, head.warp.hidden)] == [128, 32]
    assert head.offset.first.weight.shape == (128, 24, 3, 3, 3)
    assert head.offset.hidden.weight.shape[:2] == (64, 128)
    assert build_head("ta2n", Inputs(8, 12, 49), profiles["fair"]["head"]).config == Ta2n.config_type()


def test_the_footprint_grows_with_pairs_and_shots() -> None:
    head = make(49, 8, 16)
    numbers = [head.footprint(5, 1, q) for q in (5, 25)] + [head.footprint(5, 5, 25)]
    assert all(a < b for a, b in pairwise(numbers))
