"""CMN and CMN-lite against loops written from their formulas."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from amfir.cache.errors import UserError
from amfir.meta.heads import Inputs
from amfir.meta.heads.cmn import Cmn, CmnConfig, CmnLite, CmnLiteConfig

pytestmark = pytest.mark.usefixtures("one_thread")

WAY, SHOT, QUERIES, FRAMES, DIM = 3, 2, 4, 5, 6
LITE = CmnLiteConfig(dim=0, saliencies=3, spread=0.7, scale=0.5)
FULL = CmnConfig(dim=0, saliencies=3, key_dim=4, spread=0.7, scale=2.0)
UNEQUAL = torch.tensor([[[True, True], [True, False], [False, True]], [[True, False], [True, True], [True, True]]])


def build_lite(config: CmnLiteConfig = LITE) -> CmnLite:
    torch.manual_seed(0)
    return CmnLite(Inputs(FRAMES, DIM), config).double()


def build_full(config: CmnConfig = FULL) -> Cmn:
    torch.manual_seed(0)
    head = Cmn(Inputs(FRAMES, DIM), config).double()
    with torch.no_grad():
        nn.init.normal_(head.key.bias, std=0.3)
    return head


def episodes(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    support = torch.randn(2, WAY, SHOT, FRAMES, DIM, generator=generator, dtype=torch.float64)
    return support, torch.randn(2, QUERIES, FRAMES, DIM, generator=generator, dtype=torch.float64)


def saliency_rows(clip: Tensor, points: Tensor) -> list[Tensor]:
    """Rows of one clip, frame by frame and point by point."""
    dim = clip.shape[1]
    rows = [torch.zeros(dim, dtype=clip.dtype) for _ in points]
    for frame in clip:
        exponents = [math.exp(float(frame @ point) / math.sqrt(dim)) for point in points]
        for j, point in enumerate(points):
            rows[j] = rows[j] + exponents[j] / sum(exponents) * (frame - point)
    return [row / row.norm() for row in rows]


def test_lite_equals_a_slow_loop() -> None:
    head = build_lite()
    with torch.no_grad():
        nn.init.normal_(head.out.weight)
        nn.init.normal_(head.out.bias)
    support, query = episodes()
    points = head.saliency.points.detach()

    def embed(clip: Tensor) -> Tensor:
        return head.out.weight @ torch.cat(saliency_rows(clip, points)) + head.out.bias

    expected = torch.zeros(2, QUERIES, WAY, dtype=torch.float64)
    for b in range(2):
        for n in range(WAY):
            present = [k for k in range(SHOT) if UNEQUAL[b, n, k]]
            prototype = sum((embed(support[b, n, k]) for k in present), torch.zeros(DIM).double()) / len(present)
            for q in range(QUERIES):
                expected[b, q, n] = -LITE.scale * (embed(query[b, q]) - prototype).square().sum()
    torch.testing.assert_close(head(support, query, UNEQUAL), expected)


def test_lite_starts_as_the_sum_of_the_rows() -> None:
    head = build_lite()
    clip = episodes()[1][0, :1]
    rows = saliency_rows(clip[0], head.saliency.points.detach())
    torch.testing.assert_close(head.embed(clip)[0], rows[0] + rows[1] + rows[2])


def test_equal_points_never_part_but_random_ones_do() -> None:
    support, query = episodes()
    for spread, parted in ((0.0, False), (0.7, True)):
        head = build_lite(replace(LITE, spread=spread))
        if not spread:
            assert head.saliency.points.tolist() == [[pytest.approx(1e-8)] * DIM] * 3
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            head(support, query).log_softmax(-1)[..., 0].sum().backward()
            optimizer.step()
        points = head.saliency.points.detach()
        assert bool((points[0] - points[1]).abs().max() > 1e-9) is parted


def test_lite_takes_the_parameters_of_its_original() -> None:
    head = build_lite()
    generator = torch.Generator().manual_seed(5)
    state = {
        "module.h": torch.randn(3, DIM, generator=generator).double(),
        "module.fc.weight": torch.randn(DIM, 3 * DIM, generator=generator).double(),
        "module.fc.bias": torch.randn(DIM, generator=generator).double(),
        "module.feature.conv1.weight": torch.zeros(1),
    }
    head.load_original(state)
    clip = episodes()[1][0, :1]
    rows = saliency_rows(clip[0], state["module.h"])
    expected = state["module.fc.weight"] @ torch.cat(rows) + state["module.fc.bias"]
    torch.testing.assert_close(head.embed(clip)[0], expected)


def similarities(head: Cmn, support: Tensor, query: Tensor) -> Tensor:
    """Sums of cosines of all pairs of an episode, [Q, N, K], pair by pair."""
    points, key = head.saliency.points.detach(), head.key.requires_grad_(False)

    def keys(clip: Tensor) -> list[Tensor]:
        return [key.weight @ row + key.bias for row in saliency_rows(clip, points)]

    result = torch.zeros(len(query), *support.shape[:2], dtype=torch.float64)
    for q, n, k in torch.cartesian_prod(*(torch.arange(size) for size in result.shape)).tolist():
        pairs = zip(keys(query[q]), keys(support[n, k]), strict=True)
        result[q, n, k] = sum(left @ right / left.norm() / right.norm() for left, right in pairs)
    return result


def test_full_equals_a_slow_loop() -> None:
    head = build_full()
    support, query = episodes()
    logits = head(support, query, UNEQUAL).detach()
    for b in range(2):
        pairs = similarities(head, support[b], query[b])
        for q in range(QUERIES):
            for n in range(WAY):
                best = max(float(pairs[q, n, k]) for k in range(SHOT) if UNEQUAL[b, n, k])
                assert float(logits[b, q, n]) == pytest.approx(FULL.scale * best, rel=1e-9)


def test_best_shot_is_one_that_exists_even_where_all_are_unlike() -> None:
    pairs = torch.tensor([[[[-3.0, -1.0], [-2.0, -9.0]]]])
    mask = torch.tensor([[[True, False], [True, True]]])
    assert build_full().reduce(pairs, mask).tolist() == [[[-3.0, -2.0]]]
    assert build_full().reduce(pairs).tolist() == [[[-1.0, -2.0]]]


@pytest.mark.parametrize("margin", [0.01, 0.5])
def test_loss_is_the_hinge_of_the_best_of_the_class_and_the_best_of_the_others(margin: float) -> None:
    head = build_full(replace(FULL, margin=margin))
    support, query = episodes()
    labels = head(support, query).argmax(-1)
    labels[1] = torch.tensor([2, 1, 1, 0])
    encoded = head.encode(support.flatten(0, 2))[0].view(*support.shape[:3], -1)
    at_query = head.encode(query.flatten(0, 1))[0].view(*query.shape[:2], -1)
    logits, losses = head.learn((encoded,), (at_query,), labels)
    torch.testing.assert_close(logits, head(support, query))
    expected = torch.zeros_like(losses)
    for b in range(2):
        pairs = similarities(head, support[b], query[b])
        for q, label in enumerate(labels[b].tolist()):
            others = [float(pairs[q, n].max()) for n in range(WAY) if n != label]
            expected[b, q] = max(0.0, margin - float(pairs[q, label].max()) + max(others))
    torch.testing.assert_close(losses.detach(), expected)
    assert bool((losses > margin).any())
    assert margin > 0.1 or bool((losses == 0).any())


def test_full_starts_with_keys_that_keep_the_rows_cosines() -> None:
    torch.manual_seed(0)
    wide = Cmn(Inputs(FRAMES, DIM), replace(FULL, key_dim=DIM)).double()
    clip = episodes()[1][0, :1]
    rows = saliency_rows(clip[0], wide.saliency.points.detach())
    torch.testing.assert_close(wide.encode(clip)[0][0], torch.cat(rows))


def test_gradients_are_right() -> None:
    support, query = episodes()
    for head in (build_lite(replace(LITE, dim=4)), build_full(replace(FULL, dim=4))):

        def score(support: Tensor, query: Tensor, head: CmnLite | Cmn = head) -> Tensor:
            logits: Tensor = head(support, query, UNEQUAL[:1])
            return logits

        inputs = support[:1].detach().requires_grad_(), query[:1].detach().requires_grad_()
        assert torch.autograd.gradcheck(score, inputs)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3])
@pytest.mark.parametrize("spread", [0.0, 0.1])
@pytest.mark.parametrize("dim", [0, 4])
def test_degenerate_clips_give_finite_losses_and_gradients(scale: float, spread: float, dim: int) -> None:
    support, query = (torch.ones_like(clips).float() * scale for clips in episodes())
    labels = torch.zeros(2, QUERIES, dtype=torch.int64)
    lite = build_lite(replace(LITE, spread=spread, dim=dim)).float()
    full = build_full(replace(FULL, spread=spread, dim=dim)).float()
    for head in (lite, full):
        encoded = head.encode(support.flatten(0, 2))[0].view(*support.shape[:3], -1)
        at_query = head.encode(query.flatten(0, 1))[0].view(*query.shape[:2], -1)
        _, losses = head.learn((encoded,), (at_query,), labels)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        assert bool(losses.isfinite().all())
        assert all(bool(p.grad.isfinite().all()) for p in head.parameters() if p.grad is not None)


def test_settings_that_make_no_head_are_refused() -> None:
    with pytest.raises(UserError, match=r"^saliencies 0, spread 0.1; head 'cmn'; "):
        CmnLiteConfig(saliencies=0)
    with pytest.raises(UserError, match=r"^saliencies 5, spread -1.0; head 'cmn'; "):
        CmnConfig(spread=-1.0)
    with pytest.raises(UserError, match=r"^key_dim 0, scale 2.0; head 'cmn'; "):
        CmnConfig(key_dim=0)
    with pytest.raises(UserError, match=r"^key_dim 4, scale 0.0; head 'cmn'; "):
        CmnConfig(key_dim=4, scale=0.0)
