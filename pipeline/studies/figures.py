"""Figures 2 to 5 of AMFIR: free energy over training, and accuracy over shots, strategies and ways."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cache.errors import UserError
from ...meta.episodes import EpisodeShape
from ..compare import backbones_of
from ..compare_cells import FUSED, WHOLE, Cell, Wish, plan_cells, row_title
from ..compare_store import Measured
from ..compare_table import TITLES
from ..progress import Bar
from ..published import find_published
from ..significance import mean_interval
from .base import Context, EpisodeBlock, Result
from .table2 import lacks, variant_cell

SHOTS = (1, 2, 3, 4, 5, 10)
"""Figure 3: the paper has 1 to 5."""

WAYS = (5, 6, 7, 8, 9, 10, 20, 50, 100)
"""Figure 5: the paper has 5 to 10. All novel classes at once follow."""

METHODS = ("amfir", "amfar", "strm", "otam", "protonet")
"""Figure 3, heads fused late. TRX is left out for its cost: at 5 shots its evaluation takes four times that of STRM."""

STRATEGIES = {
    "none": ("amfir:no-amd", "no distillation"),
    "rgb-teacher": ("amfir:rgb-teacher", "RGB teaches flow (T-RGB)"),
    "flow-teacher": ("amfir:flow-teacher", "flow teaches RGB (T-Flow)"),
    "mutual": ("amfir", "mutual: the more reliable teaches (AMD)"),
}
"""Figure 4."""

COSTLIEST = 4
"""Figure 5: an episode of N ways costs N^2 of one. From twice the trained way on there are fewer episodes, so that they
cost no more than these many times those of the trained way."""

FEWEST = 100
"""Figure 5: episodes at least."""

ONE_SEED = "one training with one seed for each point: intervals are over episodes, not over trainings"

# --- Figure 2 -------------------------------------------------------------------------------------------------------


def figure2(context: Context) -> Result:
    """Free energy of each modality over AMFIR's training, from the log of its run."""
    cells = [variant_cell(context, "amfir", shot) for shot in context.config.shots]
    outcomes = context.train(cells)
    result = Result([], failures=_failures(outcomes))
    result.notes.append("free energies are means over the training episodes since the point before, in nats")
    for cell in cells:
        if isinstance(outcomes[cell], str):
            continue
        (folder,) = context.folders(cell)
        log = chosen_rate(read_log(folder / "log.csv"))
        result.rows.extend(_energies(cell, log))
        if rates := {line["learning-rate"] for line in log if "learning-rate" in line}:
            result.notes.append(f"{cell.shot}-shot: learning rate {rates.pop():g}, the one that validation chose")
    source = "AMFIR, Figure 2: where both modalities settle, on SSv2 and Kinetics, 5-way"
    result.extra["published"] = [{"free_energy": -4.0, "approximate": True, "source": source}]
    return result


def _energies(cell: Cell, log: Sequence[Mapping[str, float]]) -> Iterator[dict[str, Any]]:
    """A row for each modality and each line of the log that has its free energy; the start has none."""
    for name in cell.streams:
        for line in log:
            if f"free-energy/{name}" in line:
                yield {
                    "method": cell.method,
                    "shot": cell.shot,
                    "seed": cell.seed,
                    "modality": name,
                    "episode": int(line["episodes"]),
                    "free_energy": line[f"free-energy/{name}"],
                }


def read_log(path: Path) -> list[dict[str, float]]:
    """Lines of a run's log.csv; what is empty in a line is left out of it."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(text) for name, text in line.items() if text} for line in csv.DictReader(file)]


def chosen_rate(log: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """The lines at the learning rate whose weights the run keeps: the best validation, the first of equals."""
    rates = [line["learning-rate"] for line in log if "learning-rate" in line]
    if not rates:
        return list(log)
    best = max(log, key=lambda line: line.get("validation", -1.0))
    # The start, before any training, counts to the first rate.
    rate = best.get("learning-rate", rates[0])
    return [line for line in log if line.get("learning-rate") == rate]


# --- Figure 3 -------------------------------------------------------------------------------------------------------


def figure3(context: Context) -> Result:
    """Accuracy over the number of support clips, each method trained at each."""
    shots, skipped = _possible_shots(context)
    cells, left_out = _plan(context, METHODS, shots, ("lf",))
    outcomes = context.train(cells)
    result = Result([], [*skipped, *left_out], [ONE_SEED], failures=_failures(outcomes))
    result.notes.append("every method is trained at the shot that it is tested at")
    shown = [cell for cell in cells if cell.streams == context.modalities]
    for cell in shown:
        if isinstance(outcome := outcomes[cell], Measured):
            _point(result, _named(cell), cell, context.config.compare.shape(cell.shot), outcome.right)
    result.extra["published"] = _published(result.rows, shown, context)
    return result


def _possible_shots(context: Context) -> tuple[list[int], list[str]]:
    """Shots that the clips of the classes allow, and why the others are not."""
    config = context.config.compare
    test, base = context.split.test, (*context.split.train, *context.split.val)
    novel_clips, base_clips = (min(len(context.data.clips_of([name])) for name in part) for part in (test, base))
    possible, skipped = [], []
    for shot in SHOTS:
        trained = config.plan(variant_cell(context, "amfir", shot)).train_config().shape.query
        if shot + config.query > novel_clips:
            skipped.append(_too_few(shot, config.query, "novel", novel_clips))
        elif shot + trained > base_clips:
            skipped.append(_too_few(shot, trained, "base", base_clips))
        else:
            possible.append(shot)
    return possible, skipped


def _too_few(shot: int, query: int, part: str, clips: int) -> str:
    return f"{shot}-shot: a {part} class has {clips} clips, and {shot} shots + {query} queries need {shot + query}"


# --- Figure 4 -------------------------------------------------------------------------------------------------------


def figure4(context: Context) -> Result:
    """Accuracy of AMFIR by who teaches whom in its training."""
    result = Result([], notes=[ONE_SEED, "a fixed teacher teaches on all queries, a mutual one on those it leads"])
    cells: dict[tuple[int, str], Cell] = {}
    for strategy, (method, _) in STRATEGIES.items():
        if modality := lacks(context, strategy):
            result.skipped.append(f"{strategy}: there is no {modality} stream")
        else:
            cells |= {(shot, strategy): variant_cell(context, method, shot) for shot in context.config.shots}
    outcomes = context.train(list(cells.values()))
    result.failures.extend(_failures(outcomes))
    for (shot, strategy), cell in sorted(cells.items(), key=lambda item: item[0][0]):
        if isinstance(outcome := outcomes[cell], Measured):
            row = {"strategy": strategy, "title": STRATEGIES[strategy][1]}
            _point(result, row, cell, context.config.compare.shape(shot), outcome.right, f"strategy={strategy}")
    return result


# --- Figure 5 -------------------------------------------------------------------------------------------------------


def figure5(context: Context) -> Result:
    """Accuracy over the number of classes, 1-shot, of methods trained at the way of the tables."""
    config = context.config.compare
    cells, left_out = _plan(context, ("amfir", "amfar", "strm"), (1,), (*context.modalities, "lf"))
    outcomes = context.train(cells)
    done = [cell for cell, outcome in outcomes.items() if isinstance(outcome, Measured)]
    ways = sorted({config.way, context.num_novel, *(way for way in WAYS if way <= context.num_novel)})
    result = Result([], left_out, [ONE_SEED], failures=_failures(outcomes))
    result.notes.append(f"1-shot; every method is trained at {config.way} ways and tested at all of them")
    if too_many := [way for way in WAYS if way > context.num_novel]:
        shown = ", ".join(map(str, too_many))
        result.skipped.append(f"{shown} ways: there are {context.num_novel} novel classes")
    with Bar("evaluation") as bar:
        for number, (way, cell) in enumerate((way, cell) for way in ways for cell in done):
            bar.update(number, len(ways) * len(done), note=f"{way} ways {cell.label}")
            _at_way(result, cell, way, context)
        bar.update(len(ways) * len(done), len(ways) * len(done))
    _note_episodes(result, context, ways)
    result.extra["published"] = _published(result.rows, done, context)
    return result


def _at_way(result: Result, cell: Cell, way: int, context: Context) -> None:
    """Evaluate a trained cell with other episodes."""
    config = context.config.compare
    shape = EpisodeShape(way, 1, config.query)
    try:
        right = context.evaluate(cell, shape, episodes_at(way, config.way, config.episodes))
    except UserError as error:
        result.failures.append(f"{cell.label} at {way} ways: {error}")
        return
    _point(result, _named(cell), cell, shape, right)


def episodes_at(way: int, base: int, episodes: int) -> int:
    """How many episodes of a way are evaluated, see `COSTLIEST`; never more than asked for.

    Args:
        way: Their classes.
        base: Classes of those that the methods were trained on.
        episodes: How many were asked for.
    """
    affordable = COSTLIEST * base**2 * episodes // way**2
    return min(episodes, max(affordable, FEWEST))


def _note_episodes(result: Result, context: Context, ways: Sequence[int]) -> None:
    """Say where there are fewer episodes than asked for: every one of them has more queries."""
    config = context.config.compare
    counts = {way: episodes_at(way, config.way, config.episodes) for way in ways}
    if fewer := [f"{count} at {way} ways" for way, count in counts.items() if count < config.episodes]:
        result.notes.append(f"{config.episodes} episodes, but {', '.join(fewer)}: each has more queries and classes")


# --- What they share ------------------------------------------------------------------------------------------------


def _plan(
    context: Context, methods: Sequence[str], shots: Sequence[int], columns: Sequence[str]
) -> tuple[list[Cell], list[str]]:
    """Cells of methods, parts first, heads by the variant for the features; and what is left out."""
    if not shots:
        return [], []
    names = ["strm[pooled]" if name == "strm" and not context.tokens else name for name in methods]
    wanted = columns if len(context.modalities) > 1 else context.modalities
    wish = Wish(tuple(names), tuple(wanted), tuple(shots), (context.config.seed,))
    return plan_cells(wish, context.modalities, tokens=context.tokens)


def _named(cell: Cell) -> dict[str, Any]:
    """Name and title of a cell, with the stream of one that sees one alone."""
    title = row_title(cell.row)
    if cell.row in WHOLE:
        return {"method": cell.method, "title": title}
    name = cell.method if cell.arrangement in FUSED else f"{cell.method}-{cell.arrangement}"
    return {"method": name, "title": f"{title}, {TITLES.get(cell.arrangement, cell.arrangement)}"}


def _point(
    result: Result,
    row: Mapping[str, Any],
    cell: Cell,
    shape: EpisodeShape,
    right: NDArray[np.int64],
    condition: str = "",
) -> None:
    """Add a measurement: its row and its episodes."""
    queries = shape.way * shape.query
    accuracy, ci95 = mean_interval(100 * right.astype(np.float64) / queries)
    result.rows.append(
        {
            **row,
            "way": shape.way,
            "shot": shape.shot,
            "seed": cell.seed,
            "episodes": len(right),
            "accuracy": accuracy,
            "ci95": ci95,
        }
    )
    name = str(row.get("method", cell.method))
    result.episodes.append(EpisodeBlock(name, shape.way, shape.shot, right, queries, cell.seed, condition))


def _failures(outcomes: Mapping[Cell, Measured | str]) -> list[str]:
    return [f"{cell.label}: {outcome}" for cell, outcome in outcomes.items() if isinstance(outcome, str)]


def _published(rows: Sequence[Mapping[str, Any]], cells: Sequence[Cell], context: Context) -> list[dict[str, Any]]:
    """Published numbers beside the rows, where dataset, episodes and backbones are the same."""
    backbones = backbones_of(context.data)
    by_name = {_named(cell)["method"]: cell for cell in cells}
    found = []
    for row in rows:
        cell = by_name[row["method"]]
        streams = {stream: backbones[stream] for stream in cell.streams}
        known = find_published(
            cell.row,
            cell.arrangement,
            split=context.split.name,
            way=row["way"],
            shot=row["shot"],
            backbones=streams,
        )
        if known:
            same = {name: row[name] for name in ("method", "way", "shot")}
            found.append({**same, "dataset": context.split.name, "accuracy": known[0], "source": known[1]})
    return found
