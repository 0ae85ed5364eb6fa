"""Pooling over time and the closed-form start, against hand-worked numbers and numpy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.heads import Inputs
from amfir.meta.heads.temporal import HeadConfig, TemporalHead, TimeConvolution, pool

from .planted import planted

pytestmark = pytest.mark.usefixtures("one_thread")


def make(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fit_head(features: Tensor, labels: Tensor, config: HeadConfig, generator: torch.Generator) -> TemporalHead:
    head = TemporalHead(Inputs(*features.shape[1:]), config)
    head.start(features, labels, generator)
    return head


def moving_clips(classes: int = 5, clips: int = 6, frames: int = 4, width: int = 3) -> tuple[Tensor, Tensor]:
    labels = torch.arange(classes).repeat_interleave(clips)
    values = torch.randn(len(labels), frames, width, generator=make()) * torch.tensor([3.0, 1.0, 0.3])[:width]
    return values + torch.randn(classes, frames, width, generator=make(1))[labels], labels


def whitening(pooled: np.ndarray, labels: np.ndarray, shrinkage: float) -> np.ndarray:
    """(I + S / s)^(-1/2) from the eigenvalues of the whole matrix."""
    scatter = np.zeros((pooled.shape[1], pooled.shape[1]))
    for row, label in zip(pooled, labels, strict=True):
        own = row - pooled[labels == label].mean(0)
        scatter += np.outer(own, own) / len(pooled)
    floor = shrinkage * np.linalg.eigvalsh(scatter)[-1]
    values, vectors = np.linalg.eigh(np.eye(len(scatter)) + scatter / floor)
    result: np.ndarray = vectors @ np.diag(values**-0.5) @ vectors.T
    return result


# --- pooling --------------------------------------------------------------------------------------------------------


def test_pool_gives_hand_worked_numbers() -> None:
    clip = torch.tensor([[[1.0, 5.0], [3.0, 5.0]]])
    # Mean (2, 5); deviation (1, 0) times 2; wave (1, -1): ((1 - 3) / 2, 0) times 0.5.
    expected = torch.tensor([[2.0, 5.0, 2.0, 0.0, -0.5, 0.0]])
    torch.testing.assert_close(
        pool(clip, HeadConfig(width=0, spread_weight=2.0, order_weight=0.5)), expected, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        pool(clip, HeadConfig(width=0, spread_weight=0, order_weight=0)), torch.tensor([[2.0, 5.0]])
    )


@pytest.mark.parametrize(("spread", "order"), [(2.0, 0.5), (0.0, 1.5), (0.7, 0.0)])
def test_pool_equals_a_slow_loop(spread: float, order: float) -> None:
    config = HeadConfig(width=0, spread_weight=spread, order_weight=order)
    features = torch.randn(2, 3, 5, 4, generator=make(), dtype=torch.float64)
    pooled = pool(features, config)
    assert pooled.shape == (2, 3, config.pooled_dim(4))
    for i, j in np.ndindex(2, 3):
        frames = features[i, j].numpy()
        means, spreads, orders = [], [], []
        for d in range(4):
            x = [float(v) for v in frames[:, d]]
            means.append(sum(x) / 5)
            spreads.append(spread * math.sqrt(sum((v - means[-1]) ** 2 for v in x) / 5))
            orders.append(
                order * sum(math.sqrt(2) * math.cos(math.pi * (t + 0.5) / 5) * v for t, v in enumerate(x)) / 5
            )
        expected = means + (spreads if spread else []) + (orders if order else [])
        np.testing.assert_allclose(pooled[i, j].numpy(), expected, atol=1e-9)


def test_a_clip_and_its_reverse_embed_differently_only_with_order() -> None:
    features, labels = moving_clips()
    for order_weight, differs in ((0.5, True), (0.0, False)):
        head = fit_head(features, labels, HeadConfig(width=0, dim=6, order_weight=order_weight), make())
        gap = (head.embed(features) - head.embed(features.flip(1))).norm(dim=-1)
        assert bool((gap > 0.01).all()) if differs else bool((gap < 1e-5).all())


def test_one_frame_has_neither_spread_nor_order() -> None:
    pooled = pool(torch.randn(3, 1, 4, generator=make()), HeadConfig(width=0))
    assert pooled[:, 4:].abs().max() < 1e-5


# --- the start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [9, 12])
@pytest.mark.parametrize("shrinkage", [0.01, 1.0])
def test_a_wide_embedding_is_the_exact_whitening(dim: int, shrinkage: float) -> None:
    features, labels = moving_clips()
    config = HeadConfig(width=0, dim=dim, shrinkage=shrinkage)
    head = fit_head(features, labels, config, make())
    pooled = pool(features.double(), config).numpy()
    white = (pooled - pooled.mean(0)) @ whitening(pooled, labels.numpy(), shrinkage)
    expected = np.zeros((len(white), dim))
    expected[:, :9] = white / np.linalg.norm(white, axis=1, keepdims=True)
    np.testing.assert_allclose(head.embed(features).detach().numpy(), expected, atol=1e-5)


def test_a_narrow_embedding_holds_the_principal_axes_and_a_sketch_of_the_rest() -> None:
    features, labels = moving_clips()
    config = HeadConfig(width=0, dim=6)
    head = fit_head(features, labels, config, make())
    pooled = pool(features.double(), config).numpy()
    white = whitening(pooled, labels.numpy(), config.shrinkage)
    projection = head.begin.double().numpy() @ np.linalg.inv(white)
    clips = (pooled - pooled.mean(0)) @ white
    axes = np.linalg.eigh(clips.T @ clips)[1][:, ::-1][:, :3].T
    np.testing.assert_allclose(np.abs(projection[:3] @ axes.T), np.eye(3), atol=1e-4)
    np.testing.assert_allclose(projection[3:] @ axes.T, 0, atol=1e-4)
    np.testing.assert_allclose(head.centre.numpy(), pooled.mean(0), atol=1e-6)
    assert torch.equal(head.weight.detach(), head.begin)


def test_the_sketch_keeps_squared_distances_on_average() -> None:
    features, labels = planted(classes=6, widths={"rgb": 60}, frames=2)
    config = HeadConfig(width=0, dim=40)
    clips = features["rgb"][:, 0]
    pooled = pool(clips.double(), config).numpy()
    white = pooled @ whitening(pooled, labels.numpy(), config.shrinkage)
    pairs = np.random.default_rng(0).integers(0, len(pooled), (200, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    true = ((white[pairs[:, 0]] - white[pairs[:, 1]]) ** 2).sum(1)
    ratios = []
    for seed in range(30):
        sketched = pooled @ fit_head(clips, labels, config, make(seed)).begin.double().numpy().T
        ratios.append(((sketched[pairs[:, 0]] - sketched[pairs[:, 1]]) ** 2).sum(1) / true)
    assert np.mean(ratios) == pytest.approx(1, abs=0.02)
    assert np.std(ratios) < 0.3


def test_whitening_removes_planted_nuisance() -> None:
    features, labels = planted(nuisance=5.0)
    clips = features["rgb"][:, 0]
    base = labels < 6
    head = fit_head(clips[base], labels[base], HeadConfig(width=0, dim=512), make())
    nearest = {}
    for name, values in (("head", head.embed(clips).detach()), ("mean", clips.mean(1))):
        support = values[48::8]  # the first clip of each novel class
        query = values[~base]
        nearest[name] = float((torch.cdist(query, support).argmin(1) + 6 == labels[~base]).double().mean())
    assert nearest["mean"] < 0.6
    assert nearest["head"] > nearest["mean"] + 0.25


def test_equal_inputs_give_equal_heads_and_another_sketch_differs() -> None:
    features, labels = moving_clips()
    one, same, other = (fit_head(features, labels, HeadConfig(width=0, dim=4), make(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.begin, same.begin)
    assert not torch.equal(one.begin, other.begin)


# --- the head -------------------------------------------------------------------------------------------------------


def test_embeddings_have_unit_length_and_drift_is_relative() -> None:
    features, labels = moving_clips()
    head = fit_head(features, labels, HeadConfig(width=0, dim=6), make())
    torch.testing.assert_close(head.embed(features).norm(dim=-1), torch.ones(len(features)))
    assert head.penalty() == 0
    with torch.no_grad():
        head.weight.mul_(1.5)
    assert head.penalty().item() == pytest.approx(0.25 * 10, rel=1e-5)


@pytest.mark.parametrize("dim", [4, 32])
@pytest.mark.parametrize("case", ["constant", "one clip a class", "still clips", "one clip", "huge", "0.1 everywhere"])
def test_degenerate_clips_give_finite_embeddings_and_gradients(case: str, dim: int) -> None:
    features, labels = {
        "constant": (torch.ones(6, 4, 5), torch.arange(6) // 2),
        "one clip a class": (torch.randn(6, 4, 5, generator=make()), torch.arange(6)),
        "still clips": (torch.randn(6, 1, 5, generator=make()).expand(6, 4, 5), torch.arange(6) // 2),
        "one clip": (torch.randn(1, 4, 5, generator=make()), torch.zeros(1, dtype=torch.int64)),
        "huge": (torch.randn(6, 4, 5, generator=make()) * 6e4, torch.arange(6) // 2),
        "0.1 everywhere": (torch.full((6, 3, 5), 0.1), torch.arange(6) // 3),
    }[case]
    head = fit_head(features, labels, HeadConfig(width=0, dim=dim), make())
    features = features.clone().requires_grad_()
    embedded = head.embed(features)
    (embedded @ torch.arange(dim, dtype=torch.float32)).sum().backward()  # type: ignore[no-untyped-call]
    assert embedded.isfinite().all()
    for values in (head.weight, features):
        assert values.grad is not None
        assert values.grad.isfinite().all()


def test_without_scatter_inside_classes_the_start_is_the_identity() -> None:
    features = torch.randn(6, 4, 5, generator=make())
    head = fit_head(features, torch.arange(6), HeadConfig(width=0, dim=15), make())
    assert torch.equal(head.begin, torch.eye(15))


@pytest.mark.parametrize(
    "settings", [{"dim": 1}, {"spread_weight": -1.0}, {"order_weight": -0.1}, {"shrinkage": 0.0}, {"hold": -1.0}]
)
def test_settings_that_make_no_head_are_refused_in_one_line(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))) as caught:
        HeadConfig(**settings)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_head_is_as_wide_as_its_features() -> None:
    config = HeadConfig(width=0, dim=7, spread_weight=0)
    assert TemporalHead(Inputs(3, 5), config).weight.shape == (7, 10)


# --- frames and the convolution -------------------------------------------------------------------------------------


def test_frames_are_whitened_by_the_scatter_within_classes() -> None:
    features, labels = moving_clips(width=3)
    head = fit_head(features, labels, HeadConfig(dim=6, width=3, shrinkage=0.1), make())
    assert head.frames is not None
    means = features.double().numpy().mean(1)
    white = (features.double().numpy() - means.mean(0)) @ whitening(means, labels.numpy(), 0.1)
    white /= np.sqrt((white**2).mean())
    np.testing.assert_allclose(head.frames(features).numpy(), white, atol=1e-4)


def test_narrowed_frames_keep_the_directions_that_vary_most() -> None:
    generator = make()
    features = torch.randn(12, 4, 10, generator=generator) * torch.tensor([9.0, 7.0, 5.0, *[0.01] * 7])
    head = fit_head(features, torch.arange(12), HeadConfig(dim=6, width=3), make())
    assert head.frames is not None
    # Nothing varies within a class of one clip, so nothing is whitened and distances of frames stay, but for the scale.
    frames, mapped = features.flatten(0, 1), head.frames(features).flatten(0, 1)
    ratio = torch.pdist(frames) / torch.pdist(mapped)
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)
    assert mapped.square().mean().item() == pytest.approx(1, rel=1e-4)


def test_axes_that_no_base_frame_uses_are_kept_where_there_is_room() -> None:
    features = torch.zeros(2, 2, 8)
    features[0, 0, 0] = features[1, 1, 1] = 1.0
    head = fit_head(features, torch.arange(2), HeadConfig(dim=6, width=5), make())
    assert head.frames is not None
    assert torch.linalg.matrix_rank(head.frames.weight) == 5


def test_the_convolution_adds_nothing_at_the_start_and_then_what_the_formula_says() -> None:
    frames = torch.randn(2, 5, 4, generator=make())
    layer = TimeConvolution(4, 3, 0.5).eval()
    assert torch.equal(layer(frames), frames)
    with torch.no_grad():
        layer.out.weight.normal_(generator=make(1))
        layer.out.bias.normal_(generator=make(2))
    expected = frames.clone()
    for n, t in np.ndindex(2, 5):
        hidden = layer.near.get_parameter("bias").detach().clone()
        for k in range(3):
            if 0 <= t + k - 1 < 5:
                hidden += layer.near.weight.detach()[:, :, k] @ frames[n, t + k - 1]
        expected[n, t] += layer.out.weight.detach() @ hidden.clamp_min(0) + layer.out.bias.detach()
    torch.testing.assert_close(layer(frames).detach(), expected)


def test_the_whole_head_has_gradients_and_tells_a_clip_from_its_reverse() -> None:
    features, labels = moving_clips()
    head = fit_head(features, labels, HeadConfig(dim=6, width=3), make())
    gap = (head.embed(features) - head.embed(features.flip(1))).norm(dim=-1)
    assert bool((gap > 0.01).all())
    (head.embed(features) @ torch.arange(6.0)).sum().backward()  # type: ignore[no-untyped-call]
    assert bool(head.over_time.get_parameter("out.weight").grad.any())  # type: ignore[union-attr]
