"""The speed of meta-training, as a ratio within one run: beside one episode at a time."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..meta.active import observe
from ..meta.episodes import Episodes, EpisodeSampler
from ..meta.methods import parse_method
from ..meta.objective import objective
from ..meta.profiles import load_profile
from ..meta.threads import one_thread
from ..meta.train import Task, TrainConfig, Training, start_training, train
from .bench_eval import Clips, require_heads
from .fresh import in_fresh_process


def bench_train(
    names: Sequence[str], clips: Clips, config: TrainConfig, head_episodes: int, plain_episodes: int
) -> dict[str, Any]:
    """Train on random features without validation, and again one episode at a time.

    Args:
        names: `amfir` (two modalities), and heads (one).
        clips: To draw episodes from; every class is a training class.
        config: Of AMFIR's training.
        head_episodes: Of every other head's.
        plain_episodes: Of the training one episode at a time.

    Returns:
        plain_episodes, and methods: name -> episodes, seconds, episodes_per_second, plain_per_second, speedup (their
        ratio; one thread on both sides, as many episodes an update), peak_mib (of a process that did nothing else).

    Raises:
        UserError: If a name is unknown, or a head needs what these clips do not have.
    """
    require_heads(names)
    methods = {}
    for name in names:
        episodes = config.episodes if name == "amfir" else head_episodes
        figures, peak = in_fresh_process(measure, name, clips, replace(config, episodes=episodes), plain_episodes)
        methods[name] = {"episodes": episodes, **figures, "peak_mib": peak}
    return {"plain_episodes": plain_episodes, "methods": methods}


@one_thread()
def measure(name: str, clips: Clips, config: TrainConfig, plain_episodes: int) -> dict[str, Any]:
    """One method's figures, without the memory."""
    method = parse_method(name)
    features, labels = clips.features(["rgb"] if method.single else ["rgb", "flow"])
    names = [f"class {i}" for i in range(clips.classes)]
    task = Task(features, labels, range(clips.classes), (), names, method, load_profile(method.head), config)
    training = start_training(task)
    started = time.perf_counter()
    for _ in train(task, training):
        pass
    seconds = time.perf_counter() - started
    sampler = EpisodeSampler(labels, task.train_ids, config.shape)
    started = time.perf_counter()
    for first in range(0, plain_episodes, config.batch_episodes):
        count = min(config.batch_episodes, plain_episodes - first)
        plain_update(task, training, sampler.sample(count, training.generator))
    plain_seconds = time.perf_counter() - started
    rates = config.episodes / seconds, plain_episodes / plain_seconds
    return {
        "seconds": seconds,
        "episodes_per_second": rates[0],
        "plain_per_second": rates[1],
        "speedup": rates[0] / rates[1],
    }


def plain_update(task: Task, training: Training, episodes: Episodes) -> None:
    """One update, as a loop has it: each episode goes through the model by itself and adds its gradient."""
    model, labels = training.model.train(), task.config.shape.query_labels()
    training.optimizer.zero_grad()
    for e in range(len(episodes)):
        episode = episodes[e : e + 1]
        # Every class is a training class: its id is its place among them.
        psi, losses = model.learn(task.features, episode, labels, task.labels[episode.support[..., 0]])
        total = objective(observe(psi, labels), model.modalities, task.method.objective, losses).total
        if total.requires_grad:
            (total / len(episodes)).backward()  # type: ignore[no-untyped-call]
    penalty = model.penalty()
    if penalty.requires_grad:
        penalty.backward()  # type: ignore[no-untyped-call]
    training.optimizer.step()
