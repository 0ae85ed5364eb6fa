"""`amfir train`: meta-train the heads on cached features."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cache.errors import UserError, pick
from ..console import json_option, print_json, resumable
from .stage2 import episode_options

if TYPE_CHECKING:
    from ...meta.train import Training


@click.command()
@episode_options
@click.option("--run", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Where it goes.")
@click.option("--method", default="amfir", show_default=True, help="amfir, amfar or protonet-lf.")
@click.option("--episodes", default=2000, show_default=True, help="Training episodes at most.")
@click.option("--optimizer", default="adamw", show_default=True, help="adamw, or the papers' sgd.")
@click.option("--learning-rate", default=1e-4, show_default=True, help="Step size.")
@click.option("--hold", default=1e4, show_default=True, help="How firmly the heads are held to their start.")
@click.option("--criterion", help="Criterion of ASI for the groups.  [default: the method's]")
@click.option("--strategy", help="mutual, none or MODALITY-teacher.  [default: the method's]")
@click.option("--fusion", help="Fusion that validation looks at.  [default: the method's]")
@click.option("--resume", is_flag=True, help="Go on with the training in --run.")
@json_option
def train(cache: Path, split: str, folder: Path, as_json: bool, **settings: Any) -> None:
    """Meta-train the heads on the base classes of a split of CACHE, and calibrate them.

    Writes the model, the training's state, log.csv and curves.png to --run. Where the split names no validation
    classes, a tenth of the base classes is held out, if there are 8 or more.

    \b
    Examples:
      amfir train features --split random:0 --run run
      amfir train features --split hmdb51 --method amfar --shot 5 --run amfar-5shot
      amfir train features --split random:0 --run run --resume
    """
    with resumable("--resume"):
        summary = _run(cache, split, folder, **settings)
    if as_json:
        print_json(summary)
        return
    validation = summary["validation"]
    checked = "no validation classes" if validation is None else f"validation {validation:.1f} %"
    click.echo(
        f"{summary['method']}: {summary['episodes']} episodes, best after {summary['best_episodes']} ({checked}), "
        f"{summary['seconds']:.1f} s; {folder}"
    )


def _run(
    cache: Path,
    split_name: str,
    folder: Path,
    *,
    streams: tuple[str, ...],
    way: int,
    shot: int,
    query: int,
    seed: int,
    method: str,
    episodes: int,
    optimizer: str,
    learning_rate: float,
    hold: float,
    criterion: str | None,
    strategy: str | None,
    fusion: str | None,
    resume: bool,
) -> dict[str, Any]:
    from ...meta.active import FUSIONS
    from ...meta.episodes import EpisodeShape
    from ...meta.methods import load_method
    from ...meta.train import TrainConfig
    from ..features import load_features
    from ..progress import Bar
    from ..runs import train_run
    from ..splits import load_split

    if episodes < 1:
        raise UserError(f"episodes is {episodes}; training needs at least 1; raise --episodes")
    started = time.perf_counter()
    config = TrainConfig(
        EpisodeShape(way, shot, query), episodes, optimizer=optimizer, learning_rate=learning_rate, hold=hold, seed=seed
    )
    changes = {name: value for name, value in (("criterion", criterion), ("strategy", strategy)) if value}
    chosen = load_method(method).with_objective(**changes)
    if fusion:
        pick(FUSIONS, fusion, "fusion")
        chosen = replace(chosen, fusion=fusion)
    data = load_features(cache, streams)
    with Bar("episode") as bar:
        training = train_run(
            data,
            load_split(split_name, data.class_names),
            folder,
            chosen,
            config,
            resume=resume,
            progress=lambda ready, total, note: bar.update(ready, total, note=note),
        )
    given = {"run": str(folder), "method": method, "way": way, "shot": shot, "query": query}
    return {**given, **_outcome(training), "seconds": time.perf_counter() - started}


def _outcome(training: "Training") -> dict[str, Any]:
    return {
        "episodes": training.episodes,
        "best_episodes": training.best_episodes,
        "validation": training.best_accuracy if training.best_accuracy >= 0 else None,
        "temperatures": training.model.temperatures,
    }
