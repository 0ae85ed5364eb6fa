"""Episodes of confusable classes: whom an anchor is drawn with, and how often."""

from collections import Counter

import pytest
import torch

from amfir.cache.errors import UserError
from amfir.meta import confusable
from amfir.meta.confusable import ConfusableSampler, class_means, nearest_classes
from amfir.meta.episodes import EpisodeShape
from amfir.meta.evaluate import EvaluationConfig, evaluate
from amfir.meta.search.backends import choose_backend


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def line(classes: int, clips: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Class k at place k squared: its neighbours are known, and no two are equally far."""
    return torch.arange(classes).double()[:, None] ** 2, torch.arange(classes).repeat_interleave(clips)


def test_distances_of_class_means_are_the_tempered_sum_over_the_modalities() -> None:
    embeddings = {"rgb": torch.randn(8, 5, generator=generator()), "flow": torch.randn(8, 3, generator=generator(1))}
    labels = torch.tensor([4, 4, 7, 7, 7, 1, 1, 4])
    means = class_means(embeddings, labels, [7, 4], {"rgb": 0.3, "flow": 2.0})
    expected = sum(
        tau * (embeddings[name][labels == 7].mean(0) - embeddings[name][labels == 4].mean(0)).square().sum()
        for name, tau in (("rgb", 0.3), ("flow", 2.0))
    )
    assert float((means[0] - means[1]).square().sum()) == pytest.approx(float(expected))


@pytest.mark.parametrize("library", ["faiss", "torch", "all"])
def test_nearest_classes_are_those_of_a_sort(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amfir.meta.search.backends.CROSSOVER", 0)
    if library == "torch":
        monkeypatch.setattr("amfir.meta.search.backends.find_faiss", lambda: None)
    assert choose_backend(60) == ("torch" if library == "torch" else "flat")
    means = torch.randn(60, 6, generator=generator(), dtype=torch.float64) + 1e4
    count = 59 if library == "all" else 8
    found = nearest_classes(means, count)
    for k in range(60):
        ranked = sorted((float((means[j] - means[k]).square().sum()), j) for j in range(60) if j != k)
        assert found[k].tolist() == [j for _, j in ranked[:count]]


def test_equally_near_classes_come_in_the_order_they_are_listed() -> None:
    assert nearest_classes(torch.zeros(4, 2, dtype=torch.float64), 3).tolist() == [
        [1, 2, 3],
        [0, 2, 3],
        [0, 1, 3],
        [0, 1, 2],
    ]


def test_classes_that_float64_puts_equally_far_are_in_order_where_float32_does_not() -> None:
    """Seen from the mean, which is no float32, whole numbers are rounded."""
    places = [0, 1, 2, 10, 20, 30, 50, 70, 71, 72, 90, 110, 130]
    means = torch.tensor(places, dtype=torch.float64)[:, None]
    found = nearest_classes(means, 2).tolist()
    for k, place in enumerate(places):
        ranked = sorted((abs(other - place), j) for j, other in enumerate(places) if j != k)
        assert found[k] == [j for _, j in ranked[:2]]


def test_neighbours_are_the_same_however_many_are_searched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    means = torch.randn(50, 4, generator=generator(), dtype=torch.float64)
    whole = nearest_classes(means, 5)
    monkeypatch.setattr(confusable, "SEARCHED_AT_ONCE", 7)
    assert torch.equal(nearest_classes(means, 5), whole)


def test_fellows_come_with_the_documented_weights_in_any_place() -> None:
    means, labels = line(6)
    sampler = ConfusableSampler(labels, range(6), EpisodeShape(2, 1, 1), means)
    num = 30_000
    episodes = sampler.sample(num, generator())
    pairs = Counter(tuple(pair) for pair in labels[episodes.support[..., 0]].tolist())
    nearest = nearest_classes(means, 5).tolist()
    weights = [2.0**-rank for rank in range(5)]
    chi_square = 0.0
    for a in range(6):
        for b in range(6):
            if a != b:
                share = weights[nearest[a].index(b)] + weights[nearest[b].index(a)]
                expected = num * share / sum(weights) / 12
                chi_square += (pairs[(a, b)] - expected) ** 2 / expected
    assert chi_square < 59  # 29 degrees of freedom: p about 1e-3


def test_episodes_hold_distinct_classes_and_each_class_appears() -> None:
    means, labels = line(40, clips=4)
    sampler = ConfusableSampler(labels, range(40), EpisodeShape(3, 1, 2), means)
    episodes = sampler.sample(2000, generator())
    classes = labels[episodes.support[..., 0]]
    assert all(len(set(row)) == 3 for row in classes.tolist())
    assert torch.equal(labels[episodes.query], classes[..., None].expand(-1, -1, 2))
    assert set(classes.flatten().tolist()) == set(range(40))
    again = ConfusableSampler(labels, range(40), EpisodeShape(3, 1, 2), means).sample(2000, generator())
    assert torch.equal(again.query, episodes.query)
    spread = classes.max(-1).values - classes.min(-1).values
    assert spread.max() <= 2 * confusable.REACH * 2
    assert spread.double().mean() < 8  # 20 of 40 classes drawn uniformly


def test_as_many_ways_as_classes_are_all_of_them_and_more_are_refused() -> None:
    means, labels = line(5)
    episodes = ConfusableSampler(labels, range(5), EpisodeShape(5, 1, 1), means).sample(50, generator())
    assert (labels[episodes.support[..., 0]].sort(-1).values == torch.arange(5)).all()
    with pytest.raises(UserError, match=r"^way is 6, but there are 5 classes to draw from; lower --way$"):
        ConfusableSampler(labels, range(5), EpisodeShape(6, 1, 1), means)


def test_hard_episodes_are_harder() -> None:
    labels = torch.arange(30).repeat_interleave(8)
    centres = torch.randn(10, 6, generator=generator()).repeat_interleave(3, 0) * 4
    centres = centres + 0.7 * torch.randn(30, 6, generator=generator(1))
    embeddings = {"rgb": centres[labels] + torch.randn(240, 6, generator=generator(2))}
    shape = EpisodeShape(3, 1, 2)
    easy, hard = (
        evaluate(embeddings, labels, range(30), EvaluationConfig(shape, 500, sampler=name))
        for name in ("uniform", "hard")
    )
    assert hard.accuracy + 10 < easy.accuracy
    with pytest.raises(UserError, match="unknown sampler 'herd'; did you mean 'hard'"):
        EvaluationConfig(sampler="herd")
