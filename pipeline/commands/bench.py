"""`amfir bench`: speed, as ratios within one run."""

from pathlib import Path

import click

from ..console import json_option, print_json, print_table


@click.group()
def bench() -> None:
    """Measure speed as ratios within one run, so that the figures hold on any machine.

    \b
    Examples:
      amfir bench extract
      amfir bench eval --json
    """


@bench.command()
@click.argument("videos", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--clips", default=240, show_default=True, help="Clips to extract.")
@click.option("--size", default=160, show_default=True, help="Side of the networks' input in pixels.")
@click.option("--workers", type=int, metavar="N", help="Decoder processes.  [default: one a core]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1 ... or auto.")
@json_option
def extract(videos: Path | None, clips: int, size: int, workers: int | None, device: str, as_json: bool) -> None:
    """Compare the wall time of an extraction with its stages' core-seconds, each alone on one thread.

    VIDEOS is a dataset; without it, synthetic clips are made. The ratio is wall time / (sum of core-seconds / cores).

    \b
    Examples:
      amfir bench extract
      amfir bench extract videos --clips 90 --size 224
    """
    from ...extract.config import ExtractConfig
    from ..bench import bench_extract

    found = bench_extract(videos, ExtractConfig(size=size, workers=workers, device=device), clips)
    if as_json:
        print_json(found)
        return
    print_table(("stage", "core-seconds"), [(name, f"{value:.2f}") for name, value in found["stages"].items()])
    click.echo(
        f"{found['clips']} clips in {found['seconds']:.1f} s on {found['cores']} cores "
        f"({found['clips_per_second']:.2f} clips/s): {found['ratio']:.2f} times the stages' sum / cores"
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
    from ..bench import EvalBench, bench_eval

    found = bench_eval(EvalBench(loop_episodes=loop_episodes), EvaluationConfig(episodes=episodes))
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{found['episodes']} episodes in {found['seconds']:.2f} s; a plain loop over {found['loop_episodes']} takes "
        f"{found['loop_seconds']:.2f} s: {found['speedup']:.0f} times faster, {found['different']} predictions differ"
    )
