"""`amfir compare`: every method on the same features and episodes, in one table."""

from pathlib import Path

import click

from ..console import EXIT_PARTIAL, json_option, parse_numbers, parse_streams, print_json, resumable, say


@click.command()
@click.argument("cache", type=click.Path(path_type=Path))
@click.option("--split", required=True, help="A TOML or CSV file, random:SEED, or a built-in split.")
@click.option("--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Where everything goes.")
@click.option(
    "--methods",
    default="all",
    show_default=True,
    callback=parse_streams,
    help="Heads (otam) and methods (otam-lf-logit, amfir[trx]), with commas.",
)
@click.option(
    "--arrangements",
    default="",
    callback=parse_streams,
    help="Columns for heads: rgb,flow,ec,ea,lf,ami.  [default: all that the streams allow]",
)
@click.option("--streams", default="", callback=parse_streams, help="Modalities to use.  [default: all of the cache]")
@click.option("--way", default=5, show_default=True, help="Classes of an episode.")
@click.option(
    "--shot", "shots", default="1,5", show_default=True, callback=parse_numbers, help="Support clips of each class."
)
@click.option("--query", default=5, show_default=True, help="Query clips of each class.")
@click.option(
    "--seeds", default="0", show_default=True, callback=parse_numbers, help="Seeds of training; the mean is shown."
)
@click.option("--episodes", default=10_000, show_default=True, help="Evaluation episodes, the same for all.")
@click.option("--train-episodes", default=2000, show_default=True, help="Training episodes at most.")
@click.option("--profile", default="fair", show_default=True, help="fair (one protocol) or paper (the originals').")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="head.NAME, training.NAME or early.NAME.")
@click.option("--project", default=0, metavar="WIDTH", help="Project features to this width first.  [default: not]")
@click.option("--jobs", default=1, show_default=True, help="Cells at a time, a process each.")
@json_option
def compare(
    cache: Path,
    split: str,
    out: Path,
    methods: tuple[str, ...],
    arrangements: tuple[str, ...],
    streams: tuple[str, ...],
    way: int,
    shots: tuple[int, ...],
    query: int,
    seeds: tuple[int, ...],
    episodes: int,
    train_episodes: int,
    profile: str,
    settings: tuple[str, ...],
    project: int,
    jobs: int,
    as_json: bool,
) -> None:
    """Train methods on CACHE and evaluate them on the same episodes: accuracies, significance, cost, one table.

    Each head is a row: on each stream alone, fused early (ec, ea), late (lf: the heads trained alone, no further
    training) and by AMFIR's distillation and inference (ami). Finished cells are kept in --out and not run again; a
    changed setting, cache or split makes other cells. Writes table.md, table.csv, table.json and table.png to --out.

    \b
    Examples:
      amfir compare features --split random:0 --out table --jobs 2
      amfir compare features --split kinetics100 --methods protonet,otam,trx,amfir --shot 1 --out table
      amfir compare features --split random:0 --methods otam,otam-lf-logit --arrangements rgb,flow,lf --out table
    """
    from ..compare import compare as run
    from ..compare_cells import Wish
    from ..compare_store import CompareConfig

    config = CompareConfig(way, query, episodes, train_episodes, profile, settings, project)
    wish = Wish(methods, arrangements, shots, seeds)
    with resumable():
        found = run(cache, split, out, wish, config, streams=streams, jobs=jobs, say=say)
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(found.to_markdown(), nl=False)
    for path in found.files.values():
        say(f"wrote {path}")
    if found.failures:
        say(f"{found.failures} of {len(found.entries)} entries failed; the table says why")
        raise SystemExit(EXIT_PARTIAL)
