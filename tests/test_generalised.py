"""Base and novel prototypes together, against a loop in float64 over single queries."""

import math

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.belief import Belief, fit_belief
from amfir.meta.embedded import embed_clips
from amfir.meta.episodes import EpisodeSampler, EpisodeShape
from amfir.meta.evaluate import EvaluationConfig, draw_block, evaluate, score_episodes
from amfir.meta.generalised import GeneralisedJob, GeneralisedSums, Space, evaluate_generalised, split_clips
from amfir.meta.profiles import load_profile
from amfir.meta.prototypes import PrototypeScorer
from amfir.meta.train import start_training

from .planted import make_task

TAU = {"rgb": 0.2, "flow": 0.35}
BASE, NOVEL = [6, 1, 2], [0, 3, 5, 4]


def space() -> tuple[Space, Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(7).repeat_interleave(7)[torch.randperm(49, generator=generator)]
    embeddings = {}
    for name, width in (("rgb", 6), ("flow", 4)):
        centres = torch.randn(7, width, generator=generator)
        embeddings[name] = centres[labels] + torch.randn(49, width, generator=generator) + 5
    return Space(embeddings, TAU, dict.fromkeys(TAU, "squared-euclidean")), labels


def slow_fusion(vectors: dict[str, Tensor], prototypes: dict[str, list[Tensor]], fusion: str) -> int:
    """Prediction for one query, float64, from the equations."""
    psi = {name: [TAU[name] * float((vectors[name] - t).square().sum()) for t in prototypes[name]] for name in vectors}
    certainty = {}
    for name, values in psi.items():
        low = min(values)
        certainty[name] = 1 / sum(math.exp(low - value) for value in values)
    weights = certainty if fusion == "ami" else dict.fromkeys(psi, 1.0)
    total = sum(weights.values())
    fused = [sum(weights[name] / total * psi[name][k] for name in psi) for k in range(len(psi["rgb"]))]
    return fused.index(min(fused))


@pytest.mark.parametrize("fusion", ["ami", "late"])
@pytest.mark.parametrize("shot", [1, 3])
def test_accuracies_equal_a_loop_over_queries(fusion: str, shot: int) -> None:
    here, labels = space()
    config = EvaluationConfig(EpisodeShape(3, shot, 2), episodes=25, seed=1, fusion=fusion)
    found = evaluate_generalised(here, labels, BASE, NOVEL, config)
    halves = split_clips(labels, BASE, 1)
    exact = {name: values.double() for name, values in here.embeddings.items()}
    base = {name: [values[clips].mean(0) for clips, _ in halves] for name, values in exact.items()}
    sampler = EpisodeSampler(labels, NOVEL, config.shape)
    job = GeneralisedJob(here, [], [asked for _, asked in halves], sampler, config)
    episodes, (base_clips, base_labels) = draw_block(sampler, config, 0), job.draw_base(25, 0)
    right: dict[str, list[int]] = {"base": [], "novel": [], "alone": []}
    for e in range(25):
        novel = {name: [values[clips].mean(0) for clips in episodes.support[e]] for name, values in exact.items()}
        joint = {name: [*base[name], *novel[name]] for name in exact}
        hits = dict.fromkeys(right, 0)
        for clip, label in zip(base_clips[e].tolist(), base_labels[e].tolist(), strict=True):
            assert labels[clip] == BASE[label]
            assert clip in halves[label][1]
            vectors = {name: values[clip] for name, values in exact.items()}
            hits["base"] += slow_fusion(vectors, joint, fusion) == label
        for label, clips in enumerate(episodes.query[e].tolist()):
            for clip in clips:
                vectors = {name: values[clip] for name, values in exact.items()}
                hits["novel"] += slow_fusion(vectors, joint, fusion) == 3 + label
                hits["alone"] += slow_fusion(vectors, novel, fusion) == label
        for name, count in hits.items():
            right[name].append(count)
    for name, share in (("base", found.base), ("novel", found.novel), ("alone", found.novel_alone)):
        mean = sum(right[name]) / 25
        deviation = math.sqrt(sum((count - mean) ** 2 for count in right[name]) / 25)
        assert share == pytest.approx((100 * mean / 6, 196 * deviation / 5 / 6)), name
    a, b = found.base[0], found.novel[0]
    assert found.harmonic_mean[0] == pytest.approx(2 * a * b / (a + b))
    assert found.novel[0] < found.novel_alone[0]
    # Episodes are those of the ordinary evaluation.
    plain = evaluate(here.embeddings, labels, NOVEL, config, temperatures=TAU)
    assert found.novel_alone == (plain.accuracy, plain.ci95)


def test_the_interval_of_the_harmonic_mean_is_that_of_resampled_episodes() -> None:
    """Against the bootstrap: correlated counts of 400 episodes."""
    generator = torch.Generator().manual_seed(0)
    ease = torch.rand(400, generator=generator)
    base, novel = ((ease[:, None] > torch.rand(400, 10, generator=generator)).sum(-1) for _ in range(2))
    sums = GeneralisedSums()
    for part in (slice(0, 250), slice(250, 400)):
        sums.add({"base": base[part], "novel": novel[part], "alone": novel[part]})
    mean, ci95 = sums.conclude(10, 3, 9).harmonic_mean
    drawn = torch.randint(400, (4000, 400), generator=generator)
    a, b = base[drawn].double().mean(1), novel[drawn].double().mean(1)
    harmonic = 2 * a * b / (a + b) * 10
    assert mean == pytest.approx(float(harmonic.mean()), abs=0.2)
    assert ci95 == pytest.approx(1.96 * float(harmonic.std()), rel=0.06)
    nothing = GeneralisedSums()
    nothing.add({name: torch.zeros(5, dtype=torch.int64) for name in ("base", "novel", "alone")})
    assert nothing.conclude(10, 3, 9).harmonic_mean == (0.0, 0.0)


def test_embedded_clips_are_as_far_apart_as_the_model_has_them() -> None:
    """Of a head whose logits have a scale of their own."""
    task = make_task(method="protonet+ami", profile=load_profile("protonet", "fair", ["head.dim=8"]))
    model = start_training(task).model.eval()
    model.set_temperatures({"rgb": 0.3, "flow": 2.0})
    episodes = EpisodeSampler(task.labels, range(6), EpisodeShape(3, 1, 2)).sample(4, torch.Generator().manual_seed(0))
    psi = model.scorer(task.features)(episodes).psi
    here = embed_clips(model, task.features, torch.arange(len(task.labels)))
    for name, expected in zip(model.modalities, psi, strict=True):
        values, factor = here.embeddings[name], here.temperatures[name]
        support, query = values[episodes.support].mean(2), values[episodes.query].flatten(1, 2)
        distances = (query[:, :, None] - support[:, None]).square().sum(-1)
        torch.testing.assert_close(factor * distances, expected.float(), rtol=1e-4, atol=1e-5)


def test_halves_are_disjoint_complete_and_of_the_seed() -> None:
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] * 6)
    halves = split_clips(labels, [2, 0, 1], 0)
    assert [(len(first), len(second)) for first, second in halves] == [(3, 3), (3, 2), (1, 1)]
    for class_id, (first, second) in zip([2, 0, 1], halves, strict=True):
        assert sorted([*first.tolist(), *second.tolist()]) == torch.nonzero(labels == class_id).flatten().tolist()
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(halves, split_clips(labels, [2, 0, 1], 1), strict=True))
    with pytest.raises(UserError, match="base class 'walk' has 1 clips; --generalised needs one for its prototype"):
        split_clips(torch.tensor([0, 0, 1]), [0, 1], 0, ["run", "walk"])


def test_base_classes_are_asked_for_equally_whatever_their_size() -> None:
    here, labels = space()
    queries = [torch.tensor([0]), torch.arange(1, 30), torch.tensor([30, 31])]
    config = EvaluationConfig(EpisodeShape(3, 1, 2), episodes=250)
    job = GeneralisedJob(here, [], queries, EpisodeSampler(labels, NOVEL, config.shape), config)
    clips, classes = job.draw_base(5000, 7)
    assert ((classes.flatten().bincount().double() / 30_000 - 1 / 3).abs() < 0.01).all()
    for position, pool in enumerate(queries):
        drawn = clips[classes == position]
        assert set(drawn.tolist()) == set(pool.tolist())
    assert not torch.equal(clips, job.draw_base(5000, 8)[0])


def fitted(here: Space, labels: Tensor) -> Belief:
    shape = EpisodeShape(3, 1, 2)
    scorer = PrototypeScorer(here.embeddings, TAU)
    scores = score_episodes(scorer, EpisodeSampler(labels, NOVEL, shape), EvaluationConfig(shape, 60))
    return fit_belief(*scores, shape.query_labels())


def test_a_belief_fuses_jointly_and_blocks_and_chunks_change_nothing() -> None:
    here, labels = space()
    config = EvaluationConfig(EpisodeShape(3, 1, 2), episodes=260, fusion="belief")
    belief = fitted(here, labels)
    found = evaluate_generalised(here, labels, BASE, NOVEL, config, belief=belief)
    plain = evaluate(here.embeddings, labels, NOVEL, config, temperatures=TAU, belief=belief)
    assert found.novel_alone == (plain.accuracy, plain.ci95)
    assert 0 < found.novel[0] < found.novel_alone[0]
    assert found.to_json()["harmonic_mean"] == dict(zip(("accuracy", "ci95"), found.harmonic_mean, strict=True))
    with pytest.raises(UserError, match="'belief' needs a fitted belief"):
        evaluate_generalised(here, labels, BASE, NOVEL, config)
