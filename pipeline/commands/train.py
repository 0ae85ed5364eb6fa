"""`amfir train`: meta-train the heads on cached features."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cache.errors import UserError
from ..console import json_option, print_json, resumable
from .stage2 import episode_options

if TYPE_CHECKING:
    from ...meta.train import Training


@click.command()
@episode_options
@click.option("--run", "folder", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Where it goes.")
@click.option(
    "--method",
    default="amfir",
    show_default=True,
    help="amfir, amfar, amfir[HEAD], or a head: HEAD, HEAD-ec, -ea, -lf, HEAD+ami.",
)
@click.option(
    "--profile", default="fair", show_default=True, help="fair: one protocol; paper: the original's settings."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Over the profile: head.dim=256, training.weight_decay=0.1 ...",
)
@click.option("--project", type=click.IntRange(1), metavar="DIM", help="Project features to so many principal axes.")
@click.option("--episodes", default=2000, show_default=True, help="Training episodes at most.")
@click.option("--optimizer", help="adamw, adam or sgd.  [default: the profile's]")
@click.option("--learning-rate", type=float, help="Step size.  [default: the profile's; validation chooses]")
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
      amfir train features --split random:0 --method trx --streams rgb --set head.dim=512 --run trx
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
        f"{summary['method']}: {summary['episodes']} episodes, best after {summary['best_episodes']} ({checked}, "
        f"learning rate {summary['learning_rate']:g}), {summary['seconds']:.1f} s; {folder}"
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
    method: str,
    profile: str,
    settings: tuple[str, ...],
    project: int | None,
    optimizer: str | None,
    learning_rate: float | None,
    resume: bool,
    **given: Any,
) -> dict[str, Any]:
    from ...meta.episodes import EpisodeShape
    from ..features import load_for, project_features
    from ..progress import Bar
    from ..runs import RunPlan, train_run
    from ..splits import load_split

    if given["episodes"] < 1:
        raise UserError(f"episodes is {given['episodes']}; training needs at least 1; raise --episodes")
    started = time.perf_counter()
    shortcuts = {"optimizer": optimizer, "learning_rates": learning_rate}
    settings = (*settings, *(f"training.{name}={value}" for name, value in shortcuts.items() if value is not None))
    plan = RunPlan(method, EpisodeShape(way, shot, query), profile, settings, **given)
    plan.train_config()
    if not plan.read_method().early and (idle := [each for each in settings if each.strip().startswith("early.")]):
        raise UserError(f"{idle[0]!r} changes nothing; --set; method {method!r} has no early fusion, otam-ec has one")
    data = load_for(plan.read_method().head, cache, streams)
    split = load_split(split_name, data.class_names)
    if project:
        data = project_features(data, data.ids((*split.train, *split.val)), project)
    with Bar("episode") as bar:
        training = train_run(
            data,
            split,
            folder,
            plan,
            resume=resume,
            progress=lambda ready, total, note: bar.update(ready, total, note=note),
        )
    asked = {"run": str(folder), "method": method, "way": way, "shot": shot, "query": query}
    return {**asked, **_outcome(training, plan.train_config().learning_rates), "seconds": time.perf_counter() - started}


def _outcome(training: "Training", rates: tuple[float, ...]) -> dict[str, Any]:
    return {
        "episodes": training.episodes,
        "learning_rate": rates[training.best_rate],
        "best_episodes": training.best_episodes,
        "validation": training.best_accuracy if training.best_accuracy >= 0 else None,
        "temperatures": training.model.temperatures,
    }
