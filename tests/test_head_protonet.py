"""ProtoNet against loops over queries and classes."""

import torch
from torch import Tensor

from amfir.meta.heads import Inputs, build_head
from amfir.meta.profiles import load_profile

INPUTS = Inputs(frames=3, dim=6)
PAPER = load_profile("protonet", "paper").head


def episode() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(2, 3, 2, 3, 6, generator=generator, dtype=torch.float64)
    return support, torch.randn(2, 4, 3, 6, generator=generator, dtype=torch.float64)


def expected(support: Tensor, query: Tensor, factor: float) -> Tensor:
    logits = torch.zeros(*query.shape[:2], support.shape[1], dtype=torch.float64)
    for b in range(query.shape[0]):
        for n in range(support.shape[1]):
            prototype = sum(clip[t] / len(clip) for clip in support[b, n] for t in range(len(clip)))
            prototype = prototype / len(support[b, n])
            for q in range(query.shape[1]):
                offset = sum(query[b, q]) / query.shape[2] - prototype
                logits[b, q, n] = -factor * sum(x**2 for x in offset.tolist())
    return logits


def test_paper_profile_is_the_negative_squared_distance_of_means() -> None:
    support, query = episode()
    head = build_head("protonet", INPUTS, PAPER).double()
    torch.testing.assert_close(head(support, query), expected(support, query, 1.0), rtol=1e-10, atol=1e-10)
    assert not list(head.parameters())


def test_fair_profile_divides_by_the_width_of_the_embedding() -> None:
    support, query = episode()
    head = build_head("protonet", INPUTS, {"dim": 4, "scale": 10.0}).double()
    embedded = expected(head.embedding(support), head.embedding(query), 10.0 / 4)  # type: ignore[operator]
    torch.testing.assert_close(head(support, query), embedded, rtol=1e-10, atol=1e-10)


def test_large_features_do_not_saturate_the_fair_profile() -> None:
    generator = torch.Generator().manual_seed(1)
    support, query = (100 * torch.rand(*shape, 8, 512, generator=generator) for shape in [(4, 5, 1), (4, 5)])
    inputs = Inputs(frames=8, dim=512)
    assert build_head("protonet", inputs, PAPER)(support, query).softmax(-1).amax(-1).min() > 0.99
    assert build_head("protonet", inputs)(support, query).softmax(-1).amax(-1).max() < 0.9
