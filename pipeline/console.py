"""What every command shares: exit codes, options, and how text reaches the terminal.

Results go to stdout and everything else to stderr, so that `--json` prints one object and nothing beside it.
"""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from ..cache.errors import UserError

EXIT_MACHINE = 1
EXIT_USAGE = 2
EXIT_PARTIAL = 3
EXIT_INTERRUPTED = 130

ARGUMENTS_KEY = "amfir.arguments"
"""Where the root command keeps the arguments it was called with, in `click.Context.meta`."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def parse_streams(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """Split a comma-separated list of stream names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def parse_numbers(context: click.Context, parameter: click.Parameter, text: str) -> tuple[int, ...]:
    """Split a comma-separated list of whole numbers."""
    try:
        return tuple(dict.fromkeys(int(number) for number in text.split(",") if number.strip()))
    except ValueError:
        name = parameter.opts[0]
        raise UserError(f"{text!r} is no list of whole numbers; {name}; write it like {name} 1,5") from None


def print_json(value: Any) -> None:
    """Print one JSON object; names that are no UTF-8 appear as escapes."""
    click.echo(json.dumps(value, indent=2))


def say(message: str) -> None:
    """Write a line to stderr."""
    click.echo(printable(message), err=True)


def printable(text: str) -> str:
    r"""Return `text` on one line that any terminal takes: control characters and broken UTF-8 become escapes.

    >>> printable("a" + chr(10) + "b")
    'a\\nb'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns as wide as their widest cell, two spaces apart."""
    lines = [[printable(str(cell)) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@contextmanager
def resumable(*extra: str) -> Iterator[None]:
    """On Ctrl-C, print the command that goes on from here, and end with exit code 130.

    Args:
        *extra: Options to append to the present command, unless it has them ("--resume").
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        arguments: list[str] = click.get_current_context().meta[ARGUMENTS_KEY]
        command = shlex.join(["amfir", *arguments, *(option for option in extra if option not in arguments)])
        say(f"Interrupted; what is finished is kept. Resume with: {command}")
        raise click.Abort from interrupt
