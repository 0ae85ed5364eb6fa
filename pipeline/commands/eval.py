"""`amfir eval`: few-shot accuracy on the novel classes of a split."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cache.errors import UserError, pick
from ..console import json_option, print_json, print_table, resumable
from ..progress import Bar
from .stage2 import evaluation_options

if TYPE_CHECKING:
    from ...meta.evaluate import Engine, Evaluation, EvaluationConfig
    from ...meta.generalised import Generalised
    from ...meta.tally import Counts

PATIENCE_SECONDS = 2.0
"""An evaluation that takes longer shows a bar."""


@click.command(name="eval")
@evaluation_options
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
@click.option(
    "--sampler",
    default="uniform",
    show_default=True,
    help="How classes are drawn: uniform, or hard: a class and those that are most like it.",
)
@click.option(
    "--temperature",
    metavar="run|none|validation",
    default="run",
    show_default=True,
    help="Factor of each modality's distances: the run's own; 1, without a belief; or fitted on the run's validation "
    "classes, and the belief anew on the same episodes.",
)
@click.option("--generalised", is_flag=True, help="Classify over base and novel prototypes together, too.")
@click.option("--details", metavar="DIR", type=click.Path(path_type=Path), help="Write the confusion matrix and more.")
@click.option(
    "--workers", type=int, help="Processes; the figures do not depend on them.  [default: 1; ray: one a core]"
)
@click.option("--engine", default="local", show_default=True, help="Where they run: local, or on a ray cluster.")
@click.option("--address", help="The Ray cluster: HOST:PORT, auto, local.  [default: RAY_ADDRESS, or local]")
@json_option
def evaluate(cache: Path, split: str, folders: tuple[Path, ...], as_json: bool, **settings: Any) -> None:
    """Measure accuracy on episodes of the novel classes of a split of CACHE: each modality, and every fusion.

    Without --run, nearest prototypes of the frozen features are measured, untrained. Beside the accuracy there are the
    top-5 accuracy (100 up to five ways) and the mean over the classes, each weighing equally.

    \b
    --details DIR writes confusion.csv, confusion.png, classes.csv, and episodes.parquet:
    right queries of each episode by each modality and fusion.

    \b
    Examples:
      amfir eval features --split random:0
      amfir eval features --split random:0 --run run
      amfir eval features --split random:0 --run trx-rgb --run trx-flow
      amfir eval features --split hmdb51 --run run --shot 5 --query 1 --json
      amfir eval features --split hmdb51 --run run --way all --details details
      amfir eval features --split hmdb51 --run run --episodes 1000000 --workers 8
      amfir eval features --split hmdb51 --run run --sampler hard --generalised
      amfir eval features --split hmdb51 --run run --temperature validation
    """
    with resumable():
        result, generalised = _run(cache, split, folders, **settings)
    if as_json:
        more = {"generalised": generalised.to_json()} if generalised else {}
        print_json({**result.to_json(), **more})
        return
    _print(result)
    if generalised:
        _print_generalised(generalised)


def _run(
    cache: Path,
    split_name: str,
    folders: tuple[Path, ...],
    *,
    streams: tuple[str, ...],
    method: str | None,
    fusion: str | None,
    temperature: str,
    generalised: bool,
    details: Path | None,
    workers: int | None,
    engine: str,
    address: str | None,
    **settings: Any,
) -> "tuple[Evaluation, Generalised | None]":
    from ...meta.checkpoint import load_model
    from ...meta.methods import parse_method
    from ..features import load_features, needs_tokens
    from ..runs import evaluate_run, evaluate_run_generalised, evaluate_untrained
    from ..splits import load_split

    made = [load_model(folder)[1] for folder in folders]
    default = made[0]["fusion"] if len(made) == 1 else "posterior-mean" if made else "late"
    settings["fusion"] = fusion or (parse_method(method).fusion if method else default)
    _configure(1, **settings)
    over = _engine(engine, workers, address)
    if not made and method and parse_method(method).head != "temporal":
        raise UserError(f"{method!r} has to be trained; --method without --run; train it, then give its --run")
    if not made and temperature != "run":
        raise UserError(f"--temperature {temperature} needs a trained model; --run; give one, such as --run run")
    if not made and generalised:
        raise UserError("--generalised needs a trained model; --run; give one, such as --run run")
    streams = streams or tuple(dict.fromkeys(name for provenance in made for name in provenance["streams"]))
    spatial = [run for run in made if needs_tokens(run["head"]["name"])]
    data = load_features(cache, streams, tokens=[name for run in spatial for name in run["streams"]])
    split = load_split(split_name, data.class_names)
    config = _configure(len(split.test), **settings)
    joint = None
    if generalised:
        with Bar("ep") as bar:
            joint = evaluate_run_generalised(
                data, split, folders, config, temperature=temperature, engine=_shown(over, bar, config)
            )
    with Bar("ep") as bar, _details(details) as watch:
        shown = _shown(over, bar, config)
        if made:
            found = evaluate_run(data, split, folders, config, temperature=temperature, engine=shown, watch=watch)
        else:
            found = evaluate_untrained(data, split, config, engine=shown, watch=watch)
    if details:
        from ..eval_details import write_details

        write_details(details, found)
    return found, joint


def _configure(
    num_classes: int, *, way: int | str, shot: int, query: int, episodes: int, **settings: Any
) -> "EvaluationConfig":
    """The evaluation; all ways are as many as there are classes, two at least."""
    from ...meta.episodes import EpisodeShape
    from ...meta.evaluate import EvaluationConfig

    ways = max(2, num_classes) if isinstance(way, str) else way
    # The counts of each episode go to a file, block by block, or nowhere.
    return EvaluationConfig(EpisodeShape(ways, shot, query), episodes, **settings, keep=False)


def _engine(name: str, workers: int | None, address: str | None) -> "Engine":
    """What runs the blocks.

    Raises:
        UserError: If the name is unknown, or the options do not go together.
    """
    from ...extract.config import ENGINES
    from ..eval_processes import in_processes
    from ..eval_ray import on_ray

    pick(dict.fromkeys(ENGINES), name, "engine")
    if name == "ray":
        return on_ray(workers, address)
    if address is not None:
        raise UserError(f"address is {address!r}; --address; it goes with --engine ray")
    return in_processes(1 if workers is None else workers)


def _shown(engine: "Engine", bar: Bar, config: "EvaluationConfig") -> "Engine":
    """The same engine, its progress on a bar once it has taken a while."""
    from ...meta.evaluate import BLOCK_EPISODES

    def run(job: Callable[[int], Any], num_blocks: int, take: Callable[[Any], None]) -> None:
        started, finished = time.monotonic(), 0

        def tell(part: Any) -> None:
            nonlocal finished
            take(part)
            finished += 1
            if time.monotonic() - started > PATIENCE_SECONDS:
                bar.update(min(finished * BLOCK_EPISODES, config.episodes), config.episodes)

        engine(job, num_blocks, tell)

    return run


@contextmanager
def _details(folder: Path | None) -> "Iterator[Callable[[Counts], None] | None]":
    """What the counts of each block are told to, if anything is."""
    if folder is None:
        yield None
        return
    from ..eval_details import EpisodeFile

    with EpisodeFile(folder) as file:
        yield file.add


def _print(result: "Evaluation") -> None:
    shape = result.shape
    click.echo(
        f"{result.method}, {shape.way}-way {shape.shot}-shot, {result.episodes} episodes: "
        f"{result.accuracy:.2f} +- {result.ci95:.2f} %  ({result.seconds:.1f} s)"
    )
    click.echo(f"top 5: {result.top5:.2f} %, mean over classes: {result.class_accuracy:.2f} %")
    shares = [*result.modalities.items(), *((f"fused: {name}", share) for name, share in result.fusions.items())]
    print_table(("", "accuracy", "95 %"), [(name, f"{mean:.2f}", f"+- {ci:.2f}") for name, (mean, ci) in shares])
    if result.selection_accuracy:
        click.echo("right modality picked, where exactly one is right:")
        ordered = sorted(result.selection_accuracy.items(), key=lambda item: -item[1])
        print_table(("criterion", "%"), [(name, f"{share:.1f}") for name, share in ordered])


def _print_generalised(found: "Generalised") -> None:
    click.echo(
        f"over {found.base_classes} base prototypes and the novel ones together (base clips trained the head, so that "
        "the accuracy of base queries is no estimate for clips it never saw):"
    )
    shares = {
        "base queries": found.base,
        "novel queries": found.novel,
        "harmonic mean": found.harmonic_mean,
        "novel alone": found.novel_alone,
    }
    print_table(("", "accuracy", "95 %"), [(n, f"{mean:.2f}", f"+- {ci:.2f}") for n, (mean, ci) in shares.items()])
