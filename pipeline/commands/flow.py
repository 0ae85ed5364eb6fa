"""`amfir flow`: look at a clip's flow."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...cache.errors import UserError
from ..console import json_option, print_json, printable

if TYPE_CHECKING:
    from ..flow_video import Flow


@click.command()
@click.argument("video")
@click.option(
    "--out",
    required=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="FILE.mp4: every frame beside its flow; FILE.png: a sheet of frames over their flow.",
)
@click.option(
    "--size",
    default=256,
    show_default=True,
    type=click.IntRange(32, 1080),
    help="Short side of the frames in pixels; flow is computed at this size.",
)
@click.option(
    "--max-flow",
    metavar="PIXELS",
    type=click.FloatRange(min=0, min_open=True),
    help="Displacement a frame that has the full colour; by default the clip's 99th percentile, at least 1.",
)
@click.option("--frames", default=8, show_default=True, type=click.IntRange(1, 64), help="Frames of a PNG sheet.")
@click.option(
    "--flow-backend",
    "backend",
    default="opencv",
    show_default=True,
    type=click.Choice(["opencv", "torch"]),
    help="What computes Farneback's flow, on the CPU.",
)
@json_option
def flow(video: str, out: Path, size: int, max_flow: float | None, frames: int, backend: str, as_json: bool) -> None:
    """Render the flow of VIDEO beside its frames, as an MP4 or a PNG.

    Colours are those of the usual colour wheel: the hue is the direction of the motion, the strength its speed, white
    stands still, and darkened colours are faster than the maximum.

    \b
    Examples:
      amfir flow clip.mp4 --out flow.mp4
      amfir flow clip.mp4 --out flow.png --frames 12
    """
    from ..flow_video import FlowLook, render_flow
    from ..progress import Bar

    if "://" in video:
        raise UserError(f"{video!r} is a URL; VIDEO; copy the clip here first")
    look = FlowLook(short_side=size, full_pixels=max_flow, sheet_frames=frames)
    with Bar("frame") as bar:
        result = render_flow(Path(video), out, _load(backend), look, bar.update)
    if as_json:
        print_json(
            {
                "out": str(result.out),
                "frames": result.frames,
                "mean_pixels": result.mean_pixels,
                "max_pixels": result.max_pixels,
                "full_pixels": result.full_pixels,
            }
        )
    else:
        click.echo(
            printable(
                f"{result.out}: {result.frames} frames; motion {result.mean_pixels:.2f} px a frame in the mean, "
                f"{result.max_pixels:.1f} px at most; full colour at {result.full_pixels:.1f} px"
            )
        )


def _load(backend: str) -> "Flow":
    """Return the function that computes flow."""
    from ...extract.flow import HOST_BACKENDS, FarnebackParameters, load_device_backend

    if backend in HOST_BACKENDS:
        return HOST_BACKENDS[backend](FarnebackParameters())
    import torch

    on_device = load_device_backend(backend, FarnebackParameters(), torch.device("cpu"))
    return lambda pairs: on_device(torch.from_numpy(pairs)).numpy()
