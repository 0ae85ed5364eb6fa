"""Accuracy over many episodes: every clip is encoded once, the episodes are batched tensor operations.

Episodes come in blocks of 250 with a generator each, seeded by (seed, block), and every result is a sum of integers:
however the blocks are spread over processes, the numbers are the same to the last digit.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..cache.errors import UserError, pick
from .active import CRITERIA, FUSIONS, Observation, fuse, observe, unreliability
from .belief import Belief
from .episodes import Episodes, EpisodeSampler, EpisodeShape
from .prototypes import Planner, PrototypeScorer, Scorer, Scores
from .threads import one_thread

BLOCK_EPISODES = 250
"""Episodes that share a generator. Part of what a seed means: another value, other episodes."""

MAX_VALUES = 2**16
"""Distances of an episode chunk held at once: some ten tensors of this size then stay in the processor's cache."""

DIAGNOSED = tuple(name for name, scores in CRITERIA.items() if len(scores) == 1 and not name.startswith("certainty-"))
"""Criteria whose selection accuracy is reported, where their input is at hand."""

Share = tuple[float, float]
"""Accuracy and half-width of its 95 % confidence interval, percent."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Which episodes, and how their modalities are fused."""

    shape: EpisodeShape = field(default_factory=EpisodeShape)
    """Way, shot and query."""
    episodes: int = 10_000
    """Number of episodes."""
    seed: int = 0
    """Seed of the episodes; equal seeds give equal episodes, and fewer episodes are the first of more."""
    fusion: str = "ami"
    """The fusion whose accuracy is the result's, a key of `FUSIONS`."""
    criterion: str = "free-energy"
    """What the fusion `select` selects by, a key of `CRITERIA`."""

    def __post_init__(self) -> None:
        """Refuse unknown names and counts that mean nothing."""
        pick(FUSIONS, self.fusion, "fusion")
        pick(CRITERIA, self.criterion, "criterion")
        if self.episodes < 1:
            raise UserError(f"episodes is {self.episodes}; an accuracy needs at least 1; raise --episodes")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; seeds start at 0; give --seed 0 or more")

    @property
    def num_blocks(self) -> int:
        """Blocks that hold the episodes; the last one may be cut."""
        return -(-self.episodes // BLOCK_EPISODES)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; accuracies and intervals in percent."""

    method: str
    """Name of the method, as the caller calls it."""
    shape: EpisodeShape
    """Way, shot and query."""
    episodes: int
    """Number of episodes."""
    accuracy: float
    """Mean accuracy of the configured fusion."""
    ci95: float
    """Half-width of its 95 % confidence interval."""
    modalities: dict[str, Share]
    """Each modality alone."""
    fusions: dict[str, Share]
    """Each fusion; `belief` only where one was fitted."""
    selection_accuracy: dict[str, float]
    """How often each criterion picks the right modality among the queries where exactly one is right, and how often
    `always-<modality>` would; empty with one modality, or where there is no such query."""
    seconds: float
    """Time the evaluation took."""
    right: Tensor = field(compare=False, repr=False)
    """Right queries of each episode by the configured fusion, int64 [E]: for paired differences on equal episodes."""

    @property
    def episodes_per_second(self) -> float:
        """Speed."""
        return self.episodes / self.seconds

    def to_json(self) -> dict[str, object]:
        """The object that `eval --json` prints."""
        return {
            "method": self.method,
            "way": self.shape.way,
            "shot": self.shape.shot,
            "query": self.shape.query,
            "episodes": self.episodes,
            "accuracy": self.accuracy,
            "ci95": self.ci95,
            "modalities": {name: {"accuracy": a, "ci95": c} for name, (a, c) in self.modalities.items()},
            "fusions": {name: {"accuracy": a, "ci95": c} for name, (a, c) in self.fusions.items()},
            "selection_accuracy": self.selection_accuracy,
            "seconds": self.seconds,
            "episodes_per_second": self.episodes_per_second,
        }


def evaluate(
    embeddings: Mapping[str, Tensor],
    labels: Tensor,
    class_ids: Sequence[int],
    config: EvaluationConfig,
    *,
    method: str = "amfir",
    temperatures: Mapping[str, float] | None = None,
    distance: str = "squared-euclidean",
    belief: Belief | None = None,
    class_names: Sequence[str] | None = None,
) -> Evaluation:
    """Evaluate nearest mean prototypes on embedded clips.

    Args:
        embeddings: Modality -> [clips, d] on the CPU, see `prototypes.encode_clips`.
        labels: Class id of each clip, [clips].
        class_ids: The classes the episodes draw from; clips of other classes are not touched.
        config: Episodes and fusion.
        method: Name for the result.
        temperatures: Modality -> factor of its distances; 1 where left out.
        distance: A key of `prototypes.DISTANCES`.
        belief: Fitted on these modalities in this order.
        class_names: `class_names[i]` names class id i in errors.

    Raises:
        UserError: If the episodes cannot be drawn, or the fusion or criterion lacks its input.
    """
    used = torch.nonzero(torch.isin(labels, torch.tensor(list(class_ids)))).flatten()
    scorer = PrototypeScorer({name: values[used] for name, values in embeddings.items()}, temperatures, distance)
    return evaluate_scorer(
        scorer, labels[used], class_ids, config, method=method, belief=belief, class_names=class_names
    )


def evaluate_scorer(
    scorer: Scorer,
    labels: Tensor,
    class_ids: Sequence[int],
    config: EvaluationConfig,
    *,
    method: str = "amfir",
    belief: Belief | None = None,
    class_names: Sequence[str] | None = None,
) -> Evaluation:
    """Evaluate anything that scores episodes; see `evaluate` for the other arguments.

    Args:
        scorer: Turns clip indices into distances.
        labels: Class id of each clip that the scorer knows, [clips].
        class_ids: The classes the episodes draw from.
        config: Episodes and fusion.
        method: Name for the result.
        belief: Fitted on the scorer's modalities in this order.
        class_names: `class_names[i]` names class id i in errors.

    Raises:
        UserError: If the episodes cannot be drawn, or the fusion or criterion lacks its input.
    """
    start = time.perf_counter()
    sampler = EpisodeSampler(labels, class_ids, config.shape, class_names)
    counts = count_blocks(scorer, sampler, config, range(config.num_blocks), belief=belief)
    return summarise(counts, config, method, time.perf_counter() - start)


@dataclass(frozen=True, eq=False)
class Counts:
    """Integers that an evaluation comes down to; those of disjoint blocks join."""

    modalities: dict[str, Tensor]
    """Right queries of each episode, modality alone, int64 [E]."""
    fusions: dict[str, Tensor]
    """Right queries of each episode, fused, int64 [E]."""
    selected: dict[str, int]
    """Contested queries for which a criterion, or `always-<modality>`, picks the right modality."""
    contested: int
    """Queries for which exactly one modality is right."""


def count_blocks(
    scorer: Scorer,
    sampler: EpisodeSampler,
    config: EvaluationConfig,
    blocks: Sequence[int],
    *,
    belief: Belief | None = None,
    max_values: int = MAX_VALUES,
) -> Counts:
    """Count right predictions in some blocks of an evaluation; arguments as `observations` and `evaluate` have them."""
    labels = config.shape.query_labels()
    chunks = observations(scorer, sampler, config, blocks, belief=belief, max_values=max_values)
    with one_thread():
        return join([_count(seen, labels, scorer.modalities, config) for _, seen in chunks])


def observations(
    scorer: Scorer,
    sampler: EpisodeSampler,
    config: EvaluationConfig,
    blocks: Sequence[int],
    *,
    belief: Belief | None = None,
    max_values: int = MAX_VALUES,
) -> Iterator[tuple[Episodes, Observation]]:
    """Score the episodes of some blocks, chunk by chunk, in order.

    Args:
        scorer: Turns clip indices into distances.
        sampler: Of the same clips, with the configuration's shape.
        config: Seed and number of episodes.
        blocks: Numbers below `config.num_blocks`.
        belief: Adds its weights to the observations.
        max_values: Distances held at once; episodes are scored one by one where a single one has more.

    Yields:
        Episodes and what the modalities show of them, unlabelled.
    """
    for episodes, (psi, centre) in _score(scorer, sampler, config, blocks, max_values):
        log_belief = None if belief is None else belief.log_weights(psi, centre)
        yield episodes, observe(psi, log_belief=log_belief)


def score_episodes(scorer: Scorer, sampler: EpisodeSampler, config: EvaluationConfig) -> Scores:
    """All distances of an evaluation's episodes in one piece: what temperatures and beliefs are fitted on."""
    with one_thread():
        parts = [scores for _, scores in _score(scorer, sampler, config, range(config.num_blocks), MAX_VALUES)]
    return Scores(torch.cat([part.psi for part in parts], 1), torch.cat([part.centre for part in parts], 1))


def _score(
    scorer: Scorer, sampler: EpisodeSampler, config: EvaluationConfig, blocks: Sequence[int], max_values: int
) -> Iterator[tuple[Episodes, Scores]]:
    shape = config.shape
    if isinstance(scorer, Planner):
        scorer.expect(min(config.episodes, len(blocks) * BLOCK_EPISODES), shape)
    values = len(scorer.modalities) * shape.way**2 * shape.query * shape.shot
    chunk = max(1, max_values // values)
    for block in blocks:
        episodes = draw_block(sampler, config, block)
        for start in range(0, len(episodes), chunk):
            part = episodes[start : start + chunk]
            yield part, scorer(part)


def draw_block(sampler: EpisodeSampler, config: EvaluationConfig, block: int) -> Episodes:
    """The episodes of one block; the last block of an evaluation is cut, not drawn otherwise."""
    state = np.random.SeedSequence((config.seed, block)).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0]))
    return sampler.sample(BLOCK_EPISODES, generator)[: config.episodes - block * BLOCK_EPISODES]


def _count(seen: Observation, labels: Tensor, modalities: Sequence[str], config: EvaluationConfig) -> Counts:
    # `max(...).indices` is the first of equals, as argmax is, and far faster where the axis is not the last in memory.
    right = seen.psi.argmin(-1) == labels
    names = [name for name in FUSIONS if name != "belief" or seen.log_belief is not None or config.fusion == name]
    fused = {name: fuse(seen, name, config.criterion)[0].max(-1).indices == labels for name in names}
    contested = right.sum(0) == 1
    selected = {f"always-{name}": int((hit & contested).sum()) for name, hit in zip(modalities, right, strict=True)}
    for name in DIAGNOSED:
        if name == "evidence" or (name == "belief" and seen.log_belief is None):
            continue
        choice = unreliability(seen, name).min(0, keepdim=True).indices
        selected[name] = int((right.gather(0, choice)[0] & contested).sum())
    return Counts(
        {name: hit.sum(-1) for name, hit in zip(modalities, right, strict=True)},
        {name: hit.sum(-1) for name, hit in fused.items()},
        selected,
        int(contested.sum()),
    )


def join(parts: Sequence[Counts]) -> Counts:
    """The counts of several blocks' episodes, in the order given."""
    first = parts[0]
    return Counts(
        {name: torch.cat([part.modalities[name] for part in parts]) for name in first.modalities},
        {name: torch.cat([part.fusions[name] for part in parts]) for name in first.fusions},
        {name: sum(part.selected[name] for part in parts) for name in first.selected},
        sum(part.contested for part in parts),
    )


def summarise(counts: Counts, config: EvaluationConfig, method: str, seconds: float) -> Evaluation:
    """Accuracies, intervals and selection accuracies in percent."""
    queries = config.shape.way * config.shape.query
    fusions = {name: _share(right, queries) for name, right in counts.fusions.items()}
    many = len(counts.modalities) > 1 and counts.contested > 0
    return Evaluation(
        method=method,
        shape=config.shape,
        episodes=config.episodes,
        accuracy=fusions[config.fusion][0],
        ci95=fusions[config.fusion][1],
        modalities={name: _share(right, queries) for name, right in counts.modalities.items()},
        fusions=fusions,
        selection_accuracy={n: 100 * hits / counts.contested for n, hits in counts.selected.items()} if many else {},
        seconds=seconds,
        right=counts.fusions[config.fusion],
    )


def _share(right: Tensor, queries: int) -> Share:
    """Mean accuracy of the episodes and 1.96 population standard deviations over sqrt(E), percent, from exact sums."""
    num, total, squares = len(right), int(right.sum()), int(right.square().sum())
    variance = (num * squares - total**2) / num**2
    return 100 * total / (num * queries), 100 * 1.96 * math.sqrt(variance / num) / queries
