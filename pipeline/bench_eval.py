"""The speed of evaluation, as a ratio within one run: beside a plain loop over episodes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..cache.errors import UserError, pick
from ..meta.active import fuse
from ..meta.episodes import Episodes, EpisodeSampler
from ..meta.evaluate import EvaluationConfig, draw_block, evaluate_scorer, observations
from ..meta.heads import HEADS, Encoding, Head
from ..meta.methods import METHODS, parse_method
from ..meta.model import Model, build_model
from ..meta.profiles import load_profile
from ..meta.reference import evaluate_loop, score_loop
from ..meta.threads import one_thread
from .fresh import in_fresh_process

TIE = 1e-5
"""Predictions may differ where the two best classes' logits are nearer than this, relative to the largest."""


@dataclass(frozen=True)
class Clips:
    """Random clips to measure on."""

    classes: int = 24
    clips: int = 100
    """Of each class."""
    frames: int = 8
    dim: int = 512

    def features(self, modalities: Sequence[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Noisy clusters: modality -> [clips, 1, T, D] float16, and the labels."""
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(self.classes).repeat_interleave(self.clips)
        features = {}
        for name in modalities:
            means = torch.randn(self.classes, 1, 1, self.dim, generator=generator)
            noise = torch.randn(len(labels), 1, self.frames, self.dim, generator=generator)
            features[name] = (0.3 * means[labels] + 3 * noise).half()
        return features, labels


CLIPS = Clips()
"""What the commands measure on."""


def bench_eval(names: Sequence[str], clips: Clips, config: EvaluationConfig, loop_episodes: int) -> dict[str, Any]:
    """Evaluate heads on random features, batched and by a loop over episodes, and compare predictions.

    Args:
        names: `amfir` (two modalities), and heads (one).
        clips: To draw episodes from.
        config: The episodes; each method fuses in its own way.
        loop_episodes: Of the plain loop: the first so many of the same episodes.

    Returns:
        episodes, loop_episodes, and methods: name -> seconds, loop_seconds, speedup (episodes per second, batched /
        loop; encoding is counted on both sides, one thread on both), different (predictions that differ though no tie),
        peak_mib (of a process that did nothing else).

    Raises:
        UserError: If a name is unknown, or a head needs what these clips do not have.
    """
    require_heads(names)
    methods = {}
    for name in names:
        figures, peak = in_fresh_process(measure, name, clips, config, loop_episodes)
        methods[name] = {**figures, "peak_mib": peak}
    return {"episodes": config.episodes, "loop_episodes": loop_episodes, "methods": methods}


def require_heads(names: Sequence[str]) -> None:
    """Refuse what is neither `amfir` nor a head, and nothing at all.

    Raises:
        UserError: Naming the nearest.
    """
    if not names:
        raise UserError("no head to measure; --heads; give some, such as --heads amfir,otam")
    for name in names:
        pick({"amfir": METHODS["amfir"], **HEADS}, name, "head")


@one_thread()
def measure(name: str, clips: Clips, config: EvaluationConfig, loop_episodes: int) -> dict[str, Any]:
    """One method's figures, without the memory."""
    method = parse_method(name)
    config = replace(config, fusion=method.fusion)
    features, labels = clips.features(["rgb"] if method.single else ["rgb", "flow"])
    class_ids = range(clips.classes)
    model = build_model(
        features, labels, class_ids, method, load_profile(method.head), torch.Generator().manual_seed(0)
    ).eval()
    sampler = EpisodeSampler(labels, class_ids, config.shape)
    episodes = draw_block(sampler, config, 0)[:loop_episodes]
    started = time.perf_counter()
    scorer = model.scorer(features)
    evaluate_scorer(scorer, labels, class_ids, config)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    looped = _loop(model, features, episodes)
    loop_seconds = time.perf_counter() - started
    batched = torch.cat([fuse(seen, config.fusion)[0] for _, seen in observations(scorer, sampler, config, [0])])
    return {
        "seconds": seconds,
        "loop_seconds": loop_seconds,
        "speedup": (config.episodes / seconds) / (len(episodes) / loop_seconds),
        "different": count_different(looped, batched[: len(episodes)]),
    }


def _loop(model: Model, features: dict[str, Tensor], episodes: Episodes) -> Tensor:
    """Logits [E, NQ, N], one episode at a time: of one head, or of AMFIR's fused by AMI."""
    if len(features) == 1:
        (name,) = features
        return score_loop(model.head(name), features[name][:, 0], episodes)
    heads = {name: partial(_embed, model.head(name)) for name in features}
    return evaluate_loop(features, heads, model.temperatures, episodes)


def _embed(head: Head, clips: Tensor) -> Tensor:
    encoding: Encoding = head.encode(clips)
    return encoding[0]


def count_different(looped: Tensor, batched: Tensor) -> int:
    """Predictions that differ though they are no tie, of logits [E, NQ, N]."""
    best, second = looped.topk(2, -1).values.unbind(-1)
    clear = best - second > TIE * looped.abs().amax(-1).clamp_min(1)
    return int(((looped.argmax(-1) != batched.argmax(-1)) & clear).sum())
