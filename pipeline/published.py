"""What the papers report, to stand beside one's own numbers where both mean the same."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

WAY = 5
SHOTS = (1, 5)
"""The papers' episodes, in the order of the numbers in published.toml."""

DATASETS = ("kinetics100", "ssv2-full", "ssv2-small", "hmdb51", "ucf101")
"""Names of built-in splits that say which dataset it is."""

_USUAL = {"rgb": "resnet50", "flow": "i3d-flow-charades"}


@dataclass(frozen=True)
class Published:
    """A row of the papers' table for one dataset."""

    title: str
    """As the papers call the method."""
    head: str
    """Row of our table."""
    arrangement: str
    """Column of our table."""
    dataset: str
    """Name of the built-in split."""
    backbones: Mapping[str, str]
    """Stream -> network."""
    accuracies: tuple[float, ...]
    """One for each of `SHOTS`, percent; NaN where there is none."""
    source: str
    """Who reports it."""


@cache
def load_published() -> tuple[Published, ...]:
    """Read published.toml."""
    table = tomllib.loads((resources.files(__package__) / "published.toml").read_text(encoding="utf-8"))
    return tuple(
        Published(
            row["title"],
            row["head"],
            row["arrangement"],
            dataset,
            row.get("backbones") or _usual(row["arrangement"]),
            tuple(row[dataset]),
            table["sources"][row["source"]],
        )
        for row in table["rows"]
        for dataset in DATASETS
        if dataset in row
    )


def find_published(
    head: str, arrangement: str, *, split: str, way: int, shot: int, backbones: Mapping[str, str]
) -> tuple[float, str] | None:
    """The published accuracy in percent and its source, if dataset, episodes and backbones are the same.

    Args:
        head: Row of our table.
        arrangement: Its column.
        split: Name of the split, which says the dataset where it is a built-in one.
        way: Classes of an episode.
        shot: Support clips of each class.
        backbones: Stream -> name of its network, of all streams that the method uses.
    """
    if way != WAY or shot not in SHOTS:
        return None
    for row in load_published():
        if (row.head, row.arrangement, row.dataset) == (head, arrangement, split) and row.backbones == backbones:
            accuracy = row.accuracies[SHOTS.index(shot)]
            return None if math.isnan(accuracy) else (accuracy, row.source)
    return None


def _usual(arrangement: str) -> Mapping[str, str]:
    streams: Sequence[str] = [arrangement] if arrangement in _USUAL else list(_USUAL)
    return {stream: _USUAL[stream] for stream in streams}
