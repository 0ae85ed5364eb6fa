"""Pictures: training curves, and what the demo ends with."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

COLOURS = {"rgb": "#c2452d", "flow": "#2b6cb0"}
FUSED = "#2f855a"
NEUTRAL = "#718096"


def plot_curves(log: Sequence[Mapping[str, float]], modalities: Sequence[str], path: Path) -> None:
    """Draw loss, accuracy, free energy and group sizes over the training episodes.

    Args:
        log: Records of a training, see `meta.train.Record`.
        modalities: Names in the records' keys.
        path: The PNG.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    panels = (
        ("cross-entropy", "cross-entropy", "loss"),
        ("accuracy", "accuracy in %", "accuracy"),
        ("free-energy", "free energy", None),
        ("group", "share of queries in the group", None),
    )
    fused = len(modalities) > 1  # or the curve of all covers the only one
    for axis, (key, title, total) in zip(axes.flat, panels, strict=True):
        for name in modalities:
            _curve(axis, log, f"{key}/{name}", name, COLOURS.get(name, NEUTRAL))
        if total and fused:
            _curve(axis, log, total, "all" if total == "loss" else "fused", FUSED)
        if key == "accuracy":
            _curve(axis, log, "validation", "validation, fused" if fused else "validation", "black")
        axis.set(title=title, xlabel="training episodes")
        axis.grid(alpha=0.25)
        if axis.lines:
            axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def _curve(axis: Any, log: Sequence[Mapping[str, float]], key: str, label: str, colour: str) -> None:
    """A line for each learning rate that was tried, solid for the first."""
    rates: list[float | None] = list(dict.fromkeys(r["learning-rate"] for r in log if "learning-rate" in r)) or [None]
    for rate, style in zip(rates, itertools.cycle(("-", "--", ":", "-."))):
        points = [(r["episodes"], r[key]) for r in log if key in r and r.get("learning-rate", rate) == rate]
        if points:
            shown = label if rate is None else f"{label}, rate {rate:g}"
            axis.plot(*zip(*points, strict=True), label=shown, color=colour, marker=".", linestyle=style)


def plot_demo(
    results: Sequence[Mapping[str, Any]],
    pictures: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]],
    path: Path,
) -> None:
    """Draw the demo's accuracies, its selection accuracies, and a few clips with their flow.

    Args:
        results: Objects as `eval --json` prints them, AMFIR's last.
        pictures: Class name, frame [H, W, 3] and rendered flow [H, W, 3] of some test clips.
        path: The PNG.
    """
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.35, 1))
    top, bottom = parts
    left, right = top.subplots(1, 2)
    _plot_accuracies(left, results)
    _plot_selection(right, results[-1]["selection_accuracy"])
    tiles = bottom.subplots(2, len(pictures))
    bottom.suptitle("test clips: a frame, and its flow (red: to the right, green: down, blue: speed)")
    for column, (name, frame, flow) in zip(tiles.T, pictures, strict=True):
        for tile, picture in zip(column, (frame, flow), strict=True):
            tile.imshow(picture)
            tile.axis("off")
        column[0].set_title(name, fontsize=7)
    figure.savefig(path, dpi=110)


def _plot_accuracies(axis: Any, results: Sequence[Mapping[str, Any]]) -> None:
    names = [*results[0]["modalities"], "fused"]
    for position, name in enumerate(names):
        shares = [result if name == "fused" else result["modalities"][name] for result in results]
        places = np.arange(len(results)) + (position - (len(names) - 1) / 2) * 0.27
        heights = [share["accuracy"] for share in shares]
        errors = [share["ci95"] for share in shares]
        bars = axis.bar(places, heights, 0.25, yerr=errors, label=name, color=COLOURS.get(name, FUSED), capsize=2)
        axis.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axis.axhline(100 / results[0]["way"], color=NEUTRAL, linestyle=":", label="chance")
    axis.set_xticks(range(len(results)), [result["method"] for result in results])
    axis.set(title=f"{results[0]['way']}-way {results[0]['shot']}-shot accuracy in %, held-out classes", ylim=(0, 100))
    axis.legend(frameon=False, ncols=4, loc="upper left", fontsize=8)


def _plot_selection(axis: Any, selection: Mapping[str, float]) -> None:
    ordered = sorted(selection.items(), key=lambda item: item[1])
    colours = [NEUTRAL if name.startswith("always") else FUSED for name, _ in ordered]
    bars = axis.barh([name for name, _ in ordered], [value for _, value in ordered], color=colours)
    axis.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axis.set(title="right modality picked in %, where exactly one is right (AMFIR)", xlim=(0, 100))
