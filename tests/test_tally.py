"""Top-5, confusion and class means against counting one query at a time; sums against plain statistics."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from amfir.meta.active import fuse, observe
from amfir.meta.episodes import EpisodeSampler, EpisodeShape
from amfir.meta.evaluate import BLOCK_EPISODES, EvaluationConfig, draw_block, evaluate
from amfir.meta.prototypes import PrototypeScorer
from amfir.meta.tally import Counts, Sums, among_top

TEMPERATURES = {"rgb": 0.2, "flow": 0.3}


def gallery(classes: int = 9, clips: int = 6) -> tuple[dict[str, Tensor], Tensor]:
    """Clusters that overlap, in two modalities; labels mixed, and no class id is its position."""
    generator = torch.Generator().manual_seed(4)
    labels = (torch.arange(classes) + 3).repeat_interleave(clips)[torch.randperm(classes * clips, generator=generator)]
    embeddings = {}
    for name, width in (("rgb", 7), ("flow", 5)):
        centres = torch.randn(classes + 3, width, generator=generator)
        embeddings[name] = centres[labels] + 1.2 * torch.randn(len(labels), width, generator=generator)
    return embeddings, labels


def test_top_five_confusion_and_classes_equal_counting_one_query_at_a_time() -> None:
    embeddings, labels = gallery()
    ids = [5, 3, 11, 8, 4, 9, 7, 10]  # of nine classes, in another order
    config = EvaluationConfig(EpisodeShape(7, 2, 3), episodes=30, seed=2)
    found = evaluate(embeddings, labels, ids, config, temperatures=TEMPERATURES)
    episodes = draw_block(EpisodeSampler(labels, ids, config.shape), config, 0)
    confusion = [[0] * len(ids) for _ in ids]
    among = 0
    for support, query in zip(episodes.support, episodes.query, strict=True):
        drawn = [int(labels[clips[0]]) for clips in support]
        for position, clips in enumerate(query):
            for clip in clips:
                scores = fused_by_hand(embeddings, support, int(clip))
                ranked = [k for _, k in sorted((-score, k) for k, score in enumerate(scores))]
                among += position in ranked[:5]
                confusion[ids.index(drawn[position])][ids.index(drawn[ranked[0]])] += 1
    assert found.confusion.tolist() == confusion
    assert found.confusion.dtype == torch.int64
    assert found.top5 == pytest.approx(100 * among / (30 * 21))
    assert found.accuracy < found.top5 < 100
    shares = [100 * row[i] / sum(row) for i, row in enumerate(confusion)]
    assert list(found.per_class) == [str(class_id) for class_id in ids]
    assert list(found.per_class.values()) == pytest.approx(shares)
    assert found.class_accuracy == pytest.approx(sum(shares) / len(shares))
    assert found.class_accuracy != pytest.approx(found.accuracy, abs=1e-3)
    assert int(found.confusion.diagonal().sum()) == int(found.right.sum())


def fused_by_hand(embeddings: dict[str, Tensor], support: Tensor, clip: int) -> list[float]:
    """AMI's scores of one query, float64, from Eq. 2, 5, 7 and 8."""
    psi, certainty = {}, {}
    for name, values in embeddings.items():
        means = [values[clips].double().mean(0) for clips in support]
        psi[name] = [TEMPERATURES[name] * float((values[clip].double() - mean).square().sum()) for mean in means]
        total = sum(math.exp(-value) for value in psi[name])
        certainty[name] = max(math.exp(-value) / total for value in psi[name])
    weight = {name: value / sum(certainty.values()) for name, value in certainty.items()}
    return [-sum(weight[name] * psi[name][k] for name in embeddings) for k in range(len(support))]


def test_the_confusion_is_that_of_the_configured_fusion() -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(6, 1, 2), episodes=300)
    for fusion in ("late", "select"):
        found = evaluate(embeddings, labels, range(3, 12), replace(config, fusion=fusion))
        right = int(found.confusion.diagonal().sum())
        assert 100 * right / (300 * 12) == pytest.approx(found.fusions[fusion][0])
    # Classes that were never asked for have no accuracy, and no say in the mean.
    few = evaluate(embeddings, labels, range(3, 12), EvaluationConfig(EpisodeShape(2, 1, 1), episodes=1))
    assert sum(value is None for value in few.per_class.values()) == 7
    assert few.class_accuracy == few.accuracy
    assert few.top5 == 100


def test_equal_scores_rank_as_argmax_takes_them() -> None:
    logits = torch.tensor([[[0.0] * 7] * 7])
    assert among_top(logits, torch.arange(7)).tolist() == [[True] * 5 + [False] * 2]
    logits[..., 6] = 1.0
    assert among_top(logits, torch.arange(7)).tolist() == [[True] * 4 + [False] * 2 + [True]]
    assert among_top(logits[..., :5], torch.arange(7) % 5).all()
    generator = torch.Generator().manual_seed(0)
    mixed, labels = torch.randint(3, (5, 8, 8), generator=generator).float(), torch.arange(8)
    assert torch.equal(among_top(mixed, labels, top=1), mixed.argmax(-1) == labels)


def test_what_is_not_kept_changes_nothing_else_and_does_not_grow() -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(6, 1, 2), episodes=2 * BLOCK_EPISODES + 3)
    seen: list[Counts] = []
    kept = evaluate(embeddings, labels, range(3, 12), config, watch=seen.append)
    dropped = evaluate(embeddings, labels, range(3, 12), replace(config, keep=False))
    assert replace(kept, seconds=1.0) == replace(dropped, seconds=1.0)
    assert torch.equal(kept.confusion, dropped.confusion)
    assert dropped.kept is None
    with pytest.raises(AssertionError, match="does not keep"):
        _ = dropped.right
    assert [len(counts.top) for counts in seen] == [250, 250, 3]
    assert torch.equal(torch.cat([counts.fusions["ami"] for counts in seen]), kept.right)


def test_sums_are_plain_statistics_and_exact_where_floats_are_not() -> None:
    sums = Sums()
    values = [3, 0, 5, 5, 2, 1, 4]
    sums.add(torch.tensor(values[:3]))
    sums.add(torch.tensor(values[3:]))
    mean = sum(values) / 7
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 7)
    assert sums.share(5) == pytest.approx((100 * mean / 5, 100 * 1.96 * deviation / math.sqrt(7) / 5))
    large = Sums(10**12, 3 * 10**12 + 1, 9 * 10**12 + 7)
    assert large.share(5)[1] == pytest.approx(100 * 1.96 / 5 * 1e-12, rel=1e-3)
    assert math.isnan(Sums().share(5)[0])


def test_scores_of_the_loop_here_are_those_of_the_scorer() -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(7, 2, 3), episodes=2)
    episodes = draw_block(EpisodeSampler(labels, range(3, 12), config.shape), config, 0)
    logits, _ = fuse(observe(PrototypeScorer(embeddings, TEMPERATURES)(episodes).psi))
    scores = torch.tensor(fused_by_hand(embeddings, episodes.support[1], int(episodes.query[1, 4, 2])))
    torch.testing.assert_close(logits[1, 14], scores.log_softmax(0), rtol=1e-4, atol=1e-4)
