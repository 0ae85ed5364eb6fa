"""`amfir weights`: list, fetch and check the networks' weights."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import EXIT_PARTIAL, json_option, print_json, print_table, printable, resumable, say

if TYPE_CHECKING:
    from ...extract.weights import Checked, Weights

MB = 1_000_000


@click.group()
def weights() -> None:
    """List, fetch and check the networks' weights.

    Files lie where torch.hub and torchvision keep theirs; set TORCH_HOME to choose another place.

    \b
    Examples:
      amfir weights list
      amfir weights fetch resnet50 i3d-flow-charades
      amfir weights check
    """


@weights.command(name="list")
@json_option
def list_command(as_json: bool) -> None:
    """List every weights file that is known: its size, licence and source, and whether it is here.

    \b
    Examples:
      amfir weights list
      amfir weights list --json
    """
    from ...extract.weights import register, weights_folder

    entries = list(register().values())
    if as_json:
        print_json({"folder": str(weights_folder()), "weights": [_as_json(entry) for entry in entries]})
        return
    rows = [
        (
            entry.name,
            f"{_megabytes(entry.size_bytes)} MB",
            "yes" if entry.path.is_file() else "",
            entry.licence,
            entry.note,
            entry.url,
        )
        for entry in entries
    ]
    print_table(("network", "size", "here", "licence", "trained on", "source"), rows)
    say(f"files are kept in {weights_folder()}")


@weights.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
def fetch(names: tuple[str, ...], as_json: bool) -> None:
    """Download weights files, or what is missing of them, and compare them with their published hashes.

    Without a network, fetch the file at the address of `amfir weights list` on another machine and name it with
    --rgb-weights or --flow-weights FILE of `extract`, or copy it into the folder that `list` names.

    \b
    Examples:
      amfir weights fetch resnet50
      amfir weights fetch resnet50 i3d-flow-charades --json
    """
    from ...extract.fetch import file_sha256
    from ...extract.weights import find_weights

    entries = [find_weights(name) for name in dict.fromkeys(names)]
    with resumable():
        for entry in entries:
            _fetch_one(entry)
    found = [(entry, file_sha256(entry.path)) for entry in entries]
    if as_json:
        print_json({"weights": [_as_json(entry) | {"file_sha256": sha256} for entry, sha256 in found]})
        return
    for entry, sha256 in found:
        click.echo(printable(f"{entry.name}: {entry.path}, SHA-256 {sha256} ({_published(entry.sha256)})"))


@weights.command()
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option(
    "--weights", "file", metavar="FILE", type=click.Path(path_type=Path), help="Check this file for the one NAME."
)
@json_option
def check(names: tuple[str, ...], file: Path | None, as_json: bool) -> None:
    """Hash weights files, read them and load them into their networks; exit code 3 if one is not what it should be.

    Without names, all files that are here are checked.

    \b
    Examples:
      amfir weights check
      amfir weights check resnet50
      amfir weights check resnet50 --weights my-resnet50.pth
    """
    from ...extract.weights import check as check_file

    if file and len(names) != 1:
        raise click.UsageError("--weights needs one NAME, that of the network")
    results = [check_file(*what) for what in _to_check(names, file)]
    if as_json:
        print_json({"checked": [asdict(result) | {"path": str(result.path)} for result in results]})
    else:
        for result in results:
            click.echo(printable(_describe(result)))
        if not results:
            say("no weights are here; amfir weights fetch NAME gets some")
    if any(result.problem for result in results):
        say("not all is well: delete what is damaged and fetch it again, or name the network that the file is for")
        raise SystemExit(EXIT_PARTIAL)


def _fetch_one(entry: "Weights") -> None:
    """Fetch one file beside a bar that counts megabytes."""
    from ...extract.weights import fetch as fetch_file
    from ..progress import Bar

    with Bar("MB") as bar:

        def show(ready: int, total: int, before: int) -> None:
            total = total or entry.size_bytes or ready
            bar.update(_megabytes(ready), _megabytes(total), before=_megabytes(before), note=entry.name)

        fetch_file(entry, show)


def _to_check(names: tuple[str, ...], file: Path | None) -> "list[tuple[str, Weights | None, Path]]":
    """Return what is to be checked: name, entry of the register, file.

    Raises:
        UserError: If a name is unknown.
    """
    from ...extract.weights import find_weights, register

    if file and ":" in names[0]:  # a network of another package, whose weights are in no register
        return [(names[0], None, file)]
    if file:
        return [(find_weights(names[0]).name, None, file)]
    if names:
        return [_entry(find_weights(name)) for name in dict.fromkeys(names)]
    return [_entry(entry) for entry in register().values() if entry.path.is_file()]


def _entry(entry: "Weights") -> "tuple[str, Weights, Path]":
    return entry.name, entry, entry.path


def _as_json(entry: "Weights") -> dict[str, Any]:
    return {
        "name": entry.name,
        "url": entry.url,
        "size_bytes": entry.size_bytes,
        "sha256": entry.sha256,
        "licence": entry.licence,
        "note": entry.note,
        "file": str(entry.path),
        "here": entry.path.is_file(),
    }


def _describe(result: "Checked") -> str:
    """Say on one line what a check found."""
    if result.problem:
        return f"{result.name}: {result.problem}; {result.path}"
    hashed = f"SHA-256 {result.sha256} ({_published(result.known_sha256)})"
    loads = "loads into its network" if result.loads else "too large to be loaded for a check"
    return f"{result.name}: {result.tensors} tensors, {hashed}, {loads}; {result.path}"


def _published(sha256: str | None) -> str:
    return f"{sha256} is published" if sha256 else "none is published"


def _megabytes(count: int | None) -> int:
    return round((count or 0) / MB)
