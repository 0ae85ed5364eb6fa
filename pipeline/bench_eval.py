"""The speed of evaluation, as a ratio within one run: beside a plain loop over episodes."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from ..meta.active import fuse
from ..meta.episodes import EpisodeSampler
from ..meta.evaluate import EvaluationConfig, draw_block, evaluate, observations
from ..meta.heads import HeadConfig
from ..meta.model import Model, fit_model
from ..meta.prototypes import PrototypeScorer
from ..meta.reference import evaluate_loop
from ..meta.threads import one_thread

TIE = 1e-5
"""Predictions may differ where the two best classes' log posteriors are nearer than this."""


@dataclass(frozen=True)
class EvalBench:
    """Sizes of `bench_eval`."""

    classes: int = 24
    clips: int = 100
    """Of each class."""
    frames: int = 8
    dim: int = 1280
    loop_episodes: int = 200
    """Of the plain loop, the first so many of the same episodes."""


@one_thread()
def bench_eval(sizes: EvalBench, config: EvaluationConfig) -> dict[str, Any]:
    """Evaluate AMFIR on random features, batched and by a loop over episodes, and compare predictions.

    Returns:
        episodes, seconds, loop_episodes, loop_seconds, speedup (episodes per second, batched / loop; encoding every
        clip is counted on both sides, one thread on both), different (predictions that differ though no tie).
    """
    features, labels = _random_features(sizes)
    class_ids = list(range(sizes.classes))
    model = fit_model(features, labels, class_ids, HeadConfig(), torch.Generator().manual_seed(0)).eval()
    started = time.perf_counter()
    embeddings = model.embed(features)
    evaluate(embeddings, labels, class_ids, config, temperatures=model.temperatures)
    seconds = time.perf_counter() - started
    loop_seconds, different = _loop(model, features, labels, class_ids, config, sizes.loop_episodes)
    speedup = (config.episodes / seconds) / (sizes.loop_episodes / loop_seconds)
    return {
        "episodes": config.episodes,
        "seconds": seconds,
        "loop_episodes": sizes.loop_episodes,
        "loop_seconds": loop_seconds,
        "speedup": speedup,
        "different": different,
    }


def _random_features(sizes: EvalBench) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(sizes.classes).repeat_interleave(sizes.clips)
    features = {}
    for name in ("rgb", "flow"):
        means = torch.randn(sizes.classes, 1, 1, sizes.dim, generator=generator)
        noise = torch.randn(len(labels), 1, sizes.frames, sizes.dim, generator=generator)
        features[name] = (0.3 * means[labels] + 3 * noise).half()
    return features, labels


def _loop(
    model: Model,
    features: dict[str, torch.Tensor],
    labels: torch.Tensor,
    class_ids: list[int],
    config: EvaluationConfig,
    count: int,
) -> tuple[float, int]:
    """Seconds of the plain loop over the first episodes, and predictions that differ from the batched ones."""
    sampler = EpisodeSampler(labels, class_ids, config.shape)
    episodes = draw_block(sampler, config, 0)[:count]
    heads = {name: model.head(name) for name in model.modalities}
    started = time.perf_counter()
    looped = evaluate_loop(features, heads, model.temperatures, episodes)
    seconds = time.perf_counter() - started
    scorer = PrototypeScorer(model.embed(features), model.temperatures)
    batched = torch.cat([fuse(seen, "ami")[0] for _, seen in observations(scorer, sampler, config, [0])])[:count]
    best, second = looped.topk(2, -1).values.unbind(-1)
    differs = (looped.argmax(-1) != batched.argmax(-1)) & (best - second > TIE)
    return seconds, int(differs.sum())
