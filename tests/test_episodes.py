import itertools
import re

import pytest
import torch

from amfir.cache.errors import UserError
from amfir.meta.episodes import EpisodeSampler, EpisodeShape


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uneven_labels() -> torch.Tensor:
    """Classes 0..5 with 7, 8, 9, 10, 11, 12 clips, mixed."""
    labels = torch.cat([torch.full((7 + k,), k) for k in range(6)])
    return labels[torch.randperm(len(labels), generator=generator(9))]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((1, 1, 5), "way is 1; an episode needs at least 2; raise --way"),
        ((5, 0, 5), "shot is 0; an episode needs at least 1; raise --shot"),
        ((5, 1, -3), "query is -3; an episode needs at least 1; raise --query"),
    ],
)
def test_shape_refuses_counts_without_a_task(counts: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        EpisodeShape(*counts)


def test_query_labels_follow_the_flattened_queries() -> None:
    shape = EpisodeShape(way=3, shot=1, query=2)
    labels = uneven_labels()
    episodes = EpisodeSampler(labels, range(6), shape).sample(40, generator())
    classes = labels[episodes.support[:, :, 0]]
    of_queries = classes.gather(1, shape.query_labels().expand(40, -1))
    assert torch.equal(labels[episodes.query.flatten(1)], of_queries)
    assert shape.query_labels().tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("way", "shot", "query"), [(2, 1, 1), (5, 1, 5), (6, 3, 4), (4, 2, 5)])
def test_each_position_holds_one_class_and_no_clip_twice(way: int, shot: int, query: int) -> None:
    labels = uneven_labels()
    episodes = EpisodeSampler(labels, range(6), EpisodeShape(way, shot, query)).sample(200, generator())
    assert episodes.support.shape == (200, way, shot)
    assert episodes.query.shape == (200, way, query)
    for support, asked in zip(episodes.support.tolist(), episodes.query.tolist(), strict=True):
        clips = [s + q for s, q in zip(support, asked, strict=True)]
        classes = [{int(labels[c]) for c in of_class} for of_class in clips]
        assert all(len(one) == 1 for one in classes)
        assert len(set.union(*classes)) == way
        assert len(set(itertools.chain(*clips))) == way * (shot + query)


def test_only_the_given_classes_are_drawn() -> None:
    labels = uneven_labels()
    episodes = EpisodeSampler(labels, [4, 1, 2], EpisodeShape(2, 1, 2)).sample(300, generator())
    seen = torch.cat([labels[episodes.support].flatten(), labels[episodes.query].flatten()])
    assert set(seen.tolist()) == {1, 2, 4}


def test_every_class_order_is_equally_likely() -> None:
    labels = torch.arange(4).repeat_interleave(3)
    num = 24_000
    episodes = EpisodeSampler(labels, range(4), EpisodeShape(2, 1, 1)).sample(num, generator())
    first, second = labels[episodes.support[..., 0]].unbind(1)
    counts = torch.bincount(first * 4 + second, minlength=16)
    assert counts[[0, 5, 10, 15]].sum() == 0
    expected = num / 12
    chi_square = ((counts[counts > 0] - expected) ** 2 / expected).sum()
    assert chi_square < 35  # 11 degrees of freedom: p about 2e-4


def test_every_ordered_draw_of_clips_is_equally_likely_in_classes_of_different_size() -> None:
    labels = torch.tensor([0] * 4 + [1] * 5)
    num = 60_000
    episodes = EpisodeSampler(labels, [0, 1], EpisodeShape(2, 1, 2)).sample(num, generator(3))
    drawn = torch.cat([episodes.support, episodes.query], -1).flatten(0, 1)
    for class_id, size, offset, bound in ((0, 4, 0, 56.0), (1, 5, 4, 108.0)):  # 23 and 59 degrees of freedom
        picks = drawn[labels[drawn[:, 0]] == class_id] - offset
        counts = torch.bincount((picks[:, 0] * size + picks[:, 1]) * size + picks[:, 2])
        counts = counts[counts > 0]
        assert len(counts) == size * (size - 1) * (size - 2)
        assert ((counts - num / len(counts)) ** 2 / (num / len(counts))).sum() < bound


def test_same_seed_same_episodes_and_other_seed_others() -> None:
    sampler = EpisodeSampler(uneven_labels(), range(6), EpisodeShape(3, 2, 3))
    one, same, other = (sampler.sample(20, generator(seed), views=4) for seed in (1, 1, 2))
    assert torch.equal(one.support, same.support)
    assert torch.equal(one.query, same.query)
    assert one.support_views is not None
    assert same.support_views is not None
    assert torch.equal(one.support_views, same.support_views)
    assert not torch.equal(one.query, other.query)


def test_views_are_drawn_uniformly_and_leave_the_clips_alone() -> None:
    sampler = EpisodeSampler(uneven_labels(), range(6), EpisodeShape(3, 2, 3))
    plain, viewed = sampler.sample(500, generator()), sampler.sample(500, generator(), views=3)
    assert plain.support_views is None
    assert plain.query_views is None
    assert viewed.support_views is not None
    assert viewed.query_views is not None
    assert torch.equal(plain.support, viewed.support)
    assert viewed.support_views.shape == viewed.support.shape
    assert viewed.query_views.shape == viewed.query.shape
    counts = torch.bincount(torch.cat([viewed.support_views, viewed.query_views], -1).flatten())
    assert len(counts) == 3
    assert ((counts - 2500) ** 2 / 2500).sum() < 18


def test_a_slice_of_episodes_keeps_its_views() -> None:
    episodes = EpisodeSampler(uneven_labels(), range(6), EpisodeShape(3, 2, 3)).sample(9, generator(), views=2)
    part = episodes[3:5]
    assert len(part) == 2
    assert part.support_views is not None
    assert part.query_views is not None
    assert episodes.support_views is not None
    assert episodes.query_views is not None
    assert torch.equal(part.query, episodes.query[3:5])
    assert torch.equal(part.support_views, episodes.support_views[3:5])
    assert torch.equal(part.query_views, episodes.query_views[3:5])


def test_a_class_with_exactly_enough_clips_works_and_one_less_is_named() -> None:
    labels = torch.tensor([0] * 6 + [1] * 6 + [2] * 3)
    EpisodeSampler(labels, [0, 1], EpisodeShape(2, 1, 5)).sample(3, generator())
    message = (
        "class 'juggling' has 3 clips; an episode of 1 shot + 5 queries needs 6; "
        "lower --query (training.query where a profile sets it) or leave the class out"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        EpisodeSampler(labels, [0, 1, 2], EpisodeShape(2, 1, 5), ["run", "walk", "juggling"])
    with pytest.raises(UserError, match="class '3' has 0 clips"):
        EpisodeSampler(labels, [0, 1, 3], EpisodeShape(2, 1, 5))
    with pytest.raises(UserError, match="needs 7; lower --shot or leave the class out"):
        EpisodeSampler(labels, [0, 1], EpisodeShape(2, 6, 1))  # no --query is low enough


def test_more_ways_than_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"^way is 5, but there are 3 classes to draw from; lower --way$"):
        EpisodeSampler(torch.arange(3).repeat_interleave(9), range(3), EpisodeShape(5, 1, 1))
