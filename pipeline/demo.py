"""The demo: synthetic clips, both stages, and a picture at the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.errors import MachineError
from ..extract.config import ExtractConfig
from ..extract.decode import Want, decode_clip
from ..extract.flow import HOST_BACKENDS, FarnebackParameters
from ..extract.flow.render import render
from ..extract.job import extract
from ..extract.sampling import Sampling
from ..meta.evaluate import EvaluationConfig
from ..meta.methods import parse_method
from .datasets import list_clips
from .features import FeatureSet, load_features
from .plots import plot_demo
from .runs import RunPlan, evaluate_run, evaluate_untrained, train_run
from .splits import ClassSplit, load_split
from .synth import generate

Progress = Callable[[str, int, int, str], None]
"""Called with the stage, what is ready of it, its total, and a note."""

METHODS = ("temporal-lf", "amfar", "amfir")
"""What it trains: the same heads each by itself, by AMFAR, by AMFIR."""


@dataclass(frozen=True)
class DemoConfig:
    """Size of the demo: this one takes some two minutes on two cores."""

    classes: int = 24
    clips_per_class: int = 10
    image_size: int = 160
    """Side of clips and network inputs in pixels."""
    training: RunPlan = field(default_factory=lambda: RunPlan(episodes=640))
    """Its episodes' shape is the evaluation's too; its method is not looked at."""
    episodes: int = 10_000
    """Episodes of each evaluation."""


@dataclass(frozen=True)
class Demo:
    """What the demo found."""

    seconds: float
    """Wall time."""
    results: list[dict[str, Any]]
    """Objects as `eval --json` prints them, one a method, AMFIR's last."""
    picture: Path
    """PNG."""

    def to_json(self) -> dict[str, Any]:
        """The object that `demo --json` prints."""
        return {"seconds": self.seconds, "results": self.results, "picture": str(self.picture)}


def run_demo(out: Path, progress: Progress, config: DemoConfig | None = None) -> Demo:
    """Run everything, or what is missing of it, in the directory `out`.

    Raises:
        UserError: If the directory holds something else.
        MachineError: If a clip that was just written cannot be extracted.
    """
    started = time.monotonic()
    config = config or DemoConfig()
    videos, cache = out / "videos", out / "cache"
    if not (videos / "split.toml").is_file():
        generate(
            videos,
            classes=config.classes,
            clips_per_class=config.clips_per_class,
            size=config.image_size,
            progress=lambda ready, total: progress("clips", ready, total, ""),
        )
    settings = ExtractConfig(size=config.image_size)
    report = extract(
        list_clips(videos), cache, settings, lambda p: progress("features", p.done + p.skipped, p.total, "")
    )
    progress("features", report.done + report.skipped, report.clips, "")
    if report.failed:
        first = report.failures[0]
        raise MachineError(f"{first.clip_id} cannot be extracted ({first.message}); delete {out} and try again")
    data = load_features(cache)
    split = load_split(str(videos / "split.toml"), data.class_names)
    results = _results(data, split, out, progress, config)
    picture = out / "demo.png"
    plot_demo(results, _pictures(videos, split, config), picture)
    return Demo(time.monotonic() - started, results, picture)


def _results(
    data: FeatureSet, split: ClassSplit, out: Path, progress: Progress, config: DemoConfig
) -> list[dict[str, Any]]:
    """Untrained prototypes, then each method trained and evaluated."""
    evaluation = EvaluationConfig(config.training.shape, config.episodes, fusion="late")
    results = [evaluate_untrained(data, split, evaluation).to_json()]
    for name in METHODS:
        folder = out / "runs" / name
        if not (folder / "model.json").is_file():
            train_run(
                data,
                split,
                folder,
                replace(config.training, method=name),
                resume=True,
                progress=lambda ready, total, note, name=name: progress(name, ready, total, note),  # type: ignore[misc]
            )
        results.append(
            evaluate_run(data, split, [folder], replace(evaluation, fusion=parse_method(name).fusion)).to_json()
        )
    return results


def _pictures(
    videos: Path, split: ClassSplit, config: DemoConfig
) -> list[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """A frame and its flow of one clip of each of the first eight test classes, some of them spoiled."""
    flow = HOST_BACKENDS["opencv"](FarnebackParameters())
    wants = {"rgb": Want(config.image_size), "flow": Want(config.image_size, pairs=True)}
    pictures = []
    for number, name in enumerate(split.test[:8]):
        path = videos / name / f"{number % config.clips_per_class:03d}.mp4"
        sampled = decode_clip(path, Sampling(frames=3), wants, clip_id=path.name)
        pictures.append((name, sampled.arrays["rgb"][0, 1], render(flow(sampled.arrays["flow"][0, 1:2]))[0]))
    return pictures
