"""OTAM against the recursion written as loops, and against the sum over every alignment path."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.heads import Inputs, build_head
from amfir.meta.heads.otam import alignment_cost
from amfir.meta.profiles import load_profile


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def predecessors(row: int, column: int, last: int) -> list[tuple[int, int]]:
    """Cells from which an alignment steps to this one; columns 0 and `last` are padding of zero cost."""
    if row == 0:
        return [(0, column - 1)]
    if column == 1:
        return [(row - 1, 0), (row - 1, 1), (row, 0)]
    if column == last:
        return [(row - 1, column - 1), (row - 1, column), (row, column - 1)]
    return [(row - 1, column - 1), (row, column - 1)]


def padded(costs: Tensor) -> list[list[float]]:
    return [[0.0, *row, 0.0] for row in costs.tolist()]


def recursion(costs: Tensor, smoothing: float) -> float:
    cells = padded(costs)
    last = len(cells[0]) - 1

    @cache
    def value(row: int, column: int) -> float:
        if column == 0:
            return 0.0
        before = torch.tensor([value(*cell) for cell in predecessors(row, column, last)], dtype=torch.float64)
        return cells[row][column] - smoothing * float((-before / smoothing).logsumexp(0))

    return value(len(cells) - 1, last)


def paths(row: int, column: int, last: int) -> list[list[tuple[int, int]]]:
    """Every path from a zero of column 0 to this cell."""
    if column == 0:
        return [[]]
    return [[*path, (row, column)] for cell in predecessors(row, column, last) for path in paths(*cell, last)]


@pytest.mark.parametrize("frames", [2, 3, 4])
@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_alignment_is_the_soft_minimum_over_all_paths(frames: int, smoothing: float) -> None:
    costs = random(3, frames, frames).abs()
    found = alignment_cost(costs.permute(1, 2, 0), smoothing)
    routes = paths(frames - 1, frames + 1, frames + 1)
    # Two zeros of column 0 lead to the same cell: a path counts once for each.
    assert len(routes) > len({tuple(route) for route in routes})
    for one, value in zip(costs, found, strict=True):
        cells = padded(one)
        totals = torch.tensor([sum(cells[row][column] for row, column in route) for route in routes])
        wanted = -smoothing * (-totals.double() / smoothing).logsumexp(0)
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)


def test_alignment_tends_to_the_cheapest_path() -> None:
    costs = random(4, 4).abs()
    cells = padded(costs)
    cheapest = min(sum(cells[row][column] for row, column in route) for route in paths(3, 5, 5))
    assert float(alignment_cost(costs[..., None], 1e-5)) == pytest.approx(cheapest, abs=1e-3)


@pytest.mark.parametrize("profile", ["paper", "fair"])
def test_logits_are_the_negative_mean_of_both_directions(profile: str) -> None:
    head = build_head("otam", Inputs(4, 6), load_profile("otam", profile).head).double().requires_grad_(False)
    support, query = random(2, 3, 2, 4, 6), random(2, 2, 4, 6, seed=1)
    logits = head(support, query)
    eps = 0.01 if profile == "paper" else 1e-8
    embedded, queries = head.embedding(support), head.embedding(query)  # type: ignore[operator]
    for b, q, n in torch.cartesian_prod(*(torch.arange(size) for size in logits.shape)).tolist():
        distance = 0.0
        for clip in embedded[b, n]:
            costs = torch.tensor([[1 - cosine(x, y, eps) for y in clip] for x in queries[b, q]])
            distance += (recursion(costs, 0.1) + recursion(costs.T, 0.1)) / 2
        assert float(logits[b, q, n]) == pytest.approx(-distance, rel=1e-5, abs=1e-5)


def cosine(left: Tensor, right: Tensor, eps: float) -> float:
    return float(left @ right) / (math.hypot(*left.tolist()) * math.hypot(*right.tolist()) + eps)


def test_unrelated_frames_of_long_clips_stay_finite() -> None:
    # Opposite frames cost 2 each: row 0 reaches 64, and exp(-64 / 0.1) is 0 in any floating point.
    costs = torch.full((32, 32, 2), 2.0, requires_grad=True)
    found = alignment_cost(costs, 0.1)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert found.isfinite().all()
    assert costs.grad is not None
    assert costs.grad.isfinite().all()
    wanted = recursion(costs[..., 0].detach(), 0.1)
    torch.testing.assert_close(found[0].double(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-4)


def test_features_with_unrelated_frames_have_finite_gradients() -> None:
    head = build_head("otam", Inputs(32, 64), {"dim": 0})
    frames = torch.eye(64).view(2, 32, 64)
    query = frames[None, :1].clone().requires_grad_()
    logits = head(frames[None, :, None], query)
    logits[0, 0, 1].backward()
    assert logits.isfinite().all()
    assert query.grad is not None
    assert query.grad.isfinite().all()
    assert query.grad.abs().max() > 0


def test_gradients_match_finite_differences() -> None:
    costs = random(3, 3, 2).abs().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: alignment_cost(given, 0.3), (costs,))


def test_a_reversed_clip_is_farther_than_itself() -> None:
    clip = random(6, 8)
    head = build_head("otam", Inputs(6, 8), {"dim": 0}).double()
    logits = head(torch.stack([clip, clip.flip(0)])[None, :, None], clip[None, None])
    assert logits[0, 0, 0] > logits[0, 0, 1] + 1


def test_no_smoothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"smoothing is 0.0; .*; give more than 0"):
        build_head("otam", Inputs(4, 6), {"smoothing": 0.0})
