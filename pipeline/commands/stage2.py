"""Options that the commands of the second stage share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from ..console import parse_streams

F = TypeVar("F", bound=Callable[..., Any])

ALL = "all"
"""What is written for a way of all novel classes."""


def parse_way(context: click.Context, parameter: click.Parameter, text: Any) -> Any:
    """Return a number of classes, or `ALL`."""
    return ALL if text == ALL else click.INT.convert(text, parameter, context)


def episode_options(command: F) -> F:
    """Cache, split, streams, and the shape of the episodes, with a number of ways."""
    return _options(command, click.option("--way", default=5, show_default=True, help="Classes of an episode."))


def evaluation_options(command: F) -> F:
    """The same, but that episodes may have all novel classes."""
    way = click.option(
        "--way",
        default="5",
        metavar="INTEGER|all",
        callback=parse_way,
        show_default=True,
        help="Classes of an episode, or all novel ones.",
    )
    return _options(command, way)


def _options(command: F, way: Callable[[F], F]) -> F:
    options = (
        click.argument("cache", type=click.Path(path_type=Path)),
        click.option("--split", required=True, help="A TOML or CSV file, random:SEED, or a built-in split."),
        click.option(
            "--streams", default="", callback=parse_streams, help="Modalities to use.  [default: all of the cache]"
        ),
        way,
        click.option("--shot", default=1, show_default=True, help="Support clips of each class."),
        click.option("--query", default=5, show_default=True, help="Query clips of each class."),
        click.option("--seed", default=0, show_default=True, help="Seed of everything random."),
    )
    for option in reversed(options):
        command = option(command)
    return command
