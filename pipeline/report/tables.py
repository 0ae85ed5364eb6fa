"""Cells and tables of numbers, the same for HTML, Markdown and LaTeX."""

from collections.abc import Mapping, Sequence
from typing import Any

from .document import Cell, Table
from .wording import number

Rows = Sequence[Mapping[str, Any]]

NOTHING = Cell("")


def table(
    name: str, caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], *, folds: bool = False
) -> Table:
    """A table whose columns are numeric where all their filled cells are."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(header)
    numeric = [
        any(c.value is not None for c in column) and all(c.value is not None or not c.text for c in column)
        for column in columns
    ]
    return Table(name, caption, tuple(header), tuple(tuple(row) for row in rows), tuple(numeric), folds)


def text(value: Any) -> Cell:
    """A cell of words; empty for None."""
    return Cell("" if value is None else str(value))


def figure(value: float | None, digits: int = 2) -> Cell:
    """A cell of a number; empty for None."""
    return NOTHING if value is None else Cell(number(value, digits), value)


def count(value: float | None) -> Cell:
    """A cell of a whole number, thousands set apart."""
    return NOTHING if value is None else Cell(f"{value:,.0f}", value)


def level(value: float) -> Cell:
    """A cell of a number that somebody chose, with the digits it needs."""
    return Cell(f"{value:g}", value)


def accuracy(row: Mapping[str, Any] | None, *, bold: bool = False) -> Cell:
    """A cell of an accuracy and its interval, of a row's `accuracy` and `ci95`; empty where it is missing."""
    if row is None or row["accuracy"] is None:
        return NOTHING
    return Cell(with_interval(row["accuracy"], row["ci95"]), row["accuracy"], bold)


def difference(value: float | None, ci95: float | None) -> Cell:
    """A cell of a difference with its sign and interval."""
    if value is None:
        return NOTHING
    sign = "+" if value > 0 else ""
    return Cell(sign + with_interval(value, ci95), value)


def p_value(value: float | None) -> Cell:
    """A cell of a probability."""
    if value is None:
        return NOTHING
    return Cell("< 0.0001" if value < 1e-4 else number(value, 4), value)


def with_interval(value: float, ci95: float | None) -> str:
    """Two digits, and the interval where it is known."""
    return number(value, 2) if ci95 is None else f"{number(value, 2)} ± {number(ci95, 2)}"


def matrix(
    name: str, caption: str, corner: str, lines: Mapping[str, str], columns: Mapping[Any, str], cells: Mapping[Any, Any]
) -> Table:
    """A table of accuracies: lines by columns, the best of each column bold.

    Args:
        name: Of the table.
        caption: Of the table.
        corner: Title of the first column.
        lines: Key -> title of each line.
        columns: Key -> title of each column.
        cells: (line, column) -> row with `accuracy` and `ci95`.
    """
    best = {
        column: max(
            (row["accuracy"] for (_, c), row in cells.items() if c == column and row["accuracy"] is not None),
            default=None,
        )
        for column in columns
    }
    rows = []
    for line, title in lines.items():
        found = [(cells.get((line, column)), best[column]) for column in columns]
        shown = [accuracy(row, bold=row is not None and row["accuracy"] == top) for row, top in found]
        rows.append([text(title), *shown])
    return table(name, caption, [corner, *columns.values()], rows)
