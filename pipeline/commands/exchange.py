"""`amfir cache import` and `amfir cache export`: features from and for other programs."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...cache.errors import UserError
from ..console import EXIT_PARTIAL, json_option, parse_streams, print_json, resumable, say

if TYPE_CHECKING:
    from ..export_features import Exported
    from ..import_features import ImportReport

LISTED_FAILURES = 20
ROUNDING_OF_HALVES = 2.0**-11
"""Largest relative error of a number that float16 holds with all its digits."""

_path = click.Path(path_type=Path)


@click.command("import")
@click.argument("features", type=_path)
@click.option("--cache", required=True, metavar="DIR", type=_path, help="Where the features go.")
@click.option("--stream", required=True, metavar="NAME", help="Modality: rgb, flow, or another name.")
@click.option(
    "--labels", metavar="FILE", type=_path, help="CSV id,label[,split][,file].  [default: folders are classes]"
)
@click.option("--frames", type=int, metavar="T", help="Frames kept of each clip.  [default: 8; 1 of vectors]")
@click.option("--key", metavar="NAME", help="The array meant, where a file (or a group of HDF5) holds several.")
@click.option("--ids", metavar="NAME", help="Dataset of the clips' ids, where one HDF5 dataset holds all clips.")
@click.option(
    "--axes",
    metavar="AXES",
    help="Axes of a clip's array: d, td, vtd or vtpd (views, time, spatial tokens, dimension).  [default: d or td]",
)
@click.option("--backbone", metavar="NAME", help="What made the features; those of one name go together.")
@json_option
def import_command(features: Path, cache: Path, as_json: bool, **settings: Any) -> None:
    """Make FEATURES that others computed a stream of a cache.

    FEATURES is a folder of .npy, .npz, .mat, .pt files, one folder a class, or anyhow with --labels; or one HDF5 file
    with a dataset a clip, or one of all clips and --ids. A clip is an array [T, D] or [D]; its id is its path without
    the suffix, so that folders of two modalities agree. T is brought to --frames: the frames at the centres of equal
    segments, repeated where there are fewer.

    The same command again goes on where the last one ended. Clips that cannot be imported (damaged, pickled, not
    finite, too large for float16) are listed with a reason and end the command with exit code 3.

    \b
    Examples:
      amfir cache import i3d/rgb --cache features --stream rgb --backbone i3d
      amfir cache import i3d/flow --cache features --stream flow --backbone i3d
      amfir cache import clip.h5 --cache features --stream rgb --labels labels.csv --frames 16
      amfir cache import all.h5 --cache features --stream rgb --labels labels.csv --key features --ids names
    """
    with resumable():
        report, unlisted = _import(features, cache, **settings)
    if as_json:
        print_json(_as_json(report, unlisted))
    else:
        shape = ", ".join(map(str, report.spec.row_shape))
        click.echo(
            f"{report.clips} clips: {report.done} done, {report.skipped} skipped (in the cache before), "
            f"{report.failed} failed; {report.seconds:.1f} s; a row is [{shape}] in float16"
        )
    _warn(report, unlisted)
    if report.failed:
        _list_failures(report, cache)
        raise SystemExit(EXIT_PARTIAL)


@click.command("export")
@click.argument("cache", metavar="CACHE", type=_path)
@click.option("--to", "out", required=True, metavar="DIR", type=_path, help="Where the files go.")
@click.option("--stream", "streams", default="", callback=parse_streams, help="Modalities.  [default: all]")
@click.option("--format", "form", default="npy", show_default=True, help="npy (a file a clip) or parquet.")
@json_option
def export_command(cache: Path, out: Path, streams: tuple[str, ...], form: str, as_json: bool) -> None:
    """Write the features of CACHE as files that other programs read.

    npy: DIR/STREAM/CLASS/CLIP.npy, float16 [T, D] ([V, T, D] of several views), and DIR/STREAM/labels.csv, which
    `amfir cache import` reads again, bit by bit. parquet: DIR/STREAM.parquet with a row a frame (id, label, view,
    frame, feature in float32) and the stream's spec in the schema's metadata.

    The same command again goes on where the last one ended; any other content of DIR is refused.

    \b
    Examples:
      amfir cache export features --to exported
      amfir cache export features --to tables --format parquet --stream rgb
    """
    from ..export_features import export_features
    from ..progress import Bar

    with resumable(), Bar("clip") as bar:
        done = export_features(
            cache, out, streams, form, lambda ready, total, before: bar.update(ready, total, before=before)
        )
    if as_json:
        print_json({"format": form, "streams": {name: _exported(made) for name, made in done.items()}})
    for name, made in done.items():
        if not as_json:
            click.echo(f"{name}: {made.clips} clips, {made.written} written now; {made.path}")
        if made.renamed:
            say(f"{made.renamed} ids of stream {name!r} are no UTF-8; they have escapes for those bytes")
        if form == "npy":
            say(f"import it again: {_import_again(name, made)}")


def _import(features: Path, cache: Path, **settings: Any) -> "tuple[ImportReport, int]":
    """Return the report, and how many clips the list of labels does not name."""
    from ..feature_labels import label_clips
    from ..feature_source import open_features
    from ..import_features import import_features
    from ..import_spec import ImportConfig
    from ..progress import Bar

    if features.is_dir() and cache.resolve().is_relative_to(features.resolve()):
        raise UserError(f"the cache would lie among the features; --cache {cache}; name a folder outside {features}")
    config = ImportConfig(settings["stream"], settings["frames"], settings["axes"], settings["backbone"])
    source = open_features(features, settings["key"], settings["ids"])
    clips = label_clips(source, settings["labels"], features)
    with Bar("clip") as bar:

        def show(ready: int, total: int, before: int, failed: int) -> None:
            bar.update(ready, total, before=before, note=f"{failed} failed" if failed else "")

        return import_features(source, clips, cache, config, show), len(source.names) - len(clips)


def _as_json(report: "ImportReport", unlisted: int) -> dict[str, Any]:
    names = ("clips", "done", "skipped", "failed", "changed", "rounding", "seconds")
    return {
        **{name: getattr(report, name) for name in names},
        "unlisted": unlisted,
        "shape": list(report.spec.row_shape),
        "fingerprint": report.spec.fingerprint,
    }


def _warn(report: "ImportReport", unlisted: int) -> None:
    """Say what the counts do not."""
    if report.rounding:
        small = report.rounding > ROUNDING_OF_HALVES
        mend = "; values are too small for float16: scale all clips" if small else ""
        say(f"rounding to float16 changes a frame by at most {report.rounding:.2g} of its length{mend}")
    if unlisted:
        say(f"{unlisted} clips that the list of labels does not name are left out")
    if report.changed:
        say(f"{report.changed} files have changed since they were imported; the old features stay; use a new --cache")


def _list_failures(report: "ImportReport", cache: Path) -> None:
    from ...extract.reasons import REASONS as EXTRACT_REASONS
    from ..feature_files import REASONS

    for failure in report.failures[:LISTED_FAILURES]:
        say(f"{failure.clip_id}  {failure.reason}: {failure.message}")
    for reason in sorted({failure.reason for failure in report.failures}):
        say(f"{reason}: {REASONS.get(reason) or EXTRACT_REASONS[reason]}")
    say(f"{report.failed} of {report.clips} clips failed; amfir cache failures {cache} lists all")


def _exported(made: "Exported") -> dict[str, Any]:
    return {"path": str(made.path), "clips": made.clips, "written": made.written, "renamed": made.renamed}


def _import_again(name: str, made: "Exported") -> str:
    arguments = ["amfir", "cache", "import", str(made.path), "--cache", "NEW", "--stream", name]
    arguments += ["--labels", str(made.path / "labels.csv"), "--frames", str(made.frames)]
    return shlex.join([*arguments, *(["--axes", made.axes] if len(made.axes) > 2 else [])])
