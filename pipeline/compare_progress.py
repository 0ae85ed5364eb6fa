"""How far a comparison is, and for how long it goes on: cells weigh what they are expected to take."""

import sys
from collections.abc import Callable, Sequence
from statistics import mean
from types import TracebackType
from typing import Any

from tqdm import tqdm

from .compare_cells import Cell
from .compare_store import Measured

UNKNOWN_SECONDS = {"late": 1.0, "single": 10.0, "joint": 20.0}
"""Weights of cells while none of their kind was measured; only their ratios matter."""


class Forecast:
    """What cells take, as far as those that were measured tell."""

    def __init__(self) -> None:
        self._seconds: dict[Cell, float] = {}

    def note(self, cell: Cell, measured: Measured) -> None:
        """Learn what a cell took."""
        trained = 0.0 if cell.parts else sum(cost.seconds for cost in measured.costs)
        self._seconds[cell] = trained + measured.seconds

    def seconds(self, cell: Cell) -> float:
        """What a cell took, or else the mean of the most similar ones that were measured."""
        if cell in self._seconds:
            return self._seconds[cell]
        similar: Sequence[Callable[[Cell], bool]] = (
            lambda other: (other.row, other.arrangement) == (cell.row, cell.arrangement),
            lambda other: (other.row, _kind(other)) == (cell.row, _kind(cell)),
            lambda other: _kind(other) == _kind(cell),
        )
        for alike in similar:
            if found := [seconds for other, seconds in self._seconds.items() if alike(other)]:
                return mean(found)
        return UNKNOWN_SECONDS[_kind(cell)]


class CellBar:
    """A bar on stderr whose unit is expected work, with the time that is left.

    Args:
        todo: The cells that are to be run.
        forecast: Knows what earlier ones took.
    """

    def __init__(self, todo: Sequence[Cell], forecast: Forecast) -> None:
        self._forecast = forecast
        self._shares = dict.fromkeys(todo, 0.0)
        self._ended = 0
        self._bar: Any = None

    def __enter__(self) -> "CellBar":
        if self._shares:
            self._bar = tqdm(
                total=1.0,
                mininterval=0.1 if sys.stderr.isatty() else 10.0,
                miniters=0,
                smoothing=0,
                file=sys.stderr,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]",
            )
            self._show("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def tick(self, cell: Cell | None, share: float) -> None:
        """Show that a share of a cell's training is done; without a cell, that time goes by."""
        if cell is not None:
            # Evaluation comes after training: a cell whose training is done is not.
            self._shares[cell] = 0.95 * share
        self._show("" if cell is None else cell.label)

    def end(self, cell: Cell) -> None:
        """Show that a cell has ended."""
        self._shares[cell] = 1.0
        self._ended += 1
        self._show(cell.label)

    def _show(self, label: str) -> None:
        weights = {cell: self._forecast.seconds(cell) for cell in self._shares}
        total = sum(weights.values()) or 1.0
        done = sum(weights[cell] * share for cell, share in self._shares.items())
        # Shares of all the work, since what a cell weighs changes with each that was measured.
        self._bar.set_description_str(f"{self._ended}/{len(self._shares)} cells {label}".rstrip(), refresh=False)
        self._bar.update(max(done / total - self._bar.n, 0.0))


def _kind(cell: Cell) -> str:
    return "late" if cell.parts else "single" if len(cell.streams) == 1 else "joint"
