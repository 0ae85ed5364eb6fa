"""A comparison as a picture: a dot with its interval for each method in each arrangement."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .compare_cells import FUSED, OWN
from .compare_entries import Entry, Setting, best_of
from .compare_table import TITLES, columns_of
from .plots import COLOURS, NEUTRAL

ARRANGEMENT_COLOURS = {**COLOURS, "ec": "#b7791f", "ea": "#805ad5", "lf": "#319795", "ami": "#1a202c", OWN: "#d53f8c"}
MARKERS = {"ec": "s", "ea": "D", "lf": "^", "ami": "o", OWN: "P"}
"""Beside the colours, for those who do not see them; streams have small dots."""


def plot_comparison(entries: Sequence[Entry], setting: Setting, path: Path) -> None:
    """Draw one panel for each shot, the methods in the order of the first: best AMI first, without it their best.

    Args:
        entries: Of `make_entries`.
        setting: What they have in common.
        path: The PNG.
    """
    shots = list(dict.fromkeys(entry.shot for entry in entries))
    rows = _order(entries, shots[0])
    figure = Figure(figsize=(2.8 + 4.6 * len(shots), 1.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(shots), sharey=True, squeeze=False)[0]
    for axis, shot in zip(axes, shots, strict=True):
        _panel(axis, [entry for entry in entries if entry.shot == shot], rows, setting)
    titles = {entry.row: entry.title for entry in entries}
    axes[0].set_yticks(range(len(rows)), [titles[row] for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    handles, labels = _legend(axes)
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 8), frameon=False)
    figure.savefig(path, dpi=110)


def _order(entries: Sequence[Entry], shot: int) -> list[str]:
    """Rows, the best first."""
    rows = dict.fromkeys(entry.row for entry in entries)

    def height(row: str) -> float:
        own = [entry for entry in entries if entry.row == row and entry.shot == shot]
        best = best_of([entry for entry in own if entry.arrangement == "ami"]) or best_of(own)
        return best.accuracy if best else -1.0

    return sorted(rows, key=height, reverse=True)


def _panel(axis: Any, entries: Sequence[Entry], rows: Sequence[str], setting: Setting) -> None:
    columns = columns_of(entries)
    for position, name in enumerate(columns):
        shown = [entry for entry in entries if entry.arrangement == name and not entry.failed]
        # Each arrangement has a height of its own within a row, so that equal accuracies do not hide each other.
        offset = 0.75 * ((position + 0.5) / len(columns) - 0.5)
        axis.errorbar(
            [entry.accuracy for entry in shown],
            [rows.index(entry.row) + offset for entry in shown],
            xerr=[entry.ci95 for entry in shown],
            fmt=MARKERS.get(name, "."),
            color=ARRANGEMENT_COLOURS.get(name, NEUTRAL),
            markersize=4 if name in (*FUSED, OWN) else 6,
            elinewidth=1.2,
            label=TITLES.get(name, name),
        )
    for place in range(0, len(rows), 2):
        axis.axhspan(place - 0.5, place + 0.5, color="black", alpha=0.04, linewidth=0)
    axis.axvline(100 / setting.way, color=NEUTRAL, linestyle=":", label="chance")
    axis.grid(axis="x", alpha=0.25)
    shot = entries[0].shot
    axis.set(title=f"{setting.way}-way {shot}-shot on {setting.split}", xlabel="accuracy in %, 95 % interval")


def _legend(axes: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Handles and labels of all panels, each once."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
