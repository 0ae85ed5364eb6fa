"""`amfir extract`: videos in, cached features out."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ...cache.errors import UserError
from ...extract.config import ENGINES, FITS, PRECISIONS, PRESETS, ExtractConfig
from ...extract.flow import BACKENDS
from ...extract.hwaccel import HWACCELS
from ...extract.reasons import REASONS
from ..console import EXIT_PARTIAL, json_option, parse_streams, print_json, resumable, say

if TYPE_CHECKING:
    from ...extract.report import ExtractReport, Progress

LISTED_FAILURES = 20
_DEFAULT = ExtractConfig()
_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("videos")
@click.option("--cache", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Where the features go.")
@click.option("--preset", type=click.Choice(sorted(PRESETS)), help="Settings that belong together; others override it.")
@click.option(
    "--streams", default=",".join(_DEFAULT.streams), show_default=True, callback=parse_streams, help="Modalities."
)
@click.option("--rgb", default=_DEFAULT.rgb, show_default=True, metavar="NAME", help="Backbone of the RGB stream.")
@click.option("--flow", default=_DEFAULT.flow, show_default=True, metavar="NAME", help="Backbone of the flow stream.")
@click.option("--rgb-weights", type=_file, metavar="FILE", help="State dict of the RGB backbone.")
@click.option("--flow-weights", type=_file, metavar="FILE", help="State dict of the flow backbone.")
@click.option("--frames", default=_DEFAULT.frames, show_default=True, help="Frames of each view.")
@click.option("--views", default=_DEFAULT.views, show_default=True, help="Selections of frames; the first is uniform.")
@click.option("--seed", default=_DEFAULT.seed, show_default=True, help="Seed of the further views, which are random.")
@click.option("--size", type=int, metavar="PIXELS", help="Side of the networks' input.  [default: the backbone's own]")
@click.option(
    "--short-side", type=int, metavar="PIXELS", help="Frames are resized to it before cut and flow.  [default: --size]"
)
@click.option(
    "--fit", type=click.Choice(FITS), default=_DEFAULT.fit, show_default=True, help="Cut a square or squeeze to one."
)
@click.option("--normalise/--no-normalise", default=True, show_default=True, help="RGB as in the backbone's training.")
@click.option(
    "--tokens", type=click.Choice(["0", "16", "49"]), default="0", show_default=True, help="Spatial tokens a frame."
)
@click.option(
    "--flow-backend",
    type=click.Choice(BACKENDS),
    default=_DEFAULT.flow_backend,
    show_default=True,
    help="Where flow comes from; auto is opencv on a CPU, triton on a GPU.",
)
@click.option(
    "--flow-scale", default=_DEFAULT.flow_scale, show_default=True, help="Grey levels per pixel in the rendered flow."
)
@click.option("--batch-size", type=int, help="Images in each run of a network.  [default: 4 on a CPU, 64 on a GPU]")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default=_DEFAULT.precision,
    show_default=True,
    help="auto is fp32 on a CPU, half on a GPU.",
)
@click.option("--workers", type=int, metavar="N", help="Decoder processes.  [default: one a core]")
@click.option(
    "--device", default=_DEFAULT.device, show_default=True, help="cpu, cuda:1, cuda:0,cuda:1 ... or auto: all GPUs."
)
@click.option(
    "--hwaccel",
    type=click.Choice(HWACCELS),
    default=_DEFAULT.hwaccel,
    show_default=True,
    help="Decode by hardware where it can.",
)
@click.option(
    "--engine",
    type=click.Choice(ENGINES),
    default=_DEFAULT.engine,
    show_default=True,
    help="This machine, or a Ray cluster.",
)
@click.option("--address", metavar="HOST:PORT", help="Ray cluster; auto, local.  [default: RAY_ADDRESS, or local]")
@click.option(
    "--strict", is_flag=True, help="Refuse a cache whose flow another backend made, though both agree to 1e-5 px."
)
@click.option(
    "--timeout",
    "timeout_seconds",
    default=_DEFAULT.timeout_seconds,
    show_default=True,
    metavar="SECONDS",
    help="Time after which the decoding of a clip is given up.",
)
@click.option("--retry-failed", is_flag=True, help="Try clips again that failed in an earlier run.")
@json_option
def extract(videos: str, cache: Path, as_json: bool, preset: str | None, **settings: Any) -> None:
    """Turn VIDEOS into features in a cache.

    VIDEOS is a folder with one folder a class, a CSV path,label[,split], WebDataset shards (a folder of .tar files, or
    'shards/{000..099}.tar'), or an address that fsspec opens, such as s3://bucket/videos.

    The same command again goes on where the last one ended, and makes damaged segments anew. Clips that cannot be
    decoded are listed with a reason and end the command with exit code 3; all others are extracted.

    \b
    Examples:
      amfir extract videos --cache features
      amfir extract clips.csv --cache features --streams rgb --rgb resnet50 --views 3
      amfir extract videos --cache features --preset papers --device auto
      amfir extract s3://bucket/videos --cache /shared/features --engine ray --address head:6379
      amfir extract videos --cache features --retry-failed --json
    """
    if preset:
        context = click.get_current_context()
        given = {name for name in settings if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
        settings |= {name: value for name, value in PRESETS[preset].items() if name not in given}
    settings["tokens"] = int(settings["tokens"])
    with resumable():
        report = _run(videos, cache, ExtractConfig(**settings))
    if as_json:
        print_json(_as_json(report))
    else:
        click.echo(
            f"{report.clips} clips: {report.done} done, {report.skipped} skipped (in the cache before), "
            f"{report.failed} failed; {report.seconds:.1f} s, {report.clips_per_second:.2f} clips/s"
        )
    if report.changed:
        say(
            f"{report.changed} clips have changed since they were extracted; their old features stay; use a new --cache"
        )
    if report.failed:
        _list_failures(report, cache)
        raise SystemExit(EXIT_PARTIAL)


def _run(videos: str, cache: Path, config: ExtractConfig) -> "ExtractReport":
    from ...extract.job import extract as run_job
    from ..datasets import open_source
    from ..progress import Bar

    if Path(videos).is_dir() and cache.resolve().is_relative_to(Path(videos).resolve()):
        raise UserError(f"the cache would lie among the videos; --cache {cache}; name a folder outside {videos}")
    clips = open_source(videos)
    with Bar("clip") as bar:

        def show(progress: "Progress | ExtractReport", clips: int) -> None:
            ready = progress.done + progress.skipped + progress.failed
            note = f"{progress.failed} failed" if progress.failed else ""
            bar.update(ready, clips, before=progress.skipped, note=note)

        report = run_job(clips, cache, config, lambda progress: show(progress, progress.total))
        show(report, report.clips)
        return report


def _as_json(report: "ExtractReport") -> dict[str, float]:
    names = ("clips", "done", "skipped", "failed", "changed", "seconds", "clips_per_second")
    return {name: getattr(report, name) for name in names}


def _list_failures(report: "ExtractReport", cache: Path) -> None:
    for failure in report.failures[:LISTED_FAILURES]:
        say(f"{failure.clip_id}  {failure.reason}: {failure.message}")
    for reason in sorted({failure.reason for failure in report.failures}):
        say(f"{reason}: {REASONS.get(reason, 'see the message')}")
    say(f"{report.failed} of {report.clips} clips failed; amfir cache failures {cache} lists all")
