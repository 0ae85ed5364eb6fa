"""Matching Networks against loops, and their full context embeddings against LSTMs written out by hand."""

import math

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.heads import Head, Inputs, build_head
from amfir.meta.profiles import load_profile

INPUTS = Inputs(frames=3, dim=5)
MASK = torch.tensor([[[1, 1], [0, 1], [1, 1]], [[1, 0], [0, 1], [1, 1]]]).bool()


def episode() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(2, 3, 2, 3, 5, generator=generator, dtype=torch.float64)
    return support, torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)


def cosine(left: Tensor, right: Tensor) -> float:
    return float(left @ right) / (math.hypot(*left.tolist()) * math.hypot(*right.tolist()) + 1e-8)


def attention(query: Tensor, supports: list[Tensor], classes: list[int], temperature: float) -> Tensor:
    """One query [d], the support clips that exist, and which class each is of -> logits."""
    weights = [math.exp(temperature * cosine(query, support)) for support in supports]
    shares = [sum(w for w, c in zip(weights, classes, strict=True) if c == n) / sum(weights) for n in range(3)]
    return torch.tensor([math.log(share + 1e-6) for share in shares], dtype=torch.float64)


def existing(support: Tensor, mask: Tensor) -> tuple[list[Tensor], list[int]]:
    """Mean frames of an episode's support clips [N, K, T, d] that exist, class by class, and their classes."""
    found = [(n, k) for n in range(3) for k in range(2) if mask[n, k]]
    return [support[n, k].mean(0) for n, k in found], [n for n, _ in found]


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("profile", ["paper", "fair"])
def test_logits_are_the_log_of_a_class_share_of_the_attention(profile: str, mask: Tensor | None) -> None:
    support, query = episode()
    head = build_head("matching", INPUTS, load_profile("matching", profile).head).double().requires_grad_(False)
    given = support if mask is None else support.where(mask[..., None, None], 1e6)
    logits = head(given, query, mask)
    embedded, queries = head.embedding(support), head.embedding(query)  # type: ignore[operator]
    for b in range(2):
        supports, classes = existing(embedded[b], torch.ones(3, 2) if mask is None else mask[b])
        for q in range(4):
            wanted = attention(queries[b, q].mean(0), supports, classes, 10.0 if profile == "fair" else 1.0)
            torch.testing.assert_close(logits[b, q], wanted, rtol=1e-9, atol=1e-9)


def lstm_step(weights: dict[str, Tensor], x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    gates = weights["ih"] @ x + weights["hh"] @ h + weights["ih_bias"] + weights["hh_bias"]
    i, f, g, o = gates.chunk(4)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def lstm_weights(state: dict[str, Tensor], name: str, suffix: str) -> dict[str, Tensor]:
    return {
        f"{gate}{'_bias' if kind == 'bias' else ''}": state[f"{name}.{kind}_{gate}{suffix}"]
        for kind in ("weight", "bias")
        for gate in ("ih", "hh")
    }


def in_context(state: dict[str, Tensor], supports: list[Tensor]) -> list[Tensor]:
    context = [z.clone() for z in supports]
    for suffix, order in (("_l0", range(len(supports))), ("_l0_reverse", reversed(range(len(supports))))):
        h = c = torch.zeros_like(supports[0])
        for s in order:
            h, c = lstm_step(lstm_weights(state, "context", suffix), supports[s], h, c)
            context[s] = context[s] + h
    return context


def read(state: dict[str, Tensor], query: Tensor, context: list[Tensor], steps: int) -> Tensor:
    h = c = r = torch.zeros_like(query)
    for _ in range(steps):
        h, c = lstm_step(lstm_weights(state, "reader", ""), torch.cat([query, r]), h, c)
        h = h + query
        weights = [math.exp(float(h @ g)) for g in context]
        r = torch.stack([w * g for w, g in zip(weights, context, strict=True)]).sum(0) / sum(weights)
    return h


def full_context(dim: int = 0) -> Head:
    return build_head("matching-fce", INPUTS, {"dim": dim, "steps": 3}).double()


@pytest.mark.parametrize("mask", [None, MASK])
def test_full_context_embeddings_are_a_bidirectional_lstm_and_a_reading_lstm(mask: Tensor | None) -> None:
    support, query = episode()
    head = full_context()
    given = support if mask is None else support.where(mask[..., None, None], 1e6)
    logits = head(given, query, mask).detach()
    state = head.state_dict()
    for b in range(2):
        supports, classes = existing(support[b], torch.ones(3, 2) if mask is None else mask[b])
        context = in_context(state, supports)
        for q in range(4):
            wanted = attention(read(state, query[b, q].mean(0), context, 3), context, classes, 10.0)
            torch.testing.assert_close(logits[b, q], wanted, rtol=1e-9, atol=1e-9)


def test_full_context_gradients_match_finite_differences_with_a_mask() -> None:
    support, query = episode()
    head = full_context(dim=3)
    inputs = (support[:1].requires_grad_(), query[:1, :2].requires_grad_())
    assert torch.autograd.gradcheck(lambda s, q: head(s, q, MASK[:1]), inputs)


def test_full_context_sees_the_order_of_support_clips() -> None:
    support, query = episode()
    head = full_context()
    assert head.order_dependent
    assert (head(support, query) - head(support.flip(2), query)).abs().max() > 1e-6


def test_a_query_that_is_never_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"steps is 0; .*; give 1 or more"):
        build_head("matching-fce", INPUTS, {"steps": 0})
