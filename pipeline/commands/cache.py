"""`amfir cache`: look into a cache, check it, pack it, exchange features with other programs."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import EXIT_PARTIAL, json_option, print_json, print_table, printable, say
from .exchange import export_command, import_command

if TYPE_CHECKING:
    from ...cache.segment import Failure
    from ...cache.spec import Json

directory_argument = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))


@click.group()
def cache() -> None:
    """Look into a cache, check it, pack it; import and export features.

    \b
    Examples:
      amfir cache info features
      amfir cache verify features
      amfir cache import i3d-rgb --cache features --stream rgb
    """


cache.add_command(import_command)
cache.add_command(export_command)


@cache.command()
@directory_argument
@json_option
def info(directory: Path, as_json: bool) -> None:
    """Show the streams of a cache and what made them.

    \b
    Examples:
      amfir cache info features
      amfir cache info features --json
    """
    from ...cache.store import Store

    store = Store(directory)
    streams = store.info()
    fingerprints = {name: store.spec(name).fingerprint for name in streams}
    if as_json:
        print_json({name: {**about, "fingerprint": fingerprints[name]} for name, about in streams.items()})
        return
    columns = ("clips", "classes", "failures", "segments", "packed", "bytes")
    rows = [(name, *(about[column] for column in columns), fingerprints[name][:12]) for name, about in streams.items()]
    print_table(("stream", *columns, "fingerprint"), rows)
    for name, about in streams.items():
        click.echo(f"\n{name}:")
        for key, value in _flat("", about["spec"]):
            click.echo(printable(f"  {key}: {value}"))


@cache.command()
@directory_argument
@json_option
def verify(directory: Path, as_json: bool) -> None:
    """Compare every file and row of a cache with its checksums; exit code 3 if something is damaged.

    Damaged files are marked, and `amfir extract` or `amfir cache import` makes their clips anew.

    \b
    Examples:
      amfir cache verify features
    """
    from ...cache.verify import verify as verify_cache

    damages = verify_cache(directory)
    if as_json:
        print_json({"damaged": [{"path": str(damage.path), "what": damage.what} for damage in damages]})
    elif not damages:
        click.echo(f"{directory}: all files and rows are whole")
    for damage in damages:
        say(f"{damage.path}: {damage.what}")
    if damages:
        say(f"{len(damages)} damaged; run the same amfir extract or import command again to make these clips anew")
        raise SystemExit(EXIT_PARTIAL)


@cache.command()
@directory_argument
@json_option
def failures(directory: Path, as_json: bool) -> None:
    """List the clips that could not be extracted or imported, with a reason and what to do.

    \b
    Examples:
      amfir cache failures features
      amfir cache failures features --json
    """
    from ...cache.store import Store
    from ...extract.reasons import REASONS as EXTRACT_REASONS
    from ..feature_files import REASONS as IMPORT_REASONS

    reasons = {**EXTRACT_REASONS, **IMPORT_REASONS}
    store = Store(directory)
    found = [(name, failure) for name in store.streams() for failure in store.failures(name)]
    if as_json:
        print_json({"failures": [_as_json(stream, failure, reasons) for stream, failure in found]})
        return
    for stream, failure in found:
        click.echo(printable(f"{failure.clip_id}  [{stream}]  {failure.reason}: {failure.message}"))
    for reason in sorted({failure.reason for _, failure in found}):
        click.echo(f"{reason}: {_what_to_do(reason, reasons)}", err=True)
    say(f"{len(found)} failures" if found else "no failures")


@cache.command()
@directory_argument
@json_option
def pack(directory: Path, as_json: bool) -> None:
    """Merge the segments of each stream into one file that opens memory-mapped.

    \b
    Examples:
      amfir cache pack features
    """
    from ...cache.pack import pack as pack_cache
    from ...cache.store import Store

    store = Store(directory)
    before = store.info()
    pack_cache(directory)
    after = store.info()
    if as_json:
        print_json({name: {"before": before[name], "after": after[name]} for name in after})
        return
    for name, about in after.items():
        click.echo(
            f"{name}: {about['clips']} clips, {before[name]['segments']} segments merged, {about['bytes']} bytes"
        )


def _flat(prefix: str, value: "Json") -> "Iterator[tuple[str, Json]]":
    """Yield the leaves of nested JSON objects as `a.b.c` and value."""
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, item in value.items():
        yield from _flat(f"{prefix}.{key}" if prefix else key, item)


def _as_json(stream: str, failure: "Failure", reasons: Mapping[str, str]) -> dict[str, str]:
    return {
        "stream": stream,
        "id": failure.clip_id,
        "label": failure.label,
        "reason": failure.reason,
        "message": failure.message,
        "what_to_do": _what_to_do(failure.reason, reasons),
    }


def _what_to_do(reason: str, reasons: Mapping[str, str]) -> str:
    return reasons.get(reason, "a reason that this version does not know; look at the message")
