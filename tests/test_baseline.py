"""Untrained nearest prototypes against numpy."""

import numpy as np
import pytest
import torch

from amfir.cache.errors import UserError
from amfir.meta.baseline import STD_FLOOR, untrained_embeddings, untrained_temperatures
from amfir.meta.episodes import EpisodeSampler, EpisodeShape
from amfir.meta.evaluate import EvaluationConfig, draw_block
from amfir.meta.temperature import fit_temperature, fitting_episodes

from .planted import planted

NAMES = [f"class {i}" for i in range(12)]


def test_embeddings_are_the_mean_over_time_standardised_on_base_clips() -> None:
    features, labels = planted(views=2)
    features["rgb"][..., 0] = 7 + 1e-4 * features["rgb"][..., 0]  # hardly moves: the floor holds
    features["flow"] = features["flow"].half()
    found = untrained_embeddings(features, labels, [1, 3, 8])
    base = np.isin(labels.numpy(), [1, 3, 8])
    for name, values in features.items():
        pooled = values[:, 0].double().numpy().mean(1)
        deviation = pooled[base].std(0, ddof=1)
        scale = np.maximum(deviation, STD_FLOOR * deviation.mean())
        expected = (pooled - pooled[base].mean(0)) / scale
        np.testing.assert_allclose(found[name].numpy(), expected, atol=2e-4)
    assert found["rgb"][:, 0].abs().max() < 0.01


def test_features_that_never_move_stay_finite() -> None:
    _, labels = planted()
    found = untrained_embeddings({"rgb": torch.full((96, 1, 3, 4), 0.1)}, labels, range(6))
    assert found["rgb"].isfinite().all()
    assert (found["rgb"] == found["rgb"][0]).all()


@pytest.mark.parametrize(("num_base", "way"), [(8, 4), (3, 3)])
def test_temperatures_are_fitted_on_base_episodes(num_base: int, way: int) -> None:
    features, labels = planted()
    embeddings = untrained_embeddings(features, labels, range(num_base))
    for values in embeddings.values():
        values[labels >= num_base] = torch.nan  # never touched
    config = EvaluationConfig(EpisodeShape(4, 2, 2), episodes=20, seed=3)
    found = untrained_temperatures(embeddings, labels, range(num_base), config, NAMES)
    shape = EpisodeShape(way, 2, 2)
    drawn = EvaluationConfig(shape, 1000, 3)
    sampler = EpisodeSampler(labels, range(num_base), shape)
    for name, values in embeddings.items():
        psi = []
        for block in range(drawn.num_blocks):
            episodes = draw_block(sampler, drawn, block)
            prototypes = values.double()[episodes.support].mean(2)
            queries = values.double()[episodes.query].flatten(1, 2)
            psi.append((queries[:, :, None] - prototypes[:, None]).square().sum(-1))
        answers = torch.arange(way).repeat_interleave(2)
        assert found[name] == pytest.approx(fit_temperature(torch.cat(psi), answers), rel=1e-4)


def test_many_ways_are_fitted_on_fewer_episodes() -> None:
    assert fitting_episodes(EpisodeShape(5, 1, 5)) == 1000
    assert fitting_episodes(EpisodeShape(5, 1, 5), 300) == 300
    assert fitting_episodes(EpisodeShape(100, 1, 5)) == 2**25 // 50_000
    assert fitting_episodes(EpisodeShape(5000, 1, 5)) == 1


def test_one_base_class_is_refused() -> None:
    features, labels = planted()
    embeddings = untrained_embeddings(features, labels, range(1))
    with pytest.raises(UserError, match="the split has 1 base class"):
        untrained_temperatures(embeddings, labels, range(1), EvaluationConfig(EpisodeShape(2, 1, 1)), NAMES)


def test_a_base_class_with_too_few_clips_is_refused_by_name() -> None:
    features, labels = planted()
    embeddings = untrained_embeddings(features, labels, range(6))
    config = EvaluationConfig(EpisodeShape(3, 2, 7))
    with pytest.raises(UserError, match="class 'class 0' has 8 clips"):
        untrained_temperatures(embeddings, labels, range(6), config, NAMES)
