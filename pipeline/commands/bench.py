"""`amfir bench`: speed, as ratios within one run."""

from pathlib import Path
from typing import Any

import click

from ...cache.errors import pick
from ...extract.config import ExtractConfig
from ...extract.flow import BACKENDS
from ...extract.flow.backend import GAUSSIAN_WINDOW
from ..console import json_option, parse_streams, print_json, print_table, say

_DEFAULT = ExtractConfig()
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
@click.option("--loop-episodes", default=200, show_default=True, help="Episodes of the plain loop.")
@json_option
def evaluate(episodes: int, loop_episodes: int, as_json: bool) -> None:
    """Compare the batched evaluation of AMFIR with a plain loop over episodes, in speed and in predictions.

    Random features: 24 classes of 100 clips, T = 8, 1280 wide, two modalities, 5-way 1-shot, 5 queries a class.

    \b
    Examples:
      amfir bench eval
      amfir bench eval --loop-episodes 1000 --json
    """
    from ...meta.evaluate import EvaluationConfig
    from ..bench_eval import EvalBench, bench_eval

    found = bench_eval(EvalBench(loop_episodes=loop_episodes), EvaluationConfig(episodes=episodes))
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['episodes']} episodes in {found['seconds']:.2f} s; a plain loop over {found['loop_episodes']} takes "
        f"{found['loop_seconds']:.2f} s: {found['speedup']:.0f} times faster, {found['different']} predictions differ"
    )
