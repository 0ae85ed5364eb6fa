"""HyRSM against loops over queries, clips, heads and frames, written from the paper and its code."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.heads.base import Inputs
from amfir.meta.heads.hyrsm import Hyrsm, HyrsmConfig, doubled_sinusoids
from amfir.meta.profiles import load_profile

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH, WAY, QUERIES, FRAMES, WIDTH, CLASSES = 2, 3, 4, 3, 8, 6
PAPER = HyrsmConfig(
    dim=0,
    heads=2,
    head_dim=0,
    position_a=10.0,
    position_b=1.0,
    doubled_positions=True,
    matching="sum",
    scale=1.0,
    identity_start=False,
)


def make(config: HyrsmConfig, seed: int = 0, classes: int = CLASSES) -> Hyrsm:
    torch.manual_seed(seed)
    head = Hyrsm(Inputs(FRAMES, WIDTH, classes=classes), config).double().eval()
    with torch.no_grad():
        for value in head.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return head


def episode(shot: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (BATCH, WAY, shot, FRAMES, WIDTH), (BATCH, QUERIES, FRAMES, WIDTH)
    support, query = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes)
    return support, query


def original(head: Hyrsm) -> dict[str, np.ndarray]:
    """The parameters by the original's names."""
    state = head.state_dict()
    return {theirs: state[ours].double().numpy() for ours, theirs in head.original_names().items()}


# --- the reference --------------------------------------------------------------------------------------------------


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    result: np.ndarray = powers / powers.sum()
    return result


def layer_norm(row: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    result: np.ndarray = (row - row.mean()) / math.sqrt(row.var() + 1e-5) * weight + bias
    return result


def attend(rows: list[np.ndarray], maps: list[np.ndarray], heads: int) -> np.ndarray:
    """What each row takes from all rows, heads side by side."""
    found = []
    for row in rows:
        parts = []
        for q, k, v in zip(*(np.split(w, heads) for w in maps), strict=True):
            weights = softmax(np.array([(q @ row) @ (k @ other) / math.sqrt(len(q)) for other in rows]))
            parts.append(np.sum([w * (v @ other) for w, other in zip(weights, rows, strict=True)], axis=0))
        found.append(np.concatenate(parts))
    return np.stack(found)


def relate(clip: np.ndarray, p: dict[str, np.ndarray], config: HyrsmConfig) -> np.ndarray:
    """Frames of one clip, positioned and related."""
    frames, width = clip.shape
    placed = []
    for t in range(frames):
        row: np.ndarray = clip[t] * math.sqrt(width / config.position_a)
        for i in range(0, width, 2):
            row[i] += config.position_b * float(np.float32(math.sin(t / 10000 ** (2 * i / width))))
            row[i + 1] += config.position_b * float(np.float32(math.cos(t / 10000 ** (2 * (i + 1) / width))))
        placed.append(row)
    before = "temporal_atte_before"
    normed = [layer_norm(row, p[f"{before}.norm.weight"], p[f"{before}.norm.bias"]) for row in placed]
    found = attend(normed, np.split(p[f"{before}.fn.to_qkv.weight"], 3), config.heads)
    out = found @ p[f"{before}.fn.to_out.0.weight"].T + p[f"{before}.fn.to_out.0.bias"]
    result: np.ndarray = np.maximum(np.stack(placed) + out, 0)
    return result


def distance(
    query: np.ndarray, support: list[np.ndarray], p: dict[str, np.ndarray], config: HyrsmConfig
) -> list[float]:
    """Distances of one query to clips of related frames."""
    tokens = [clip.mean(0) for clip in [*support, query]]
    weights = [p[f"temporal_atte.w_{name}.weight"] for name in ("qs", "ks", "vs")]
    found = attend(tokens, weights, config.heads) @ p["temporal_atte.fc.weight"].T + p["temporal_atte.fc.bias"]
    norm = p["temporal_atte.layer_norm.weight"], p["temporal_atte.layer_norm.bias"]
    related = [np.maximum(layer_norm(f + t, *norm), 0) for f, t in zip(found, tokens, strict=True)]
    fused = []
    for clip, token in zip([*support, query], related, strict=True):
        rows = [p["layer2.0.weight"] @ np.concatenate([row, token]) + p["layer2.0.bias"] for row in clip]
        fused.append([row / np.linalg.norm(row) for row in rows])
    result = []
    for frames in fused[:-1]:
        table = np.array([[1 - s @ q for q in fused[-1]] for s in frames])
        total = table.min(0).sum() + table.min(1).sum()
        result.append(total / (len(query) if config.matching == "mean" else 1))
    return result


def reference(head: Hyrsm, support: Tensor, query: Tensor, mask: Tensor | None = None) -> np.ndarray:
    """Logits [B, Q, N]."""
    config, p = head.config, original(head)
    batch, way, shot = support.shape[:3]
    there = np.ones((batch, way, shot), bool) if mask is None else mask.numpy()
    logits = np.zeros((batch, query.shape[1], way))
    for b, q in np.ndindex(*query.shape[:2]):
        asked = relate(query[b, q].numpy(), p, config)
        classes = [
            [relate(support[b, n, k].numpy(), p, config) for k in range(shot) if there[b, n, k]] for n in range(way)
        ]
        if config.shots == "prototype":
            logits[b, q] = [-d for d in distance(asked, [np.mean(c, axis=0) for c in classes], p, config)]
        else:
            distances = iter(distance(asked, [clip for c in classes for clip in c], p, config))
            logits[b, q] = [-np.mean([next(distances) for _ in c]) for c in classes]
    return config.scale * logits


# --- the formula ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", ["prototype", "each"])
@pytest.mark.parametrize("matching", ["sum", "mean"])
def test_logits_equal_the_loops(shots: str, matching: str) -> None:
    head = make(replace(PAPER, shots=shots, matching=matching, scale=1.5))
    support, query = episode(shot=2)
    np.testing.assert_allclose(head(support, query).detach().numpy(), reference(head, support, query), rtol=1e-9)


@pytest.mark.parametrize("shots", ["prototype", "each"])
def test_classes_may_have_unequal_numbers_of_clips(shots: str) -> None:
    head = make(replace(PAPER, shots=shots))
    support, query = episode(shot=3)
    mask = torch.tensor([[[1, 1, 1], [1, 0, 0], [0, 1, 1]], [[1, 0, 1], [1, 1, 1], [0, 0, 1]]], dtype=torch.bool)
    expected = reference(head, support, query, mask)
    for garbage in (0.0, 1e6):
        filled = support.where(mask[..., None, None], garbage)
        encoded = head.encode(filled.flatten(0, 2)), head.encode(query.flatten(0, 1))
        parts = [
            tuple(torch.unflatten(part, 0, lead) for part in encoding)
            for encoding, lead in zip(encoded, (mask.shape, query.shape[:2]), strict=True)
        ]
        np.testing.assert_allclose(head.score(parts[0], parts[1], mask).detach().numpy(), expected, rtol=1e-9)


def test_single_precision_is_as_good_as_the_original_needs() -> None:
    head = make(PAPER)
    support, query = episode(shot=1)
    expected = reference(head, support, query)
    given = head.float()(support.float(), query.float()).detach().numpy()
    np.testing.assert_allclose(given, expected, rtol=1e-5)


def test_both_modules_agree_at_one_shot() -> None:
    support, query = episode(shot=1)
    logits = [make(replace(PAPER, shots=shots))(support, query) for shots in ("prototype", "each")]
    torch.testing.assert_close(logits[0], logits[1])


def test_fused_frames_that_cancel_are_no_reason_to_explode() -> None:
    head = make(PAPER).float()
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(1, 50, FRAMES, WIDTH, generator=generator)
    tokens = -frames[:, :, 0] * (1 + 2e-7 * torch.randn(1, 50, WIDTH, generator=generator))
    query = torch.randn(1, 1, FRAMES, WIDTH, generator=generator)
    distances = head._match(query, frames, tokens[None])
    # 2 T distances of at most 2.
    assert (distances >= 0).all()
    assert (distances < 4 * FRAMES).all()


# --- symmetry -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", ["prototype", "each"])
def test_the_order_of_classes_permutes_logits_and_that_of_shots_changes_nothing(shots: str) -> None:
    head = make(replace(PAPER, shots=shots))
    support, query = episode(shot=3)
    order = torch.tensor([2, 0, 1])
    logits = head(support, query)
    torch.testing.assert_close(head(support[:, order], query), logits[..., order])
    torch.testing.assert_close(head(support[:, :, order], query), logits)


def test_a_query_never_sees_another_query() -> None:
    head = make(PAPER)
    support, query = episode(shot=2)
    torch.testing.assert_close(head(support, query)[:, 1:2], head(support, query[:, 1:2]))


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", ["prototype", "each"])
def test_gradients_are_right(shots: str) -> None:
    head = make(replace(PAPER, shots=shots))
    support, query = (part[:1, :2].requires_grad_() for part in episode(shot=2))
    labels, classes = torch.tensor([[1, 0]]), torch.tensor([[4, 2]])

    def losses(support: Tensor, query: Tensor, weight: Tensor) -> Tensor:
        state = dict(head.named_parameters()) | {"fuse.weight": weight}
        encodings = [
            torch.func.functional_call(_Encode(head), {f"head.{k}": v for k, v in state.items()}, (clips,))
            for clips in (support.flatten(0, 2), query.flatten(0, 1))
        ]
        parts = [
            tuple(torch.unflatten(part, 0, lead) for part in encoding)
            for encoding, lead in zip(encodings, (support.shape[:3], query.shape[:2]), strict=True)
        ]
        result: Tensor = head.learn(parts[0], parts[1], labels, classes)[1]
        return result

    assert torch.autograd.gradcheck(losses, (support, query, head.fuse.weight.detach().clone().requires_grad_()))


class _Encode(torch.nn.Module):
    def __init__(self, head: Hyrsm) -> None:
        super().__init__()
        self.head = head

    def forward(self, clips: Tensor) -> tuple[Tensor, ...]:
        return self.head.encode(clips)


def test_base_classes_add_their_cross_entropy_over_all_frames() -> None:
    head = make(replace(PAPER, class_weight=0.4))
    support, query = episode(shot=2)
    labels = torch.tensor([[0, 2, 1, 1], [2, 2, 0, 1]])
    classes = torch.tensor([[5, 0, 3], [1, 2, 4]])
    encoded = [
        tuple(torch.unflatten(part, 0, lead) for part in head.encode(clips))
        for clips, lead in (
            (support.flatten(0, 2), support.shape[:3]),
            (query.flatten(0, 1), query.shape[:2]),
        )
    ]
    logits, losses = head.learn(encoded[0], encoded[1], labels, classes)
    p = original(head)
    expected = np.zeros((BATCH, QUERIES))
    for b in range(BATCH):
        aside = []
        clips = [(support[b, n, k], classes[b, n]) for n in range(WAY) for k in range(2)]
        clips += [(query[b, q], classes[b, labels[b, q]]) for q in range(QUERIES)]
        for clip, wanted in clips:
            for frame in relate(clip.numpy(), p, head.config):
                guess = p["classification_layer.weight"] @ frame + p["classification_layer.bias"]
                aside.append(-math.log(softmax(guess)[int(wanted)]))
        for q in range(QUERIES):
            own = softmax(logits[b, q].detach().numpy())[int(labels[b, q])]
            expected[b, q] = -math.log(own) + 0.4 * np.mean(aside)
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-9)
    plain = head.learn(encoded[0], encoded[1], labels)[1]
    assert (losses > plain).all()


def test_dropout_is_for_training_only() -> None:
    head = make(PAPER)
    support, query = episode(shot=1)
    assert torch.equal(head(support, query), head(support, query))
    head.train()
    assert not torch.equal(head(support, query), head(support, query))


def test_the_fair_start_matches_rectified_frames() -> None:
    torch.manual_seed(0)
    config = HyrsmConfig(dim=0, heads=2, head_dim=4, position_a=WIDTH, position_b=0.0)
    head = Hyrsm(Inputs(FRAMES, WIDTH), config).double().eval()
    support, query = episode(shot=1)
    logits = head(support, query).detach().numpy()
    for b, q, n in np.ndindex(BATCH, QUERIES, WAY):
        left, right = (torch.nn.functional.normalize(x.relu(), dim=-1) for x in (query[b, q], support[b, n, 0]))
        table = (1 - left @ right.T).numpy()
        assert logits[b, q, n] == pytest.approx(-10 * (table.min(0).mean() + table.min(1).mean()))


# --- the original ---------------------------------------------------------------------------------------------------


def test_positions_are_those_of_the_original() -> None:
    # Row 1, of width 4: 10000^-0, 10000^-0.5, 10000^-1, 10000^-1.5.
    expected = torch.tensor([[0.0, 1.0, 0.0, 1.0], [math.sin(1), math.cos(1e-2), math.sin(1e-4), math.cos(1e-6)]])
    torch.testing.assert_close(doubled_sinusoids(2, 4), expected)


@pytest.mark.parametrize("prefix", ["", "module.", "module.head.", "head."])
def test_a_checkpoint_of_the_original_is_taken_whole(prefix: str) -> None:
    source, head = make(PAPER, seed=1), make(PAPER, seed=2)
    state = {f"{prefix}{name}": torch.from_numpy(value) for name, value in original(source).items()}
    assert len(state) == len(list(head.parameters()))
    name = f"{prefix}layer2.0.weight"
    state |= {name: state[name][..., None], f"{prefix}pe.pe": torch.zeros(1, 20, WIDTH)}
    head.load_original(state)
    for ours, theirs in zip(head.parameters(), source.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_of_other_classes_is_refused() -> None:
    state = {name: torch.from_numpy(value) for name, value in original(make(PAPER, classes=5)).items()}
    with pytest.raises(UserError, match="classification_layer"):
        make(PAPER).load_original(state)


def test_the_paper_profile_is_the_original() -> None:
    settings = load_profile("hyrsm", "paper").head
    config = HyrsmConfig(**settings)
    assert (config.dim, config.heads, config.head_dim, config.doubled_positions) == (0, 8, 0, True)

    # Eight square maps, one twice as wide, biases, norms and 31 classes: the published 42.0 million.
    def size(dim: int) -> int:
        return 10 * dim**2 + 38 * dim + 31

    head = Hyrsm(Inputs(8, 64, classes=31), config)
    assert sum(value.numel() for value in head.parameters()) == size(64)
    assert size(2048) == 42_020_895


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="prototype"):
        HyrsmConfig(shots="prototypes")
    with pytest.raises(UserError, match="heads"):
        HyrsmConfig(heads=0)
    with pytest.raises(UserError, match="position_a"):
        HyrsmConfig(position_a=0.0)
