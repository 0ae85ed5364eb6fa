"""AMeFu-Net's classifier against a loop, and its two losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.heads import Inputs
from amfir.meta.heads.amefu import AmefuConfig, AmefuHead

pytestmark = pytest.mark.usefixtures("one_thread")

WAY, SHOT, QUERIES, FRAMES, DIM = 3, 2, 4, 5, 6
CONFIG = AmefuConfig(dim=0, scale=7.0)
UNEQUAL = torch.tensor([[[True, True], [True, False], [False, True]], [[True, False], [True, True], [True, True]]])


def build(config: AmefuConfig = CONFIG) -> AmefuHead:
    torch.manual_seed(0)
    return AmefuHead(Inputs(FRAMES, DIM), config).double()


def episodes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    support = torch.randn(2, WAY, SHOT, FRAMES, DIM, generator=generator, dtype=torch.float64)
    return support, torch.randn(2, QUERIES, FRAMES, DIM, generator=generator, dtype=torch.float64)


def learn(head: AmefuHead, labels: Tensor) -> tuple[Tensor, Tensor]:
    support, query = episodes()
    encoded = head.embed(support.flatten(0, 2)).view(*support.shape[:3], -1)
    return head.learn((encoded,), (head.embed(query.flatten(0, 1)).view(*query.shape[:2], -1),), labels)


def unit(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = x / np.sqrt((x * x).sum())
    return result


def test_logits_equal_a_slow_loop() -> None:
    support, query = (clips.numpy() for clips in episodes())
    logits = build()(*episodes(), UNEQUAL).numpy()
    for b, q, n in np.ndindex(2, QUERIES, WAY):
        shots = [unit(support[b, n, k].mean(0)) for k in range(SHOT) if UNEQUAL[b, n, k]]
        cosine = unit(np.mean(shots, 0)) @ unit(query[b, q].mean(0))
        assert logits[b, q, n] == pytest.approx(CONFIG.scale * (cosine - 1), rel=1e-9)


def test_losses_are_the_cross_entropy_and_the_one_of_its_softmax() -> None:
    labels = torch.tensor([[0, 1, 2, 0], [2, 1, 1, 0]])
    for name in ("ce", "double_softmax"):
        logits, losses = learn(build(replace(CONFIG, loss=name)), labels)
        for b, q in np.ndindex(2, QUERIES):
            p = np.exp(logits[b, q].numpy()) / np.exp(logits[b, q].numpy()).sum()
            if name == "double_softmax":
                p = np.exp(p) / np.exp(p).sum()
            assert float(losses[b, q]) == pytest.approx(-np.log(p[int(labels[b, q])]), rel=1e-9)


def test_the_embedding_is_trained_where_there_is_one() -> None:
    assert not list(build().parameters())
    _, losses = learn(head := build(replace(CONFIG, dim=4)), torch.zeros(2, QUERIES, dtype=torch.int64))
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in head.parameters())


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e3])
@pytest.mark.parametrize("dim", [0, 4])
def test_degenerate_clips_give_finite_logits_and_gradients(scale: float, dim: int) -> None:
    head = build(replace(CONFIG, dim=dim)).float()
    support, query = (torch.ones_like(clips).float() * scale for clips in episodes())
    logits = head(support.requires_grad_(), query)
    logits.log_softmax(-1)[..., 1].sum().backward()
    assert support.grad is not None
    tensors = [logits, support.grad, *(p.grad for p in head.parameters() if p.grad is not None)]
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(UserError, match=r"^loss is 'mse'; head 'amefu-net'; known: ce, double_softmax$"):
        AmefuConfig(loss="mse")
