"""MTFAN against loops over queries, clips and segments, written from the reconstruction's formulas."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.heads import HEADS
from amfir.meta.heads.base import Inputs
from amfir.meta.heads.mtfan import Mtfan, MtfanConfig

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, WAY, QUERIES, FRAMES, WIDTH = 2, 3, 4, 5, 6
SMALL = MtfanConfig(dim=0, motion_dim=4, segments=2)


def make(config: MtfanConfig = SMALL) -> Mtfan:
    torch.manual_seed(0)
    head = Mtfan(Inputs(FRAMES, WIDTH), config).double().eval()
    with torch.no_grad():
        for value in head.parameters():
            value.add_(torch.randn_like(value))
    return head


def episode(shot: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (BATCH, WAY, shot, FRAMES, WIDTH), (BATCH, QUERIES, FRAMES, WIDTH)
    support, query = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes)
    return support, query


# --- the reference --------------------------------------------------------------------------------------------------


def set_distance(left: list[np.ndarray], right: list[np.ndarray], eps: float) -> float:
    """Mean distance to the nearest, left to right and right to left."""
    table = [[1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b) + eps) for b in right] for a in left]
    rows = sum(min(row) for row in table) / len(left)
    columns = sum(min(row[j] for row in table) for j in range(len(right))) / len(right)
    return float(rows + columns)


def segments(frames: list[np.ndarray], learnt: np.ndarray) -> list[np.ndarray]:
    found: list[np.ndarray] = []
    for asked in learnt:
        powers = [math.exp(asked @ frame / math.sqrt(len(frame))) for frame in frames]
        found.append(np.sum([w * frame for w, frame in zip(powers, frames, strict=True)], axis=0) / sum(powers))
    return found


def clip_distance(query: list[np.ndarray], support: list[np.ndarray], learnt: np.ndarray, eps: float) -> float:
    q, s = segments(query, learnt), segments(support, learnt)
    alike = set_distance(query, support, eps) + set_distance(q, s, eps)
    return alike + 0.5 * (set_distance(q, support, eps) + set_distance(query, s, eps))


def gate(head: Mtfan, clips: list[np.ndarray]) -> np.ndarray:
    """1 + w of a task with these support clips."""
    p = {name: value.detach().numpy() for name, value in head.named_parameters()}
    embedded = []
    for clip in clips:
        for t in range(len(clip) - 1):
            embedded.append(np.maximum(p["motion.weight"] @ (clip[t + 1] - clip[t]) + p["motion.bias"], 0))
    task = sum(embedded) / len(embedded)
    result: np.ndarray = 1 + 1 / (1 + np.exp(-(p["gate.weight"] @ task + p["gate.bias"])))
    return result


def reference(head: Mtfan, support: Tensor, query: Tensor, mask: Tensor) -> np.ndarray:
    """Logits [B, Q, N]."""
    learnt, eps = head.segments.detach().numpy(), head.config.eps
    logits = np.zeros((BATCH, QUERIES, WAY))
    for b in range(BATCH):
        classes = [[support[b, n, k].numpy() for k in torch.nonzero(mask[b, n]).flatten().tolist()] for n in range(WAY)]
        factor = gate(head, [clip for clips in classes for clip in clips])
        for q, n in np.ndindex(QUERIES, WAY):
            asked = [frame * factor for frame in query[b, q].numpy()]
            distances = [clip_distance(asked, [frame * factor for frame in c], learnt, eps) for c in classes[n]]
            logits[b, q, n] = -head.config.scale * np.mean(distances)
    return logits


# --- behaviour ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-8, 0.5])
def test_logits_equal_the_loops(eps: float) -> None:
    head = make(MtfanConfig(dim=0, motion_dim=4, segments=2, scale=3.0, eps=eps))
    support, query = episode(shot=2)
    everywhere = torch.ones(BATCH, WAY, 2, dtype=torch.bool)
    expected = reference(head, support, query, everywhere)
    np.testing.assert_allclose(head(support, query).detach().numpy(), expected, rtol=1e-9)


def test_classes_may_have_unequal_numbers_of_clips() -> None:
    head = make()
    support, query = episode(shot=3)
    mask = torch.tensor([[[1, 1, 1], [1, 0, 0], [0, 1, 1]], [[1, 0, 1], [1, 1, 1], [0, 0, 1]]], dtype=torch.bool)
    expected = reference(head, support, query, mask)
    asked = tuple(torch.unflatten(part, 0, query.shape[:2]) for part in head.encode(query.flatten(0, 1)))
    for garbage in (0.0, 1e6):
        clips = support.where(mask[..., None, None], garbage).flatten(0, 2)
        known = tuple(torch.unflatten(part, 0, mask.shape) for part in head.encode(clips))
        # Motion of clips that do not move is not garbage enough.
        known = (known[0], known[1].where(mask[..., None], garbage))
        np.testing.assert_allclose(head.score(known, asked, mask).detach().numpy(), expected, rtol=1e-9)


def test_single_precision_is_enough() -> None:
    head = make()
    support, query = episode(shot=1)
    expected = head(support, query)
    torch.testing.assert_close(head.float()(support.float(), query.float()).double(), expected, rtol=1e-4, atol=0)


def test_the_order_of_classes_permutes_logits_and_that_of_shots_changes_nothing() -> None:
    head = make()
    support, query = episode(shot=3)
    order = torch.tensor([2, 0, 1])
    logits = head(support, query)
    torch.testing.assert_close(head(support[:, order], query), logits[..., order])
    torch.testing.assert_close(head(support[:, :, order], query), logits)


def test_the_task_modulates_every_class() -> None:
    head = make()
    support, query = episode(shot=1)
    other = support.clone()
    other[:, 2] = 3 * other[:, 2].flip(-2)
    assert not torch.allclose(head(support, query)[..., 0], head(other, query)[..., 0])


def test_gradients_are_right() -> None:
    head = make()
    support, query = (part[:1, :2].requires_grad_() for part in episode(shot=2))
    own = [value.detach().clone().requires_grad_() for value in head.parameters()]

    def logits(support: Tensor, query: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(dict(head.named_parameters()), values, strict=True))
        result: Tensor = torch.func.functional_call(head, state, (support, query))
        return result

    assert torch.autograd.gradcheck(logits, (support, query, *own))


def test_the_start_leaves_the_frames_as_they_are() -> None:
    torch.manual_seed(0)
    head = Mtfan(Inputs(FRAMES, WIDTH), SMALL).double().eval()
    assert (gate(head, list(episode(shot=1)[0][0, :, 0].numpy())) == 1.5).all()


def test_it_is_called_a_reconstruction() -> None:
    assert HEADS["mtfan"].reconstruction
    assert "RECONSTRUCTION" in (Mtfan.__doc__ or "")


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="segments"):
        MtfanConfig(segments=0)
