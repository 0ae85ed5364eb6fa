"""`amfir bench`: speed, as ratios within one run."""

from pathlib import Path
from typing import Any

import click

from ...cache.errors import pick
from ...extract.config import ExtractConfig
from ...extract.flow import BACKENDS
from ...extract.flow.backend import GAUSSIAN_WINDOW
from ..console import json_option, parse_numbers, parse_streams, print_json, print_table, say

_DEFAULT = ExtractConfig()
_HEADS = "amfir,protonet,otam,chamfer,trx,hyrsm"
_heads = click.option(
    "--heads", default=_HEADS, show_default=True, callback=parse_streams, help="amfir, and heads by name."
)
_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_videos = click.Path(exists=True, path_type=Path)


@click.group()
def bench() -> None:
    """Measure speed as ratios within one run, so that the figures hold on any machine.

    \b
    Examples:
      amfir bench flow
      amfir bench extract
      amfir bench eval --json
      amfir bench train
      amfir bench search --sizes 1000,100000
    """


@bench.command()
@click.argument("videos", required=False, type=_videos)
@click.option("--pairs", type=click.IntRange(1), default=64, show_default=True, help="Pairs of frames.")
@click.option(
    "--short-side",
    type=click.IntRange(8),
    default=256,
    show_default=True,
    metavar="PIXELS",
    help="Short side of the frames.",
)
@click.option("--backends", default="opencv,torch", show_default=True, callback=parse_streams, help="Which, by name.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda or cuda:1 ...: where device backends run.")
@click.option("--poly-n", default=5, show_default=True, help="Radius of the expansion; 7 goes with sigma 1.5.")
@click.option("--gaussian", is_flag=True, help="A Gaussian window instead of a box.")
@json_option
def flow(
    videos: Path | None,
    pairs: int,
    short_side: int,
    backends: tuple[str, ...],
    device: str,
    poly_n: int,
    gaussian: bool,
    as_json: bool,
) -> None:
    """Compare the flow backends: pairs a second, and the difference from OpenCV's flow in pixels.

    VIDEOS is a dataset; without it, synthetic clips are made.

    \b
    Examples:
      amfir bench flow
      amfir bench flow videos --backends opencv,torch,triton --device cuda --pairs 1024
    """
    from ...extract.flow import FarnebackParameters
    from ..bench_flow import bench_flow

    for name in backends:
        pick({known: known for known in BACKENDS if known != "auto"}, name, "flow backend")
    sigma, flags = (1.5 if poly_n == 7 else 1.2), (GAUSSIAN_WINDOW if gaussian else 0)
    parameters = FarnebackParameters(poly_n=poly_n, poly_sigma=sigma, flags=flags)
    found = bench_flow(videos, backends, pairs=pairs, short_side=short_side, device=device, parameters=parameters)
    if as_json:
        print_json(found)
        return
    print_table(("backend", "pairs/s", "x opencv", "mean px", "99.9 % px", "max px", "codes"), _flow_rows(found))
    click.echo(f"{found['pairs']} pairs of {found['width']} x {found['height']}, {found['device']}")


def _flow_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, figures in found["backends"].items():
        if "unavailable" in figures:
            say(f"{name}: {figures['unavailable']}")
            continue
        names = ("mean", "p999", "max", "codes")
        rates = (f"{figures['pairs_per_second']:.1f}", f"{figures['speedup']:.2f}")
        rows.append((name, *rates, *(f"{figures[key]:.1e}" for key in names)))
    return rows


@bench.command()
@click.argument("videos", required=False, type=_videos)
@click.option("--clips", type=click.IntRange(1), default=240, show_default=True, help="Clips to extract.")
@click.option("--rgb", default=_DEFAULT.rgb, show_default=True, metavar="NAME", help="Backbone of the RGB stream.")
@click.option("--flow", default=_DEFAULT.flow, show_default=True, metavar="NAME", help="Backbone of the flow stream.")
@click.option("--rgb-weights", type=_file, metavar="FILE", help="State dict of the RGB backbone.")
@click.option("--flow-weights", type=_file, metavar="FILE", help="State dict of the flow backbone.")
@click.option("--size", default=160, show_default=True, help="Side of the networks' input in pixels.")
@click.option("--flow-backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="What makes flow.")
@click.option("--workers", type=int, metavar="N", help="Decoder processes.  [default: one a core]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 ... or auto.")
@json_option
def extract(videos: Path | None, clips: int, as_json: bool, **settings: Any) -> None:
    """Compare the wall time of an extraction with its stages' core-seconds, and with a plain loop over clips.

    VIDEOS is a dataset; without it, synthetic clips are made. The ratio is wall time / (sum of core-seconds / cores),
    each stage alone on one thread. The plain loop reads with cv2.VideoCapture and runs one image at a time.

    \b
    Examples:
      amfir bench extract
      amfir bench extract videos --clips 90 --size 224
    """
    from ..bench_extract import bench_extract

    found = bench_extract(videos, ExtractConfig(**settings), clips)
    if as_json:
        print_json(found)
        return
    print_table(("stage", "core-seconds"), [(name, f"{value:.2f}") for name, value in found["stages"].items()])
    click.echo(
        f"{found['clips']} clips in {found['seconds']:.1f} s on {found['cores']} cores "
        f"({found['clips_per_second']:.2f} clips/s): {found['ratio']:.2f} times the stages' sum / cores"
    )
    click.echo(f"a plain loop takes {found['plain_seconds']:.1f} s: amfir has {found['speedup']:.2f} times its speed")
    click.echo(
        f"memory: {found['peak_mib']['job']:.0f} MiB, and {found['peak_mib']['decoder']:.0f} in a decoder process"
    )


@bench.command(name="eval")
@click.option("--episodes", default=10_000, show_default=True, help="Episodes of the batched evaluation.")
@click.option(
    "--loop-episodes",
    type=click.IntRange(1, 250),
    default=200,
    show_default=True,
    help="Episodes of the plain loop, at most 250.",
)
@_heads
@click.option("--shot", type=click.IntRange(1), default=1, show_default=True, help="Support clips of a class.")
@click.option("--query", type=click.IntRange(1), default=1, show_default=True, help="Query clips of a class.")
@json_option
def evaluate(episodes: int, loop_episodes: int, heads: tuple[str, ...], shot: int, query: int, as_json: bool) -> None:
    """Compare the batched evaluation of heads with a plain loop over episodes, in speed and in predictions.

    Random features: 24 classes of 100 clips, T = 8, 512 wide, 5 ways. AMFIR has two modalities, every head one. Each is
    measured untrained in a process of its own. Encoding the clips is counted on both sides. The batched evaluation uses
    all threads, the loop, whose operations are too small to be divided, one.

    \b
    Examples:
      amfir bench eval
      amfir bench eval --heads otam,trx --shot 5 --query 5 --json
    """
    from ...meta.episodes import EpisodeShape
    from ...meta.evaluate import EvaluationConfig
    from ..bench_eval import CLIPS, bench_eval

    config = EvaluationConfig(EpisodeShape(5, shot, query), episodes)
    found = bench_eval(heads, CLIPS, config, loop_episodes)
    if as_json:
        print_json(found)
        return
    rows = [_eval_row(name, figures) for name, figures in found["methods"].items()]
    loop = f"{found['loop_episodes']} one at a time, s"
    print_table(("head", f"{episodes} episodes, s", loop, "times faster", "different", "peak MiB"), rows)


def _eval_row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    seconds = (f"{figures['seconds']:.2f}", f"{figures['loop_seconds']:.2f}")
    return name, *seconds, f"{figures['speedup']:.1f}", str(figures["different"]), f"{figures['peak_mib']:.0f}"


@bench.command(name="train")
@click.option("--episodes", type=click.IntRange(1), default=2000, show_default=True, help="Training episodes of AMFIR.")
@click.option("--head-episodes", type=click.IntRange(1), default=320, show_default=True, help="Of every other head.")
@click.option("--plain-episodes", type=click.IntRange(1), default=64, show_default=True, help="Of the plain loop.")
@_heads
@json_option
def training(episodes: int, head_episodes: int, plain_episodes: int, heads: tuple[str, ...], as_json: bool) -> None:
    """Compare meta-training in batches of 16 episodes with one episode at a time.

    Random features as for `bench eval`; 5-way 1-shot, 5 queries a class, no validation, one thread.

    \b
    Examples:
      amfir bench train
      amfir bench train --heads trx --head-episodes 64 --json
    """
    from ...meta.train import TrainConfig
    from ..bench_eval import CLIPS
    from ..bench_train import bench_train

    found = bench_train(heads, CLIPS, TrainConfig(episodes=episodes), head_episodes, plain_episodes)
    if as_json:
        print_json(found)
        return
    rows = [_train_row(name, figures) for name, figures in found["methods"].items()]
    print_table(("head", "episodes", "seconds", "episodes/s", "one at a time", "times faster", "peak MiB"), rows)


def _train_row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    rates = (f"{figures['episodes_per_second']:.0f}", f"{figures['plain_per_second']:.0f}", f"{figures['speedup']:.1f}")
    return name, str(figures["episodes"]), f"{figures['seconds']:.1f}", *rates, f"{figures['peak_mib']:.0f}"


@bench.command(name="search")
@click.option(
    "--sizes",
    default="1000,10000,100000,1000000",
    show_default=True,
    callback=parse_numbers,
    help="Numbers of prototypes.",
)
@click.option(
    "--backends", default="torch,flat,ivf,hnsw", show_default=True, callback=parse_streams, help="Which, by name."
)
@click.option("--queries", type=click.IntRange(1), default=1000, show_default=True, help="Queries searched at once.")
@click.option("--k", type=click.IntRange(1), default=10, show_default=True, help="Nearest prototypes wanted.")
@json_option
def search(sizes: tuple[int, ...], backends: tuple[str, ...], queries: int, k: int, as_json: bool) -> None:
    """Compare searches of prototypes of two modalities, each 128 wide: torch, and faiss exact and approximate.

    Prototypes in 20,000 clusters of 24 effective dimensions, and random ones, in which no approximation helps. Seconds
    are of three searches: with all weight on either modality, and with weights of each query. An approximate backend
    races the exact one that amfir takes at that size, in the same process. Memory is what building and searching took
    beyond the libraries, as a multiple of the vectors.

    \b
    Examples:
      amfir bench search
      amfir bench search --sizes 300,1000,3000,10000 --backends torch,flat
    """
    from ..bench_search import Questions, bench_search

    found = bench_search(sizes, backends, Questions(queries, k=k))
    if as_json:
        print_json(found)
        return
    header = ("vectors", "number", "backend", "seconds", "times exact", "with AMI, s", "times exact", "recall@1")
    rows = [
        row
        for kind, sizes in found["vectors"].items()
        for size, case in sizes.items()
        for row in _search_rows(kind, size, case)
    ]
    print_table((*header, "worst", "recall@10", "build, s", "memory", "peak MiB"), rows)
    click.echo(f"{queries} queries, k = {k}, {found['threads']} threads; * is what amfir takes by itself")


def _search_rows(kind: str, size: str, case: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, figures in case["backends"].items():
        if figures["note"]:
            say(f"{kind}, {size}: {figures['note']}")
        ratios: tuple[str, ...] = ("", "")
        recalls: tuple[str, ...] = ("", "", "")
        if "used" in figures:
            ratios = (f"{figures['speedup']:.1f}", f"{figures['index_speedup']:.1f}")
            recalls = tuple(f"{figures[key]:.4f}" for key in ("recall_1", "least_recall_1", "recall_10"))
        used = figures.get("used", name)
        label = ("* " if name == case["auto"] else "") + (name if used == name else f"{name}: {used}")
        seconds = (f"{figures['seconds']:.4f}", ratios[0], f"{figures['index_seconds']:.4f}", ratios[1])
        costs = (f"{figures['build_seconds']:.1f}", f"{figures['memory']:.2f}", f"{figures['peak_mib']:.0f}")
        rows.append((kind, size, label, *seconds, *recalls, *costs))
    return rows
