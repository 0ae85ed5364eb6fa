"""TSN-cos against loops over queries and support clips."""

import math

import pytest
import torch
from torch import Tensor

from amfir.meta.heads import Inputs, build_head
from amfir.meta.profiles import load_profile

INPUTS = Inputs(frames=3, dim=6)


def episode() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(2, 3, 2, 3, 6, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 4, 3, 6, generator=generator, dtype=torch.float64)
    return support, query, torch.tensor([[[1, 1], [1, 0], [0, 1]], [[0, 1], [1, 1], [1, 1]]]).bool()


def expected(support: Tensor, query: Tensor, mask: Tensor, eps: float, scale: float) -> Tensor:
    logits = torch.zeros(*query.shape[:2], support.shape[1], dtype=torch.float64)
    for b, q, n in torch.cartesian_prod(*(torch.arange(size) for size in logits.shape)).tolist():
        one = query[b, q].mean(0).tolist()
        cosines = []
        for k in range(support.shape[2]):
            if mask[b, n, k]:
                other = support[b, n, k].mean(0).tolist()
                product = sum(x * y for x, y in zip(one, other, strict=True))
                cosines.append(product / (math.hypot(*one) * math.hypot(*other) + eps))
        logits[b, q, n] = scale * sum(cosines) / len(cosines)
    return logits


def test_paper_profile_is_the_mean_of_cosines_with_the_original_epsilon() -> None:
    support, query, _ = episode()
    head = build_head("tsn", INPUTS, load_profile("tsn", "paper").head).double()
    wanted = expected(support, query, torch.ones(2, 3, 2).bool(), 0.01, 1.0)
    torch.testing.assert_close(head(support, query), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("garbage", [0.0, 1e6])
def test_embedded_and_scaled_with_classes_of_different_size(garbage: float) -> None:
    support, query, mask = episode()
    head = build_head("tsn", INPUTS, {"dim": 4}).double().requires_grad_(False)
    filled = support.where(mask[..., None, None], garbage)
    embed = head.embedding
    wanted = expected(embed(support), embed(query), mask, 1e-8, 10.0)  # type: ignore[operator]
    torch.testing.assert_close(head(filled, query, mask), wanted, rtol=1e-10, atol=1e-10)
