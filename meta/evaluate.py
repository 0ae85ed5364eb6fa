"""Accuracy over many episodes: every clip is encoded once, the episodes are batched tensor operations.

Episodes come in blocks of 250 with a generator each, seeded by (seed, block), and every result is a sum of integers:
however the blocks are spread over processes, the numbers are the same to the last digit.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from .active import Observation, observe
from .belief import Belief
from .confusable import ConfusableSampler, class_means
from .episodes import Episodes, EpisodeSampler
from .evaluation import BLOCK_EPISODES, Evaluation, EvaluationConfig, conclude
from .prototypes import Planner, PrototypeScorer, Scorer, Scores
from .tally import DIAGNOSED, Counts, Share, Tally, count, join
from .threads import one_thread

__all__ = [
    "BLOCK_EPISODES",
    "DIAGNOSED",
    "MAX_VALUES",
    "BlockJob",
    "Counts",
    "Engine",
    "Evaluation",
    "EvaluationConfig",
    "Share",
    "count_blocks",
    "draw_block",
    "evaluate",
    "evaluate_scorer",
    "here",
    "join",
    "make_sampler",
    "observations",
    "score_episodes",
]

MAX_VALUES = 2**16
"""Distances of an episode chunk held at once: some ten tensors of this size then stay in the processor's cache."""

Part = TypeVar("Part")


class Engine(Protocol):
    """Runs the blocks of an evaluation, here or elsewhere."""

    def __call__(self, job: Callable[[int], Part], num_blocks: int, take: Callable[[Part], None]) -> None:
        """Hand `job(block)` of each block to `take`, in the order of the blocks."""


def here(job: Callable[[int], Part], num_blocks: int, take: Callable[[Part], None]) -> None:
    """Run the blocks one after another in this process."""
    with one_thread():
        for block in range(num_blocks):
            take(job(block))


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
    engine: Engine = here,
    watch: Callable[[Counts], None] | None = None,
) -> Evaluation:
    """Evaluate nearest mean prototypes on embedded clips; see `evaluate_scorer` for the other arguments.

    Args:
        embeddings: Modality -> [clips, d] on the CPU, see `prototypes.encode_clips`.
        labels: Class id of each clip, [clips].
        class_ids: The classes the episodes draw from; clips of other classes are not touched.
        config: Episodes and fusion.
        method: Name for the result.
        temperatures: Modality -> factor of its distances; 1 where left out.
        distance: A key of `prototypes.DISTANCES`.
        belief: Fitted on these modalities in this order.
        class_names: `class_names[i]` names class id i.
        engine: Runs the blocks.
        watch: Told the counts of each block, in order.

    Raises:
        UserError: If the episodes cannot be drawn, or the fusion or criterion lacks its input.
    """
    used = torch.nonzero(torch.isin(labels, torch.tensor(list(class_ids)))).flatten()
    own, own_labels = {name: values[used] for name, values in embeddings.items()}, labels[used]
    return evaluate_scorer(
        PrototypeScorer(own, temperatures, distance),
        own_labels,
        class_ids,
        config,
        method=method,
        belief=belief,
        class_names=class_names,
        means=class_means(own, own_labels, class_ids, temperatures) if config.sampler == "hard" else None,
        engine=engine,
        watch=watch,
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
    means: Tensor | None = None,
    engine: Engine = here,
    watch: Callable[[Counts], None] | None = None,
) -> Evaluation:
    """Evaluate anything that scores episodes.

    Args:
        scorer: Turns clip indices into distances.
        labels: Class id of each clip that the scorer knows, [clips].
        class_ids: The classes the episodes draw from.
        config: Episodes and fusion.
        method: Name for the result.
        belief: Fitted on the scorer's modalities in this order.
        class_names: `class_names[i]` names class id i.
        means: A vector for each class [C, d], see `confusable.class_means`: for the sampler `hard`.
        engine: Runs the blocks; the figures do not depend on it.
        watch: Told the counts of each block, in order.

    Raises:
        UserError: If the episodes cannot be drawn, or the fusion or criterion lacks its input.
    """
    start = time.perf_counter()
    sampler = make_sampler(labels, class_ids, config, means, class_names)
    job = BlockJob(scorer, sampler, config, belief)
    job.prepare()
    tally = Tally(len(class_ids), config.fusion, config.keep)

    def take(counts: Counts) -> None:
        tally.add(counts)
        if watch:
            watch(counts)

    engine(job, config.num_blocks, take)
    names = [str(class_id) if class_names is None else class_names[class_id] for class_id in class_ids]
    return conclude(tally, config, method, names, time.perf_counter() - start)


def make_sampler(
    labels: Tensor,
    class_ids: Sequence[int],
    config: EvaluationConfig,
    means: Tensor | None = None,
    class_names: Sequence[str] | None = None,
) -> EpisodeSampler:
    """The sampler that a configuration asks for; arguments and errors as `evaluate_scorer` has them."""
    if config.sampler == "uniform":
        return EpisodeSampler(labels, class_ids, config.shape, class_names)
    assert means is not None, "confusable classes are found by their means"
    return ConfusableSampler(labels, class_ids, config.shape, means, class_names)


@dataclass(frozen=True, eq=False)
class BlockJob:
    """All that counting a block takes; it can travel to another process."""

    scorer: Scorer
    """Turns clip indices into distances."""
    sampler: EpisodeSampler
    """Of the same clips, with the configuration's shape."""
    config: EvaluationConfig
    """Episodes and fusion."""
    belief: Belief | None = None
    """Adds its weights to the observations."""

    def __call__(self, block: int) -> Counts:
        """Count right predictions in a block."""
        return count_blocks(self.scorer, self.sampler, self.config, [block], belief=self.belief)

    @one_thread()
    def prepare(self) -> None:
        """Plan for all episodes and score one, so that clips are encoded before the job travels, and only once."""
        if isinstance(self.scorer, Planner):
            self.scorer.expect(self.config.episodes, self.config.shape)
        self.scorer(draw_block(self.sampler, self.config, 0)[:1])


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
    parts = []
    with one_thread():
        for episodes, seen in observations(scorer, sampler, config, blocks, belief=belief, max_values=max_values):
            classes = sampler.positions[episodes.support[..., 0]]
            parts.append(
                count(seen, labels, classes, sampler.num_classes, scorer.modalities, config.fusion, config.criterion)
            )
    return join(parts)


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
