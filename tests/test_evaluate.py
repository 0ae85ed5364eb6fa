"""Prototypes, distances, and batched evaluation against plain loops over episodes."""

import json
import math
import re

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta import prototypes
from amfir.meta.active import CRITERIA, FUSIONS, fuse, observe, unreliability
from amfir.meta.belief import Belief, fit_belief
from amfir.meta.episodes import Episodes, EpisodeSampler, EpisodeShape
from amfir.meta.evaluate import (
    BLOCK_EPISODES,
    EvaluationConfig,
    count_blocks,
    draw_block,
    evaluate,
    join,
    observations,
    score_episodes,
)
from amfir.meta.prototypes import DISTANCES, PrototypeScorer, class_prototypes, distances, encode_clips
from amfir.meta.reference import evaluate_loop

TEMPERATURES = {"rgb": 0.15, "flow": 0.3}


def gallery(classes: int = 7, clips: int = 12, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Clusters in two modalities of different width, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(clips)
    embeddings = {}
    for name, width in (("rgb", 20), ("flow", 12)):
        centres = torch.randn(classes, width, generator=generator) * 0.8 + 5
        embeddings[name] = centres[labels] + torch.randn(len(labels), width, generator=generator)
    return embeddings, labels


def slow_distance(q: Tensor, t: Tensor, name: str) -> float:
    q, t = q.double(), t.double()
    if name == "cosine":
        return 1 - float(q @ t / (q.norm() * t.norm()))
    squared = sum(float(x) ** 2 for x in q - t)
    return squared if name == "squared-euclidean" else math.sqrt(squared)


def slow_scores(
    embeddings: dict[str, Tensor], episodes: Episodes, name: str, temperatures: dict[str, float]
) -> tuple[Tensor, Tensor]:
    """psi and psi to the mean prototype, one pair at a time."""
    batch, way, per_class = episodes.query.shape
    psi = torch.zeros(len(embeddings), batch, way * per_class, way, dtype=torch.float64)
    centre = torch.zeros(len(embeddings), batch, way * per_class, dtype=torch.float64)
    for m, (modality, values) in enumerate(embeddings.items()):
        for b in range(batch):
            means = [values[episodes.support[b, n]].double().mean(0) for n in range(way)]
            for i, clip in enumerate(episodes.query[b].flatten().tolist()):
                for n in range(way):
                    psi[m, b, i, n] = temperatures[modality] * slow_distance(values[clip], means[n], name)
                middle = torch.stack(means).mean(0)
                centre[m, b, i] = temperatures[modality] * slow_distance(values[clip], middle, name)
    return psi, centre


# --- prototypes and distances ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_equal_a_slow_loop(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 6, 9, generator=generator) + 30
    support = torch.randn(2, 4, 9, generator=generator) + 30
    expected = [[[slow_distance(q, t, name) for t in support[b]] for q in query[b]] for b in range(2)]
    torch.testing.assert_close(
        distances(query.double(), support.double(), name), torch.tensor(expected, dtype=torch.float64)
    )
    torch.testing.assert_close(distances(query, support, name), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_gradients_are_right(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    support = torch.randn(1, 2, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, t: distances(q, t, name), (query, support))


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_identical_and_zero_embeddings_give_zero_distance_or_no_angle_and_finite_gradients(
    name: str, value: float
) -> None:
    same = torch.full((1, 3, 4), value, requires_grad=True)
    result = distances(same, same[:, :2], name)
    result.sum().backward()  # type: ignore[no-untyped-call]
    assert (result <= (1 if name == "cosine" and value == 0 else 1e-5)).all()
    assert (result >= -1e-6).all()
    assert same.grad is not None
    assert same.grad.isfinite().all()


def test_unknown_distance_is_refused() -> None:
    with pytest.raises(UserError, match="unknown distance 'euclid'; did you mean 'euclidean'"):
        distances(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), "euclid")
    with pytest.raises(UserError, match="unknown distance"):
        PrototypeScorer({"rgb": torch.zeros(2, 2)}, distance="euclid")
    with pytest.raises(UserError, match="no modality"):
        PrototypeScorer({})


def test_prototypes_with_unequal_shots_are_the_means_of_what_is_there() -> None:
    support = torch.tensor([[[[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]], [[4.0, 4.0], [math.nan, 1e30], [0.0, 0.0]]]])
    mask = torch.tensor([[[True, True, True], [True, False, True]]])
    assert class_prototypes(support, mask).tolist() == [[[3, 3], [2, 2]]]
    assert class_prototypes(support[:, :1]).tolist() == [[[3, 3]]]
    support.requires_grad_()
    class_prototypes(support, mask).sum().backward()  # type: ignore[no-untyped-call]
    assert support.grad is not None
    assert support.grad[0, 1, 1].tolist() == [0, 0]


def test_clips_are_encoded_once_from_the_asked_view_in_chunks() -> None:
    features = torch.randn(11, 3, 4, 5, generator=torch.Generator().manual_seed(0)).half()
    seen = []

    def head(frames: Tensor) -> Tensor:
        seen.append(len(frames))
        assert frames.dtype == torch.float32
        assert not torch.is_grad_enabled()
        return frames.mean(1)

    every = encode_clips(features, head, view=1, chunk_clips=4)
    torch.testing.assert_close(every, features[:, 1].float().mean(1))
    assert seen == [4, 4, 3]
    some = torch.tensor([7, 2])
    torch.testing.assert_close(encode_clips(features, head, clips=some), features[some, 0].float().mean(1))


# --- scoring --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["look-up", "gather"])
@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("shot", [1, 3])
def test_scores_equal_a_slow_loop_on_both_paths(
    path: str, name: str, shot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prototypes, "LOOKUP_COST", 0)
    if path == "gather":
        monkeypatch.setattr(prototypes, "MAX_GRAM_CLIPS", 0)
        monkeypatch.setattr(prototypes, "MAX_GATHERED", 600)  # several chunks, the last one cut
    embeddings, labels = gallery()
    shape = EpisodeShape(4, shot, 2)
    episodes = EpisodeSampler(labels, range(7), shape).sample(7, torch.Generator().manual_seed(1))
    scorer = PrototypeScorer(embeddings, TEMPERATURES, name)
    psi, centre = scorer(episodes)
    assert ("_grams" in scorer.__dict__) == (path == "look-up")
    slow_psi, slow_centre = slow_scores(embeddings, episodes, name, TEMPERATURES)
    torch.testing.assert_close(psi.double(), slow_psi, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(centre.double(), slow_centre, rtol=1e-4, atol=1e-5)


def test_the_cheaper_path_is_taken() -> None:
    labels = torch.arange(6).repeat_interleave(4)
    for width, shot, looks_up in ((64, 1, True), (64, 3, False), (16, 1, False)):
        scorer = PrototypeScorer({"rgb": torch.rand(24, width)})
        sampler = EpisodeSampler(labels, range(6), EpisodeShape(5, shot, 1))
        scorer(sampler.sample(2, torch.Generator().manual_seed(0)))
        assert ("_grams" in scorer.__dict__) == looks_up


# --- evaluation -----------------------------------------------------------------------------------------------------


class TemporalHead(torch.nn.Module):
    """A small head on [n, T, D] features."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mix = torch.nn.Parameter(torch.randn(width, 10, generator=generator))

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(features @ self.mix).mean(1)


def clips_and_heads() -> tuple[dict[str, Tensor], dict[str, TemporalHead], Tensor]:
    embeddings, labels = gallery(classes=8, clips=10)
    generator = torch.Generator().manual_seed(2)
    features = {
        name: ((values - 5)[:, None, None] + torch.randn(80, 2, 4, values.shape[1], generator=generator)).half()
        for name, values in embeddings.items()
    }
    heads = {name: TemporalHead(values.shape[1], k) for k, (name, values) in enumerate(embeddings.items())}
    return features, heads, labels


def plain_accuracy(psi: Tensor, labels: Tensor, fusion: str) -> tuple[float, float]:
    """Percent and interval from predictions counted one by one in float64."""
    per_episode = []
    for b in range(psi.shape[1]):
        right = 0
        for i, label in enumerate(labels.tolist()):
            p = torch.softmax(-psi[:, b, i], -1)
            c = p.max(-1).values
            if fusion == "ami":
                score = -((c / c.sum())[:, None] * psi[:, b, i]).sum(0)
            elif fusion == "late":
                score = -psi[:, b, i].mean(0)
            elif fusion == "posterior-mean":
                score = p.mean(0)
            else:
                score = -psi[int(p.log().mean(-1).argmin()), b, i]
            right += int(score.argmax()) == label
        per_episode.append(100 * right / len(labels))
    mean = sum(per_episode) / len(per_episode)
    variance = sum((a - mean) ** 2 for a in per_episode) / len(per_episode)
    return mean, 1.96 * math.sqrt(variance) / math.sqrt(len(per_episode))


@pytest.mark.parametrize("shot", [1, 3])
def test_predictions_equal_the_loop_that_encodes_every_episode_anew(shot: int) -> None:
    features, heads, labels = clips_and_heads()
    config = EvaluationConfig(EpisodeShape(5, shot, 4), episodes=300)
    sampler = EpisodeSampler(labels, range(8), config.shape)
    temperatures = {"rgb": 3.0, "flow": 2.0}
    scorer = PrototypeScorer({name: encode_clips(f, heads[name]) for name, f in features.items()}, temperatures)
    seen = list(observations(scorer, sampler, config, range(config.num_blocks)))
    batched = torch.cat([fuse(observation)[0] for _, observation in seen])
    looped = torch.cat([evaluate_loop(features, heads, temperatures, episodes) for episodes, _ in seen])
    torch.testing.assert_close(batched, looped, rtol=1e-4, atol=1e-4)
    best = looped.topk(2, -1).values
    clear = best[..., 0] - best[..., 1] > 1e-5
    assert torch.equal(batched.argmax(-1)[clear], looped.argmax(-1)[clear])
    assert clear.double().mean() > 0.999
    accuracy = 100 * float((looped.argmax(-1) == config.shape.query_labels()).double().mean())
    assert 40 < accuracy < 99
    embeddings = {name: encode_clips(f, heads[name]) for name, f in features.items()}
    result = evaluate(embeddings, labels, range(8), config, temperatures=temperatures)
    assert result.accuracy == pytest.approx(accuracy, abs=0.02)


@pytest.mark.parametrize("shot", [1, 3])
def test_accuracies_and_intervals_equal_plain_counting(shot: int) -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(4, shot, 2), episodes=40, seed=3)
    result = evaluate(embeddings, labels, range(7), config, temperatures=TEMPERATURES, method="proto")
    sampler = EpisodeSampler(labels, range(7), config.shape)
    psi, _ = slow_scores(embeddings, draw_block(sampler, config, 0), "squared-euclidean", TEMPERATURES)
    for fusion in ("ami", "late", "posterior-mean", "select"):
        assert result.fusions[fusion] == pytest.approx(plain_accuracy(psi, config.shape.query_labels(), fusion))
    for m, name in enumerate(embeddings):
        alone = plain_accuracy(psi[m : m + 1], config.shape.query_labels(), "late")
        assert result.modalities[name] == pytest.approx(alone)
    assert (result.accuracy, result.ci95) == result.fusions["ami"]
    assert set(result.fusions) == set(FUSIONS) - {"belief"}
    other = evaluate(
        embeddings,
        labels,
        range(7),
        EvaluationConfig(config.shape, 40, 3, "select", "entropy"),
        temperatures=TEMPERATURES,
    )
    assert (other.accuracy, other.ci95) == other.fusions["select"]


def fitted_belief(embeddings: dict[str, Tensor], labels: Tensor, shape: EpisodeShape) -> Belief:
    config = EvaluationConfig(shape, 60, seed=8)
    psi, centre = score_episodes(
        PrototypeScorer(embeddings, TEMPERATURES), EpisodeSampler(labels, range(7), shape), config
    )
    return fit_belief(psi, centre, shape.query_labels())


def test_selection_accuracy_counts_the_contested_queries() -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(4, 1, 2), episodes=60, seed=1)
    belief = fitted_belief(embeddings, labels, config.shape)
    result = evaluate(embeddings, labels, range(7), config, temperatures=TEMPERATURES, belief=belief)
    sampler = EpisodeSampler(labels, range(7), config.shape)
    psi, centre = slow_scores(embeddings, draw_block(sampler, config, 0), "squared-euclidean", TEMPERATURES)
    seen = observe(psi, log_belief=belief.log_weights(psi, centre))
    expected = ["free-energy", "expected-free-energy", "max-prob", "entropy", "belief", "evidence-raw"]
    assert set(result.selection_accuracy) == {*expected, "always-rgb", "always-flow"}
    hits = dict.fromkeys(result.selection_accuracy, 0)
    contested = 0
    for b in range(psi.shape[1]):
        for i, label in enumerate(config.shape.query_labels().tolist()):
            right = [int(psi[m, b, i].argmin()) == label for m in range(2)]
            if sum(right) != 1:
                continue
            contested += 1
            hits["always-rgb"] += right[0]
            hits["always-flow"] += right[1]
            for name in expected:
                hits[name] += right[int(unreliability(seen, name)[:, b, i].argmin())]
    assert contested > 50
    for name, value in result.selection_accuracy.items():
        assert value == pytest.approx(100 * hits[name] / contested), name
    logits, _ = fuse(seen, "belief")
    accuracy = 100 * float((logits.argmax(-1) == config.shape.query_labels()).double().mean())
    assert result.fusions["belief"][0] == pytest.approx(accuracy)


def test_every_scalar_criterion_without_the_oracle_is_diagnosed() -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(4, 1, 2), episodes=5)
    belief = fitted_belief(embeddings, labels, config.shape)
    result = evaluate(embeddings, labels, range(7), config, belief=belief)
    named = {name for name in CRITERIA if not name.startswith("certainty")} - {"evidence"}
    assert {name for name in result.selection_accuracy if not name.startswith("always-")} == named


def test_chunks_and_blocks_do_not_change_the_counts() -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(3, 2, 2), episodes=2 * BLOCK_EPISODES + 70, seed=4)
    scorer = PrototypeScorer(embeddings, TEMPERATURES)
    sampler = EpisodeSampler(labels, range(7), config.shape)
    belief = fitted_belief(embeddings, labels, config.shape)
    whole = count_blocks(scorer, sampler, config, range(config.num_blocks), belief=belief)
    chunked = count_blocks(scorer, sampler, config, range(3), belief=belief, max_values=2000)
    one_by_one = count_blocks(scorer, sampler, config, range(3), belief=belief, max_values=1)
    spread = join([count_blocks(scorer, sampler, config, blocks, belief=belief) for blocks in ([0], [1, 2])])
    assert config.num_blocks == 3
    for other in (chunked, one_by_one, spread):
        assert (other.selected, other.contested) == (whole.selected, whole.contested)
        for ours, theirs in ((other.fusions, whole.fusions), (other.modalities, whole.modalities)):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        for name in ("top", "cells", "hits"):
            assert torch.equal(getattr(other, name), getattr(whole, name))
    assert len(whole.fusions["ami"]) == config.episodes


def test_fewer_episodes_are_the_first_of_more_and_the_seed_matters() -> None:
    _, labels = gallery()
    shape = EpisodeShape(3, 1, 2)
    sampler = EpisodeSampler(labels, range(7), shape)
    short, long, other = (EvaluationConfig(shape, n, seed) for n, seed in ((20, 5), (400, 5), (20, 6)))
    assert torch.equal(draw_block(sampler, short, 0).query, draw_block(sampler, long, 0).query[:20])
    assert not torch.equal(draw_block(sampler, short, 0).query, draw_block(sampler, other, 0).query)
    assert not torch.equal(draw_block(sampler, long, 0).query[:100], draw_block(sampler, long, 1).query[:100])
    assert len(draw_block(sampler, long, 1)) == 150


def test_clips_of_other_classes_are_not_touched() -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(3, 1, 2), episodes=50)
    clean = evaluate(embeddings, labels, [1, 4, 5], config)
    foreign = ~torch.isin(labels, torch.tensor([1, 4, 5]))
    spoiled = {name: values.masked_fill(foreign[:, None], math.nan) for name, values in embeddings.items()}
    assert evaluate(spoiled, labels, [1, 4, 5], config).fusions == clean.fusions


def test_the_number_of_threads_is_left_as_it_was() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        embeddings, labels = gallery()
        evaluate(embeddings, labels, range(7), EvaluationConfig(EpisodeShape(3, 1, 2), episodes=5))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_one_modality_evaluates_and_has_nothing_to_select() -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(2, 1, 3), episodes=30)
    result = evaluate({"flow": embeddings["flow"]}, labels, range(7), config)
    assert result.selection_accuracy == {}
    assert set(result.fusions.values()) == {result.modalities["flow"]}


def test_equal_embeddings_are_a_tie_that_goes_to_the_first_class() -> None:
    labels = torch.arange(4).repeat_interleave(5)
    config = EvaluationConfig(EpisodeShape(4, 1, 2), episodes=10)
    result = evaluate({"rgb": torch.zeros(20, 6), "flow": torch.zeros(20, 6)}, labels, range(4), config)
    assert result.fusions["ami"] == (25.0, 0.0)
    assert result.modalities == {"rgb": (25.0, 0.0), "flow": (25.0, 0.0)}
    assert result.selection_accuracy == {}


def test_json_has_the_documented_form() -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(3, 1, 2), episodes=20)
    result = evaluate(embeddings, labels, range(7), config, method="amfar")
    document = json.loads(json.dumps(result.to_json()))
    assert list(document) == [
        *("method", "way", "shot", "query", "episodes", "accuracy", "ci95", "modalities", "fusions"),
        *("selection_accuracy", "seconds", "episodes_per_second", "top5", "class_accuracy", "per_class"),
    ]
    assert [document[name] for name in ("method", "way", "shot", "query", "episodes")] == ["amfar", 3, 1, 2, 20]
    assert document["modalities"]["rgb"] == dict(zip(("accuracy", "ci95"), result.modalities["rgb"], strict=True))
    assert document["fusions"]["ami"] == {"accuracy": result.accuracy, "ci95": result.ci95}
    assert document["episodes_per_second"] == pytest.approx(20 / document["seconds"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"episodes": 0}, "episodes is 0; an accuracy needs at least 1; raise --episodes"),
        ({"seed": -1}, "seed is -1; seeds start at 0; give --seed 0 or more"),
        ({"fusion": "amy"}, "unknown fusion 'amy'; did you mean 'ami'?"),
        ({"criterion": "entropie"}, "unknown criterion 'entropie'; did you mean 'entropy'?"),
    ],
)
def test_bad_configurations_are_refused(bad: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        EvaluationConfig(**bad)  # type: ignore[arg-type]


def test_a_belief_that_was_not_fitted_is_missed() -> None:
    embeddings, labels = gallery()
    config = EvaluationConfig(EpisodeShape(3, 1, 2), episodes=5, fusion="belief")
    with pytest.raises(UserError, match="'belief' needs a fitted belief"):
        evaluate(embeddings, labels, range(7), config)
