"""Temperatures and belief, fitted on base clips that did not train the heads that see them.

Clips that trained a head get overconfident posteriors from it. So the base classes are divided into folds; for each
fold heads are trained on the other classes, exactly as the model's were, and what they say of the fold's episodes is
what the temperatures and the belief are fitted on (method section 2: held-out episodes of the base classes).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .belief import fit_belief
from .episodes import EpisodeSampler, EpisodeShape
from .evaluate import EvaluationConfig, score_episodes
from .model import Model
from .prototypes import Scores
from .temperature import fit_temperature
from .train import Task, start_training, train

MAX_FOLDS = 3
"""Folds of the base classes at most: each costs a training."""

FOLD_EPISODES = 1000
"""Episodes a fold is scored on."""


def calibrate(model: Model, task: Task, episodes: int, rate: int = 0) -> None:
    """Set the model's temperatures and belief from held-out base classes; fewer than four classes leave it as it is.

    Args:
        model: Trained on all of the task's training classes.
        task: What it was trained on.
        episodes: How many episodes its weights saw: the folds' heads train as long.
        rate: Position of the learning rate that gave them.
    """
    config = replace(task.config, learning_rates=task.config.learning_rates[rate : rate + 1])
    task = replace(task, config=config)
    base = [*task.train_ids, *task.val_ids]
    if len(base) < 4:
        return
    folds = _folds(base, task.config.shape.way, task.config.seed)
    way = min(task.config.shape.way, *map(len, folds))
    shape = EpisodeShape(way, task.config.shape.shot, task.config.shape.query)
    held = [_score_fold(task, [c for c in base if c not in fold], fold, shape, episodes) for fold in folds]
    labels = shape.query_labels()
    distances = torch.cat([scores.psi for scores in held], 1)
    centres = torch.cat([scores.centre for scores in held], 1)
    temperatures = torch.tensor([fit_temperature(psi, labels) for psi in distances])
    model.set_temperatures(dict(zip(model.modalities, temperatures.tolist(), strict=True)))
    if len(model.modalities) > 1:
        model.belief = fit_belief(_scaled(distances, temperatures), _scaled(centres, temperatures), labels)


def _folds(class_ids: Sequence[int], way: int, seed: int) -> list[list[int]]:
    """Disjoint folds of equal size but for one; as many as leave `way` classes in each, two at least."""
    order = torch.randperm(len(class_ids), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(2, min(MAX_FOLDS, len(class_ids) // way))
    return [[class_ids[i] for i in order[fold::count]] for fold in range(count)]


def _score_fold(task: Task, others: Sequence[int], fold: Sequence[int], shape: EpisodeShape, episodes: int) -> Scores:
    """Distances at temperature 1 in episodes of the fold, by heads that were trained on the other classes."""
    way = min(task.config.shape.way, len(others))
    config = replace(task.config, episodes=episodes, shape=replace(task.config.shape, way=way))
    part = replace(task, train_ids=others, val_ids=(), config=config)
    training = start_training(part)
    for _ in train(part, training):
        pass
    clips = task.clips_of(fold)
    sampler = EpisodeSampler(task.labels[clips], fold, shape, task.class_names)
    model = training.model.eval()
    model.set_temperatures(dict.fromkeys(model.modalities, 1.0))
    scorer = model.scorer(task.features, clips)
    return score_episodes(scorer, sampler, EvaluationConfig(shape, FOLD_EPISODES, task.config.seed))


def _scaled(values: Tensor, temperatures: Tensor) -> Tensor:
    return values * temperatures.view(-1, *[1] * (values.ndim - 1))
