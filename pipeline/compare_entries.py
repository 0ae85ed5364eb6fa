"""From cells to the entries of a table: means over seeds, differences on common episodes, ranks, costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .compare_cells import Cell, row_title
from .compare_store import Cost, Measured
from .published import find_published
from .significance import Difference, holm, mean_interval, paired_difference


@dataclass(frozen=True)
class Setting:
    """What all entries of a table have in common."""

    split: str
    """Name of the split."""
    way: int
    """Classes of an episode."""
    query: int
    """Query clips of each class."""
    episodes: int
    """Evaluation episodes."""
    backbones: Mapping[str, str]
    """Stream -> name of its network."""


@dataclass(frozen=True)
class Spent:
    """What a method costs, mean over seeds; None where it is not known."""

    parameters: int | None
    """Numbers that are learned."""
    train_seconds: float | None
    """Time of the training, all of a method's runs together."""
    train_rate: float | None
    """Training episodes a second."""
    evaluation_rate: float
    """Evaluation episodes a second."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A method in an arrangement at a shot; accuracies and differences in percent."""

    row: str
    title: str
    """How tables call the row."""
    arrangement: str
    """Column."""
    shot: int
    seeds: int
    """Trainings that it is the mean of."""
    episodes: NDArray[np.float64] | None
    """Accuracy of each episode, mean over the seeds, [E]; None where it failed."""
    accuracy: float = float("nan")
    ci95: float = float("nan")
    """Half-width of the 95 % confidence interval over episodes."""
    seeds_sd: float | None = None
    """Standard deviation of the seeds' accuracies; None with one seed."""
    spent: Spent | None = None
    rank: int | None = None
    """Among all entries of the shot, 1 for the best; equal accuracies share one."""
    to_column: Difference | None = None
    """To the best of its column, p adjusted over the column; None for the best itself."""
    to_table: Difference | None = None
    """To the best of the shot, p adjusted over all its entries; None for the best itself."""
    published: tuple[float, str] | None = None
    """Published accuracy and its source, where dataset, episodes and backbones match."""
    failure: str = ""
    """Why it has no accuracy."""

    @property
    def failed(self) -> bool:
        """Whether it has no accuracy."""
        return self.episodes is None


def make_entries(results: Mapping[Cell, Measured | str], setting: Setting) -> list[Entry]:
    """Put cells together that differ in nothing but the seed, and compare what comes of it.

    Args:
        results: Each cell's outcome, or the line of its error.
        setting: What they have in common.

    Returns:
        Entries in the order of the cells.
    """
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in results:
        groups.setdefault((cell.row, cell.arrangement, cell.shot), []).append(cell)
    entries = [_merge(cells, [results[cell] for cell in cells], setting) for cells in groups.values()]
    done: list[Entry] = []
    for shot in dict.fromkeys(entry.shot for entry in entries):
        done += _compare([entry for entry in entries if entry.shot == shot])
    return done


def best_of(entries: Iterable[Entry]) -> Entry | None:
    """The entry of the highest accuracy, the first of equals; None if all failed."""
    return max((entry for entry in entries if not entry.failed), key=lambda entry: entry.accuracy, default=None)


def _merge(cells: Sequence[Cell], outcomes: Sequence[Measured | str], setting: Setting) -> Entry:
    """Mean over seeds; one that failed takes the entry with it, since a mean of fewer would be another figure."""
    cell = cells[0]
    entry = Entry(cell.row, row_title(cell.row), cell.arrangement, cell.shot, len(cells), None)
    backbones = {stream: setting.backbones.get(stream, "") for stream in cell.streams}
    known = find_published(
        cell.row, cell.arrangement, split=setting.split, way=setting.way, shot=cell.shot, backbones=backbones
    )
    entry = replace(entry, published=known)
    measured = [outcome for outcome in outcomes if isinstance(outcome, Measured)]
    if len(measured) < len(outcomes):
        return replace(entry, failure=next(outcome for outcome in outcomes if isinstance(outcome, str)))
    shares = 100 * np.stack([one.right for one in measured]) / (setting.way * setting.query)
    episodes = shares.mean(0)
    accuracy, ci95 = mean_interval(episodes)
    return replace(
        entry,
        episodes=episodes,
        accuracy=accuracy,
        ci95=ci95,
        seeds_sd=float(shares.mean(1).std(ddof=1)) if len(measured) > 1 else None,
        spent=_spent(measured),
    )


def _spent(measured: Sequence[Measured]) -> Spent:
    rate = float(np.mean([len(one.right) / one.seconds for one in measured]))
    if not all(one.costs for one in measured):
        return Spent(None, None, None, rate)
    costs: list[Cost] = [cost for one in measured for cost in one.costs]
    seconds = sum(cost.seconds for cost in costs)
    parameters = sum(cost.parameters for cost in costs) // len(measured)
    train_rate = sum(cost.episodes for cost in costs) / seconds if seconds else None
    return Spent(parameters, seconds / len(measured), train_rate, rate)


def _compare(entries: Sequence[Entry]) -> list[Entry]:
    """Rank the entries of a shot, and hold them against the best of their column and of all."""
    whole = _differences(entries)
    columns: dict[int, Difference] = {}
    for name in dict.fromkeys(entry.arrangement for entry in entries):
        columns |= _differences([entry for entry in entries if entry.arrangement == name])
    accuracies = [entry.accuracy for entry in entries if not entry.failed]
    return [
        replace(
            entry,
            rank=None if entry.failed else 1 + sum(other > entry.accuracy for other in accuracies),
            to_column=columns.get(id(entry)),
            to_table=whole.get(id(entry)),
        )
        for entry in entries
    ]


def _differences(entries: Sequence[Entry]) -> dict[int, Difference]:
    """Difference to the best of the entries, p adjusted, by id; the best and those that failed have none."""
    best = best_of(entries)
    found = {
        id(entry): paired_difference(entry.episodes, best.episodes)
        for entry in entries
        if best is not None and best.episodes is not None and entry.episodes is not None and entry is not best
    }
    adjusted = holm([difference.p for difference in found.values()])
    return {key: replace(found[key], p=p) for key, p in zip(found, adjusted, strict=True)}
