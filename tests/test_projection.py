"""Projections: against numpy's singular value decomposition of the base clips' frames."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from amfir.meta.projection import Projection, fit_projection

Array = NDArray[np.float64]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Features whose directions vary by different amounts, far from 0, float16 as a cache has them."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(shape[-1], shape[-1])) * np.linspace(2, 0.1, shape[-1])
    return torch.from_numpy((20 + rng.normal(size=shape) @ mixing.T).astype(np.float16))


def by_svd(features: Tensor, clips: list[int], dim: int) -> Array:
    """Project all frames by the definition, signs by the largest component of each axis."""
    whole = features.double().numpy()
    base = whole[clips, 0].reshape(-1, whole.shape[-1])
    mean = base.mean(0)
    kept = min(dim, len(mean))
    scale = np.sqrt(((base - mean) ** 2).sum(-1).mean() / kept)
    centred: Array = (whole - mean) / scale
    if dim >= len(mean):
        return centred
    axes = np.linalg.svd(base - mean, full_matrices=False)[2][:kept]
    axes = np.stack([axis if axis[np.abs(axis).argmax()] > 0 else -axis for axis in axes])
    projected: Array = centred @ axes.T
    return projected


@pytest.mark.parametrize("dim", [1, 4, 7, 8, 20])
def test_frames_land_where_the_svd_of_the_base_frames_puts_them(dim: int) -> None:
    features, base = drawn(9, 2, 5, 8), [0, 3, 4, 7, 8]
    projection = fit_projection(features, torch.tensor(base), dim)
    assert projection.dim == min(dim, 8)
    projected = projection.apply(features)
    assert (projected.shape, projected.dtype) == ((9, 2, 5, min(dim, 8)), torch.float32)
    np.testing.assert_allclose(projected.numpy(), by_svd(features, base, dim), rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(projection(features[3, 1, 2]), projected[3, 1, 2])


def test_every_token_counts_as_a_frame() -> None:
    features = drawn(6, 2, 3, 4, 8)
    projection = fit_projection(features, torch.tensor([1, 2, 5]), 3)
    projected = projection.apply(features)
    assert projected.shape == (6, 2, 3, 4, 3)
    np.testing.assert_allclose(projected.numpy(), by_svd(features, [1, 2, 5], 3), rtol=1e-4, atol=2e-5)


def test_only_the_first_view_of_the_clips_given_is_looked_at() -> None:
    features, clips = drawn(6, 2, 3, 8), torch.tensor([1, 4])
    changed = features.clone()
    changed[[0, 2, 3, 5]] = 7
    changed[:, 1] = 9
    first, second = (fit_projection(values, clips, 3).to_state() for values in (features, changed))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_base_frames_vary_as_much_as_the_width_says_and_distances_keep_their_proportions() -> None:
    features = drawn(30, 1, 4, 6)
    everything = torch.arange(30)
    for dim, low, high in ((3, 2.0, 2.999), (6, 5.999, 6.001), (10, 5.999, 6.001)):
        projected = fit_projection(features, everything, dim).apply(features).double().flatten(0, 2)
        assert low < float(projected.square().sum(-1).mean()) < high
        assert float(projected.mean(0).abs().max()) < 1e-4
    flat = features.double().flatten(0, 2)
    ratio = torch.pdist(fit_projection(features, everything, 6).apply(features).double().flatten(0, 2))
    ratio = ratio / torch.pdist(flat)
    assert float(ratio.max() / ratio.min()) == pytest.approx(1, rel=1e-4)


def test_the_largest_component_of_every_axis_is_positive() -> None:
    for seed in range(5):
        axes = fit_projection(drawn(9, 1, 5, 8, seed=seed), torch.arange(9), 7).axes
        assert axes is not None
        torch.testing.assert_close(axes @ axes.mT, torch.eye(7), rtol=0, atol=1e-5)
        assert all(float(axis[axis.abs().argmax()]) > 0 for axis in axes)


def test_of_many_frames_some_at_even_distances_are_taken() -> None:
    features = drawn(10, 1, 6, 8)
    kept = features.flatten(0, 2)[[0, 8, 17, 25, 34, 42, 51]]  # 60 / 7 apart
    ours = fit_projection(features, torch.arange(10), 3, max_frames=7)
    theirs = fit_projection(kept[:, None, None], torch.arange(7), 3)
    torch.testing.assert_close(ours.to_state(), theirs.to_state(), rtol=0, atol=0)


def test_pieces_smaller_than_the_whole_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    features = drawn(9, 2, 5, 8)
    whole = fit_projection(features, torch.arange(9), 3)
    monkeypatch.setattr("amfir.meta.projection.CHUNK", 3 * 8)
    pieces = fit_projection(features, torch.arange(9), 3)
    torch.testing.assert_close(whole.to_state(), pieces.to_state())
    torch.testing.assert_close(whole.apply(features), pieces.apply(features))


@pytest.mark.parametrize("value", [0.0, 0.1, -300.0])
@pytest.mark.parametrize("dim", [2, 8])
def test_base_frames_that_are_all_the_same_get_the_scale_1(value: float, dim: int) -> None:
    features = torch.full((4, 1, 3, 8), value, dtype=torch.float16)
    features[3] += 1
    projection = fit_projection(features, torch.arange(3), dim)
    assert float(projection.scale) == 1
    projected = projection.apply(features)
    assert bool(projected.isfinite().all())
    assert float(projected[:3].abs().max()) < 1e-6
    assert float(projected.abs().max()) < 9


def test_small_differences_between_large_features_survive() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(1e4 + 1e-3 * rng.normal(size=(8, 1, 4, 5)) * np.arange(1, 6))
    projection = fit_projection(features, torch.arange(8), 2)
    flat = features.flatten(0, 2).numpy()
    axes = np.linalg.svd(flat - flat.mean(0))[2][:2]
    assert projection.axes is not None
    np.testing.assert_allclose(np.abs((projection.axes.double().numpy() * axes).sum(-1)), 1, rtol=1e-6)


@pytest.mark.parametrize("dim", [3, 8])
def test_a_projection_survives_its_tensors(dim: int) -> None:
    features = drawn(9, 2, 5, 8)
    projection = fit_projection(features, torch.arange(9), dim)
    again = Projection.from_state(projection.to_state())
    assert torch.equal(again.apply(features), projection.apply(features))
    assert all(value.dtype == torch.float32 for value in projection.to_state().values())
