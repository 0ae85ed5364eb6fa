"""`amfir study`: every table and figure of the papers, and what they leave open, from one cache."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cache.errors import UserError
from ..console import (
    ARGUMENTS_KEY,
    EXIT_PARTIAL,
    json_option,
    parse_numbers,
    parse_streams,
    print_json,
    print_table,
    resumable,
    say,
)

if TYPE_CHECKING:
    from ..studies.run import Outcome

MAX_LINES = 40
"""Rows of a study that are printed; all are in its files."""

HIDDEN = ("seed", "parameters", "training_seconds")
"""Columns that the short tables leave out."""


def _targets(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> tuple[tuple[Path, str], ...]:
    """Split each CACHE:SPLIT at its first colon: splits have colons too (random:0)."""
    found = []
    for text in texts:
        cache, _, split = text.partition(":")
        if not (cache and split):
            raise UserError(f"{text!r} is no CACHE:SPLIT; --to; write it like --to features:random:0")
        found.append((Path(cache), split))
    return tuple(found)


@click.command()
@click.argument("cache", type=click.Path(path_type=Path))
@click.argument("names", metavar="[NAMES]...", nargs=-1)
@click.option("--split", required=True, help="A TOML or CSV file, random:SEED, or a built-in split.")
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Where everything goes.")
@click.option("--streams", default="", callback=parse_streams, help="Modalities to use.  [default: all of the cache]")
@click.option("--way", default=5, show_default=True, help="Classes of an episode.")
@click.option(
    "--shots", default="1,5", show_default=True, callback=parse_numbers, help="Support clips of each class, in tables."
)
@click.option("--query", default=5, show_default=True, help="Query clips of each class.")
@click.option("--episodes", default=10_000, show_default=True, help="Evaluation episodes, the same for all methods.")
@click.option("--train-episodes", default=2000, show_default=True, help="Training episodes at most.")
@click.option("--seed", default=0, show_default=True, help="Of the trainings.")
@click.option("--profile", default="fair", show_default=True, help="fair (one protocol) or paper (the originals').")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="head.NAME, training.NAME or early.NAME.")
@click.option("--project", default=0, metavar="WIDTH", help="Project features to this width first.  [default: not]")
@click.option("--methods", default="all", show_default=True, callback=parse_streams, help="Of table1, with commas.")
@click.option("--videos", metavar="DIR", type=click.Path(path_type=Path), help="What CACHE was extracted from.")
@click.option(
    "--to", "targets", multiple=True, metavar="CACHE:SPLIT", callback=_targets, help="Test on this too: transfer."
)
@click.option("--jobs", default=1, show_default=True, help="Trainings at a time, a process each.")
@json_option
def study(cache: Path, names: tuple[str, ...], out: Path, as_json: bool, **options: Any) -> None:
    """Make the tables and figures of the papers from CACHE, and the studies that they leave open.

    \b
    table1       every method in every arrangement (amfir compare)
    table2       what each part of AMFIR and AMFAR contributes
    figure2      free energy over training
    figure3      accuracy over the number of support clips
    figure4      who teaches whom: distillation strategies
    figure5      accuracy over the number of classes
    reliability  which modality to trust, and how far
    robustness   harmed and missing modalities
    transfer     trained here, tested on the caches of --to
    examples     clips that one modality got right alone

    NAMES are some of them; without any, all are made. Trainings are shared and kept in --out/trained, finished studies
    in a folder each; what is finished is not made again. amfir report makes a page of it.

    \b
    Examples:
      amfir study features --split random:0 --out studies --jobs 2
      amfir study features --split random:0 --out studies table2 figure4 --episodes 2000
      amfir study features --split hmdb51 --out studies --videos hmdb51 --to ucf-features:ucf101
    """
    from ..studies.run import run_studies

    command = shlex.join(["amfir", *click.get_current_context().meta[ARGUMENTS_KEY]])
    with resumable():
        outcome = run_studies(_config(cache, out, **options), names, command, say)
    if as_json:
        print_json(_to_json(out, outcome))
    else:
        for name, finished in outcome.finished.items():
            _print(name, finished.content, out)
    if outcome.failures:
        say(f"something failed in {outcome.failures} of {len(outcome.finished) + len(outcome.failed)} studies")
        raise SystemExit(EXIT_PARTIAL)


def _config(
    cache: Path,
    out: Path,
    *,
    split: str,
    streams: tuple[str, ...],
    way: int,
    shots: tuple[int, ...],
    query: int,
    episodes: int,
    train_episodes: int,
    seed: int,
    profile: str,
    settings: tuple[str, ...],
    project: int,
    methods: tuple[str, ...],
    videos: Path | None,
    targets: tuple[tuple[Path, str], ...],
    jobs: int,
) -> Any:
    from ..compare_store import CompareConfig
    from ..studies.base import StudyConfig

    shared = CompareConfig(way, query, episodes, train_episodes, profile, settings, project)
    return StudyConfig(cache, split, out, streams, shared, shots, seed, jobs, methods, videos, targets)


def _to_json(out: Path, outcome: "Outcome") -> dict[str, Any]:
    return {
        "out": str(out),
        "studies": {name: finished.content for name, finished in outcome.finished.items()},
        "failed": dict(outcome.failed),
    }


def _print(name: str, content: Mapping[str, Any], out: Path) -> None:
    """A heading, the first rows, and where the others are."""
    rows = content["rows"]
    click.echo(f"{content['title']}: {len(rows)} rows in {out / name}")
    if rows:
        columns = [column for column in rows[0] if column not in HIDDEN]
        print_table(columns, [[_cell(row.get(column)) for column in columns] for row in rows[:MAX_LINES]])
    if len(rows) > MAX_LINES:
        click.echo(f"... and {len(rows) - MAX_LINES} more")
    click.echo()


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
    return "" if value is None else str(value)
