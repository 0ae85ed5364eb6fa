"""What a report says, before it is HTML, Markdown or LaTeX."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONG = 12
"""Rows that a table of a figure's own points may have without being folded."""


@dataclass(frozen=True)
class Series:
    """Marks that belong together, as the legend shows them."""

    label: str
    """Name in the legend, and of the rows' `series`."""
    colour: str
    """A key of `theme.COLOURS`."""
    shape: str = "circle"
    """Of its points, a key of `theme.SHAPES`: colours alone do not reach everybody."""
    dash: tuple[int, ...] = ()
    """Of its lines; empty: solid."""


@dataclass(frozen=True)
class Panel:
    """One plot."""

    title: str
    """Above it, where a figure has several; may be empty."""
    spec: Mapping[str, Any]
    """Vega-Lite, a single or layered view of the width "container", without a legend."""


@dataclass(frozen=True)
class Figure:
    """Plots side by side, under one legend and over one caption."""

    name: str
    """Unique in the report: file name of the PNG, id in the page."""
    panels: tuple[Panel, ...]
    """At least one."""
    caption: str
    """What is drawn; what it means is said above the figure."""
    series: tuple[Series, ...] = ()
    """The legend; empty: none."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    """As people read it; empty where there is nothing."""
    value: float | None = None
    """What it sorts by; None: its text."""
    bold: bool = False
    """Whether it is the best of its column."""


@dataclass(frozen=True)
class Table:
    """Numbers in rows."""

    name: str
    """Unique in the report: file name of the LaTeX, id in the page."""
    caption: str
    """What it lists."""
    header: tuple[str, ...]
    """One title for each column."""
    rows: tuple[tuple[Cell, ...], ...]
    """As long as the header, each."""
    numeric: tuple[bool, ...]
    """Whether a column holds numbers, for its alignment."""
    folds: bool = False
    """Whether it only lists the points of its figure."""

    @property
    def folded(self) -> bool:
        """Whether it is put away until it is asked for: long, and its figure shows the same."""
        return self.folds and len(self.rows) > LONG


@dataclass(frozen=True)
class Picture:
    """A picture of a clip."""

    name: str
    """Unique in the report: file name without its ending."""
    kind: str
    """What it is: frame, flow."""
    label: str
    """What it shows, for those who do not see it."""
    path: Path
    """The file."""


@dataclass(frozen=True)
class Clip:
    """A clip that one modality got right alone."""

    name: str
    """Its id."""
    label: str
    """Its class."""
    right: str
    """The modality that was right alone."""
    predictions: tuple[tuple[str, str], ...]
    """Modality and the class it took the clip for."""
    weights: tuple[tuple[str, float], ...]
    """Modality and its mean weight in AMI, 0 to 1."""
    details: tuple[tuple[str, str], ...] = ()
    """Other figures: name and value."""
    pictures: tuple[Picture, ...] = ()
    """A frame, its flow."""


@dataclass(frozen=True)
class Block:
    """A conclusion, and what it follows from."""

    claims: tuple[str, ...]
    """Sentences; each follows from a number of the figure or table below it."""
    heading: str = ""
    """Where a section has several blocks."""
    figure: Figure | None = None
    tables: tuple[Table, ...] = ()
    clips: tuple[Clip, ...] = ()


@dataclass(frozen=True)
class Section:
    """A study."""

    name: str
    """Unique in the report."""
    title: str
    """Heading."""
    blocks: tuple[Block, ...]
    """In the order of reading."""
    settings: str = ""
    """What all its numbers have in common, on one line."""
    skipped: tuple[str, ...] = ()
    """What was left out and why."""
    notes: tuple[str, ...] = ()
    """What a reader has to know."""


@dataclass(frozen=True)
class Facts:
    """Where the numbers come from."""

    values: tuple[tuple[str, str], ...]
    """Name and value, in the order of reading."""
    commands: tuple[str, ...]
    """What to type to get them again."""


@dataclass(frozen=True)
class Group:
    """The studies of one folder."""

    name: str
    """Unique in the report."""
    title: str
    """Heading: the data set or split."""
    sections: tuple[Section, ...]
    """Of the studies that were run."""
    missing: tuple[str, ...]
    """Titles of those that were not."""
    facts: Facts
    """Provenance."""


@dataclass(frozen=True)
class Report:
    """All of it."""

    title: str
    """Heading of the page."""
    groups: tuple[Group, ...]
    """One for each folder."""

    def blocks(self) -> list[Block]:
        """All blocks, in the order of reading."""
        return [block for group in self.groups for section in group.sections for block in section.blocks]
