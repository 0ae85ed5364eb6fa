"""`amfir data`: clips to try things on."""

from pathlib import Path

import click

from ..console import json_option, print_json, resumable


@click.group(name="data")
def data() -> None:
    """Make synthetic clips.

    \b
    Examples:
      amfir data synth clips
    """


@data.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--classes", default=24, show_default=True, help="Number of classes.")
@click.option("--clips", default=10, show_default=True, help="Clips of each class.")
@click.option("--seed", default=0, show_default=True, help="Another seed, other clips of the same classes.")
@click.option("--size", default=160, show_default=True, help="Side of the square frames, in pixels.")
@click.option("--frames", default=24, show_default=True, help="Frames of a clip.")
@click.option("--order-pairs", is_flag=True, help="Pairs of classes that differ only in temporal order.")
@json_option
def synth(
    directory: Path, classes: int, clips: int, seed: int, size: int, frames: int, order_pairs: bool, as_json: bool
) -> None:
    """Write synthetic clips to DIR, one folder a class, and their class split to DIR/split.toml.

    Textured objects move over textured backgrounds; some classes differ in appearance, some in motion, some in both,
    and half of the clips suffer interference, blur, darkness, a hanging recording or a moving camera. A demonstration
    and a test bed, not a benchmark.

    With --order-pairs each class has a twin: the same objects on the same path, from the end to the start (shrinking
    for growing). As a set, their frames are alike; both are in the same part of the split.


    \b
    Examples:
      amfir data synth clips
      amfir data synth small-clips --classes 6 --clips 4 --size 64 --seed 1
      amfir data synth order-clips --order-pairs
    """
    from ..progress import Bar
    from ..synth import generate

    with resumable(), Bar("clip") as bar:
        paths = generate(
            directory,
            classes=classes,
            clips_per_class=clips,
            seed=seed,
            size=size,
            num_frames=frames,
            order_pairs=order_pairs,
            progress=bar.update,
        )
    split = directory / "split.toml"
    if as_json:
        print_json({"directory": str(directory), "classes": classes, "clips": len(paths), "split": str(split)})
    else:
        click.echo(f"{len(paths)} clips of {classes} classes in {directory}; class split in {split}")
