"""`amfir eval`: few-shot accuracy on the novel classes of a split."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cache.errors import UserError
from ..console import json_option, print_json, print_table, resumable
from .stage2 import episode_options

if TYPE_CHECKING:
    from ...meta.evaluate import Evaluation


@click.command(name="eval")
@episode_options
@click.option(
    "--run",
    "folders",
    metavar="DIR",
    multiple=True,
    type=click.Path(path_type=Path),
    help="What amfir train wrote; several, one for each modality, are fused late.",
)
@click.option("--method", help="Fuse like this method.  [default: the run's; several runs, untrained: late fusion]")
@click.option("--episodes", default=10_000, show_default=True, help="Number of episodes.")
@click.option("--fusion", help="Fusion to report as the accuracy.  [default: the method's]")
@click.option("--criterion", default="free-energy", show_default=True, help="What the fusion `select` selects by.")
@json_option
def evaluate(cache: Path, split: str, folders: tuple[Path, ...], as_json: bool, **settings: Any) -> None:
    """Measure accuracy on episodes of the novel classes of a split of CACHE: each modality, and every fusion.

    Without --run, nearest prototypes of the frozen features are measured, untrained.

    \b
    Examples:
      amfir eval features --split random:0
      amfir eval features --split random:0 --run run
      amfir eval features --split random:0 --run trx-rgb --run trx-flow
      amfir eval features --split hmdb51 --run run --shot 5 --query 1 --json
    """
    with resumable():
        result = _run(cache, split, folders, **settings)
    if as_json:
        print_json(result.to_json())
    else:
        _print(result)


def _run(
    cache: Path,
    split_name: str,
    folders: tuple[Path, ...],
    *,
    streams: tuple[str, ...],
    way: int,
    shot: int,
    query: int,
    seed: int,
    method: str | None,
    episodes: int,
    fusion: str | None,
    criterion: str,
) -> "Evaluation":
    from ...meta.checkpoint import load_model
    from ...meta.episodes import EpisodeShape
    from ...meta.evaluate import EvaluationConfig
    from ...meta.methods import parse_method
    from ..features import load_features, needs_tokens
    from ..runs import evaluate_run, evaluate_untrained
    from ..splits import load_split

    shape = EpisodeShape(way, shot, query)
    made = [load_model(folder)[1] for folder in folders]
    default = made[0]["fusion"] if len(made) == 1 else "posterior-mean" if made else "late"
    fusion = fusion or (parse_method(method).fusion if method else default)
    config = EvaluationConfig(shape, episodes, seed, fusion, criterion)
    if not made and method and parse_method(method).head != "temporal":
        raise UserError(f"{method!r} has to be trained; --method without --run; train it, then give its --run")
    if not made:
        data = load_features(cache, streams)
        return evaluate_untrained(data, load_split(split_name, data.class_names), config)
    streams = streams or tuple(dict.fromkeys(name for provenance in made for name in provenance["streams"]))
    spatial = [run for run in made if needs_tokens(run["head"]["name"])]
    data = load_features(cache, streams, tokens=[name for run in spatial for name in run["streams"]])
    return evaluate_run(data, load_split(split_name, data.class_names), folders, config)


def _print(result: "Evaluation") -> None:
    shape = result.shape
    click.echo(
        f"{result.method}, {shape.way}-way {shape.shot}-shot, {result.episodes} episodes: "
        f"{result.accuracy:.2f} +- {result.ci95:.2f} %  ({result.seconds:.1f} s)"
    )
    shares = [*result.modalities.items(), *((f"fused: {name}", share) for name, share in result.fusions.items())]
    print_table(("", "accuracy", "95 %"), [(name, f"{mean:.2f}", f"+- {ci:.2f}") for name, (mean, ci) in shares])
    if result.selection_accuracy:
        click.echo("right modality picked, where exactly one is right:")
        ordered = sorted(result.selection_accuracy.items(), key=lambda item: -item[1])
        print_table(("criterion", "%"), [(name, f"{share:.1f}") for name, share in ordered])
