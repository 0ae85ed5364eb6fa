"""Heads evaluated in bulk against the same heads on one episode at a time."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from amfir.cache.errors import UserError
from amfir.meta import prototypes, scorers
from amfir.meta.belief import fit_belief
from amfir.meta.episodes import Episodes, EpisodeSampler, EpisodeShape
from amfir.meta.evaluate import EvaluationConfig, draw_block, evaluate_scorer, score_episodes
from amfir.meta.heads import Encoding, Head, Inputs, PairHead, PrototypeHead
from amfir.meta.reference import score_loop
from amfir.meta.scorers import HeadScorer, ModelScorer
from amfir.meta.threads import one_thread

INPUTS = Inputs(frames=3, dim=6)
CLASSES, CLIPS = 6, 9


@dataclass(frozen=True)
class NoConfig:
    """Nothing to set."""


class MeanHead(PrototypeHead):
    """Means over time, negated at odd frames so that order matters."""

    config_type = NoConfig
    scale = 0.3

    def embed(self, clips: Tensor) -> Tensor:
        signs = 1.0 - torch.arange(clips.shape[1], dtype=clips.dtype) % 2
        return (clips.flatten(2) * (0.2 + signs)[:, None]).mean(1)


class CosineHead(MeanHead):
    distance = "cosine"


class BestFrame(PairHead):
    """The best support frame for every query frame: not symmetric. Remembers how often it was asked what."""

    config_type = NoConfig

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.encoded: list[int] = []
        self.paired: list[tuple[int, ...]] = []

    def encode(self, clips: Tensor) -> Encoding:
        assert not torch.is_grad_enabled()
        self.encoded.append(len(clips))
        return clips.flatten(2), clips.flatten(2).square().sum(-1)

    def pair(self, query: Encoding, support: Encoding) -> Tensor:
        assert not torch.is_grad_enabled()
        product = torch.einsum("...atd,...sud->...astu", query[0], support[0])
        score = product - support[1][..., None, :, None, :]
        best = self.gain * score.amax(-1).sum(-1)
        self.paired.append(tuple(best.shape))
        return best

    def footprint(self, way: int, shot: int, queries: int) -> int:
        return 2 * 9 * way * shot * queries


class ClosestShot(BestFrame):
    """A pair head that does not average its shots."""

    def reduce(self, pairs: Tensor, mask: Tensor | None = None) -> Tensor:
        assert mask is None
        return pairs.logsumexp(-1)


class Contrast(Head):
    """A logit depends on the whole support set: distances to prototypes less the mean of all supports."""

    config_type = NoConfig

    def __init__(self, inputs: Inputs) -> None:
        super().__init__(inputs)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.encoded: list[int] = []
        self.scored: list[int] = []

    def encode(self, clips: Tensor) -> Encoding:
        assert not torch.is_grad_enabled()
        self.encoded.append(len(clips))
        return clips.flatten(2).tanh(), clips.flatten(2).square().mean((1, 2))

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        assert not torch.is_grad_enabled()
        self.scored.append(len(query[0]))
        centre = support[0].mean((1, 2))
        prototypes = (support[0].mean(2) - centre[:, None]) * support[1].mean(2)[..., None, None]
        shifted = (query[0] - centre[:, None]) / (1 + query[1][..., None, None])
        return self.gain * torch.einsum("bqtd,bntd->bqn", shifted, prototypes)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        return way * queries * 10


HEADS: list[Callable[[Inputs], Head]] = [MeanHead, CosineHead, BestFrame, ClosestShot, Contrast]
SHAPE = EpisodeShape(4, 2, 3)


def clips(seed: int = 0, tokens: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(CLIPS)
    frame = (tokens, INPUTS.dim) if tokens else (INPUTS.dim,)
    means = torch.randn(CLASSES, 1, *[1] * len(frame[:-1]), INPUTS.dim, generator=generator)
    return (means[labels] + torch.randn(len(labels), INPUTS.frames, *frame, generator=generator)).half(), labels


def draw(labels: Tensor, shape: EpisodeShape = SHAPE, count: int = 11, seed: int = 1) -> Episodes:
    return EpisodeSampler(labels, range(CLASSES), shape).sample(count, torch.Generator().manual_seed(seed), views=3)


def build(head: Callable[[Inputs], Head]) -> Head:
    return head(INPUTS).eval()


def same(given: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)


# --- one branch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("shape", [EpisodeShape(5, 1, 1), SHAPE])
@pytest.mark.parametrize("tokens", [0, 2])
def test_scores_are_those_of_one_episode_at_a_time(
    head: Callable[[Inputs], Head], shape: EpisodeShape, tokens: int
) -> None:
    features, labels = clips(tokens=tokens)
    episodes = draw(labels, shape)  # with views, which evaluation does not look at
    model = build(head)
    expected = score_loop(model, features, episodes, 1.7)
    scorer = HeadScorer(model, features, scale=1.7)
    given = scorer(episodes)
    assert given.shape == (11, shape.way * shape.query, shape.way)
    assert not given.requires_grad
    same(given, expected)
    scorer.expect(10**6, shape)  # a pair head then makes its table
    same(scorer(episodes), expected)


def test_the_plain_loop_is_the_head_on_one_episode() -> None:
    features, labels = clips()
    episodes = draw(labels, count=3)
    looped = score_loop(build(BestFrame), features, episodes, 2.0)
    for e in range(3):
        for i, clip in enumerate(episodes.query[e].flatten().tolist()):
            for n in range(SHAPE.way):
                values = []
                for shown in episodes.support[e, n].tolist():
                    q, s = features[clip].double(), features[shown].double()
                    values.append(sum(max(float(x @ y - y @ y) for y in s) for x in q))
                assert float(looped[e, i, n]) == pytest.approx(2 * 1.5 * sum(values) / SHAPE.shot, rel=1e-4)


@pytest.mark.parametrize("head", [BestFrame, Contrast])
def test_each_clip_is_encoded_once(head: type[BestFrame | Contrast]) -> None:
    features, labels = clips()
    model = head(INPUTS).eval()
    scorer = HeadScorer(model, features)
    for seed in range(3):
        scorer(draw(labels, seed=seed))
    assert sum(model.encoded) == 1 + len(features)  # one more to see how large an encoding is


def test_pairs_are_scored_all_at_once_where_episodes_ask_for_most_of_them() -> None:
    features, labels = clips()
    episodes = draw(labels)
    asked_each = SHAPE.way**2 * SHAPE.query * SHAPE.shot
    few, many = BestFrame(INPUTS).eval(), BestFrame(INPUTS).eval()
    by_episode, by_table = HeadScorer(few, features), HeadScorer(many, features)
    enough = int(len(features) ** 2 / (scorers.PAIR_COST * asked_each)) + 1
    by_episode.expect(enough - 1, SHAPE)
    by_table.expect(enough, SHAPE)
    same(by_episode(episodes), by_table(episodes))
    assert few.paired == [(11, SHAPE.way * SHAPE.query, SHAPE.way * SHAPE.shot)]
    assert sum(math.prod(shape) for shape in many.paired) == len(features) ** 2
    by_table.expect(1, SHAPE)
    by_table(episodes)
    assert sum(math.prod(shape) for shape in many.paired) == len(features) ** 2, "the table was made again, or left"


def test_the_table_is_made_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clips()
    head = BestFrame(INPUTS).eval()
    monkeypatch.setattr(scorers, "MAX_HELD", head.footprint(10, 1, 10))
    scorer = HeadScorer(head, features)
    scorer.expect(10**6, SHAPE)
    episodes = draw(labels)
    same(scorer(episodes), score_loop(build(BestFrame), features, episodes))
    assert max(math.prod(shape) for shape in head.paired) == 8 * 8
    assert len(head.paired) == math.ceil(54 / 8) ** 2


def test_too_many_clips_make_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clips()
    head = BestFrame(INPUTS).eval()
    monkeypatch.setattr(scorers, "MAX_TABLE", 4 * len(features) ** 2 - 1)
    scorer = HeadScorer(head, features)
    scorer.expect(10**9, SHAPE)
    scorer(draw(labels))
    assert {shape[0] for shape in head.paired} == {11}


@pytest.mark.parametrize("head", [BestFrame, Contrast])
def test_encodings_that_do_not_fit_are_made_for_some_episodes_at_a_time(
    head: type[BestFrame | Contrast], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = clips()
    model = head(INPUTS).eval()
    with torch.no_grad():
        numbers = sum(part.numel() for part in model.encode(features[:1].float()))
    in_an_episode = SHAPE.way * (SHAPE.shot + SHAPE.query)
    monkeypatch.setattr(scorers, "MAX_KEPT", 4 * numbers * 2 * in_an_episode + 3)
    scorer = HeadScorer(model, features)
    scorer.expect(10**9, SHAPE)
    episodes = draw(labels)
    same(scorer(episodes), score_loop(build(head), features, episodes))
    made = [count for count in model.encoded if count > 1]  # some are single, to see the size
    assert len(made) == 6, "five pieces of two episodes, and one of one"
    assert max(made) <= 2 * in_an_episode
    assert "_table" not in scorer.__dict__


def test_episodes_are_scored_in_pieces_that_can_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clips()
    episodes = draw(labels)
    expected = score_loop(build(Contrast), features, episodes)
    numbers = INPUTS.frames * INPUTS.dim + 1
    held = 10 * SHAPE.way**2 * SHAPE.query + numbers * SHAPE.way * (SHAPE.shot + SHAPE.query)
    for most, pieces in ((4 * held, [4, 4, 3]), (4 * held - 1, [3, 3, 3, 2]), (1, [1] * 11)):
        monkeypatch.setattr(scorers, "MAX_HELD", most)
        head = Contrast(INPUTS).eval()
        same(HeadScorer(head, features)(episodes), expected)
        assert head.scored == pieces


def test_clips_are_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clips()
    episodes = draw(labels)
    monkeypatch.setattr(scorers, "ENCODED_AT_ONCE", 10 * (INPUTS.frames * INPUTS.dim + 1) + 5)
    head = Contrast(INPUTS).eval()
    same(HeadScorer(head, features)(episodes), score_loop(build(Contrast), features, episodes))
    assert head.encoded == [1, 10, 10, 10, 10, 10, 4]


def test_prototypes_go_the_way_of_inner_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prototypes, "LOOKUP_COST", 0)
    features, labels = clips()
    scorer = HeadScorer(build(MeanHead), features, scale=2.0)
    episodes = draw(labels)
    psi, centre = scorer.psi(episodes)
    assert "_grams" in scorer._prototypes.__dict__
    embedded = MeanHead(INPUTS).embed(features.double())
    middle = embedded[episodes.support].mean((1, 2))
    expected = 2.0 * 0.3 * (embedded[episodes.query.flatten(1)] - middle[:, None]).square().sum(-1)
    same(centre, expected.float())
    same(psi, -scorer(episodes))


def test_a_head_in_training_mode_is_a_mistake() -> None:
    with pytest.raises(AssertionError, match="training mode"):
        HeadScorer(MeanHead(INPUTS), clips()[0])


# --- several branches, and their evaluation -------------------------------------------------------------------------


def branches() -> tuple[ModelScorer, dict[str, tuple[Head, Tensor, float]], Tensor]:
    parts, labels = {}, clips()[1]
    for name, head, scale, seed in (("rgb", BestFrame, 0.2, 0), ("flow", MeanHead, 2.0, 1), ("more", Contrast, 3.0, 2)):
        parts[name] = (build(head), clips(seed)[0], scale)
    scorer = ModelScorer({name: HeadScorer(head, values, scale=scale) for name, (head, values, scale) in parts.items()})
    return scorer, parts, labels


def test_branches_stand_in_order_with_their_centres() -> None:
    scorer, parts, labels = branches()
    episodes = draw(labels)
    psi, centre = scorer(episodes)
    assert scorer.modalities == ("rgb", "flow", "more")
    for m, (head, values, scale) in enumerate(parts.values()):
        same(psi[m], -score_loop(head, values, episodes, scale))
    same(centre[0], psi[0].mean(-1))
    assert not torch.allclose(centre[1], psi[1].mean(-1))
    with pytest.raises(UserError, match="no modality"):
        ModelScorer({})


@pytest.mark.parametrize("fusion", ["late", "ami"])
def test_an_evaluation_of_any_heads_equals_plain_counting(fusion: str) -> None:
    scorer, parts, labels = branches()
    config = EvaluationConfig(SHAPE, 300, seed=3, fusion=fusion)
    result = evaluate_scorer(scorer, labels, range(CLASSES), config, method="mix")
    right = []
    sampler = EpisodeSampler(labels, range(CLASSES), SHAPE)
    for block in range(2):
        episodes = draw_block(sampler, config, block)
        psi = -torch.stack([score_loop(h, values, episodes, scale) for h, values, scale in parts.values()]).double()
        weight = psi.neg().softmax(-1).amax(-1, keepdim=True) if fusion == "ami" else torch.ones(3, 1, 1, 1)
        fused = (weight / weight.sum(0) * psi).sum(0)
        right.append((fused.argmin(-1) == SHAPE.query_labels()).sum(-1))
    expected = torch.cat(right)
    assert torch.equal(result.right, expected)
    assert result.right.dtype == torch.int64
    queries = SHAPE.way * SHAPE.query
    assert 100 / SHAPE.way + 5 < result.accuracy < 99
    assert result.accuracy == pytest.approx(100 * float(expected.double().mean()) / queries)
    assert result.ci95 == pytest.approx(196 * float(expected.double().std(correction=0)) / math.sqrt(300) / queries)
    assert "right" not in result.to_json()
    assert "right" not in repr(result)


def test_an_evaluation_tells_its_scorer_how_much_will_come() -> None:
    scorer, parts, labels = branches()
    head = parts["rgb"][0]
    assert isinstance(head, BestFrame)
    evaluate_scorer(scorer, labels, range(CLASSES), EvaluationConfig(SHAPE, 2))
    assert [shape[0] for shape in head.paired] == [1, 2]  # one episode to encode the clips, then both
    head.paired.clear()
    evaluate_scorer(scorer, labels, range(CLASSES), EvaluationConfig(SHAPE, 260))
    assert {shape[0] for shape in head.paired} == {1}


def test_a_belief_takes_heads_without_prototypes() -> None:
    scorer, _, labels = branches()
    sampler = EpisodeSampler(labels, range(CLASSES), SHAPE)
    psi, centre = score_episodes(scorer, sampler, EvaluationConfig(SHAPE, 60, seed=8))
    belief = fit_belief(psi, centre, SHAPE.query_labels())
    config = EvaluationConfig(SHAPE, 40, fusion="belief")
    result = evaluate_scorer(scorer, labels, range(CLASSES), config, belief=belief)
    assert result.accuracy == result.fusions["belief"][0] > 100 / SHAPE.way


@pytest.mark.parametrize("head", [BestFrame, Contrast])
def test_the_number_of_threads_changes_no_bit(
    head: type[BestFrame | Contrast], monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = clips()
    episodes = draw(labels)
    monkeypatch.setattr(scorers, "MAX_HELD", 4000)
    monkeypatch.setattr(scorers, "ENCODED_AT_ONCE", 300)
    before = torch.get_num_threads()
    seen = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for expected in (0, 10**6):
                with one_thread():
                    scorer = HeadScorer(build(head), features)
                    scorer.expect(expected, SHAPE)
                    seen.append(scorer(episodes))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not seen[2].requires_grad
