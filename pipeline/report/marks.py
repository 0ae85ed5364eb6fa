"""Rows of results as rows of charts."""

from collections.abc import Mapping, Sequence
from typing import Any

from .document import Series
from .wording import measure

Rows = Sequence[Mapping[str, Any]]


def mark(row: Mapping[str, Any], series: str, name: str = "") -> dict[str, Any]:
    """A mark of a row that has an accuracy."""
    ends = ends_of(row["accuracy"], row["ci95"])
    found = {"series": series, "value": row["accuracy"], **ends, "said": measure(row["accuracy"], row["ci95"])}
    return {"name": name, **found} if name else found


def ends_of(value: float, ci95: float | None) -> dict[str, float]:
    """Ends of an interval; a width of zero where it is not known."""
    return {"low": value - (ci95 or 0.0), "high": value + (ci95 or 0.0)}


def about(spec: dict[str, Any], text: str) -> dict[str, Any]:
    """The spec with a description, which screen readers read."""
    return {**spec, "description": text}


def split_by(rows: Rows, key: str) -> dict[Any, list[Mapping[str, Any]]]:
    """Rows by one of their values, in the order in which these come."""
    return {values[0]: part for values, part in grouped(rows, (key,)).items()}


def grouped(rows: Rows, keys: Sequence[str]) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Rows by some of their values, in the order in which these come."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def renamed(one: Series, label: str) -> Series:
    """A series that looks the same and is called otherwise."""
    return Series(label, one.colour, one.shape, one.dash)
