"""One cell of a comparison: its training, unless it was trained before, and its evaluation."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..meta.checkpoint import has_model
from ..meta.evaluate import EvaluationConfig
from ..meta.methods import parse_method
from ..meta.train import Training
from .compare_cells import Cell
from .compare_store import CellStore, Cost, Measured, write_whole
from .features import FeatureSet, load_features, needs_tokens, project_features
from .runs import evaluate_run, train_run
from .splits import ClassSplit, load_split

Tick = Callable[[float], None]
"""Told the finished share of a cell's training, from 0 to 1."""

Runner = Callable[[Cell, Tick], Measured]
"""Trains and evaluates a cell."""


@dataclass(eq=False)
class Bench:
    """What runs cells, in this process or in another: features are read where they are needed."""

    cache: Path
    streams: tuple[str, ...]
    """Modalities of the comparison: clips that one of them lacks take no part, whatever a cell sees."""
    split: str
    """As `load_split` reads it."""
    store: CellStore
    """Says where runs are."""
    _data: dict[bool, FeatureSet] = field(default_factory=dict)
    """With spatial tokens or without, once read."""

    def __call__(self, cell: Cell, tick: Tick) -> Measured:
        """Train a cell, or go on with its training, and evaluate it.

        Raises:
            UserError: If its method does not go with the features or the settings.
        """
        method = parse_method(cell.method)
        data = self._features(needs_tokens(method.head)).only(cell.streams)
        split = load_split(self.split, data.class_names)
        if not cell.parts:
            self._train(cell, data, split, tick)
        folders = [self.store.run_folder(part) for part in cell.parts or (cell,)]
        config = self.store.config
        shown = EvaluationConfig(config.shape(cell.shot), config.episodes, fusion=method.fusion)
        found = evaluate_run(data, split, folders, shown)
        return Measured(found.right.numpy(), found.seconds, _costs(folders))

    def _train(self, cell: Cell, data: FeatureSet, split: ClassSplit, tick: Tick) -> None:
        folder = self.store.run_folder(cell)
        if has_model(folder):
            return
        clock = Clock(tick)
        plan = self.store.config.plan(cell)
        training = train_run(data, split, folder, plan, resume=True, progress=clock)
        cost = clock.cost(training)
        write_whole(folder / "cost.json", json.dumps(asdict(cost)))

    def _features(self, tokens: bool) -> FeatureSet:
        if tokens not in self._data:
            data = load_features(self.cache, self.streams, tokens)
            if width := self.store.config.project:
                split = load_split(self.split, data.class_names)
                data = project_features(data, data.ids((*split.train, *split.val)), width)
            self._data[tokens] = data
        return self._data[tokens]


def open_bench(cache: Path, streams: tuple[str, ...], split: str, store: CellStore) -> Runner:
    """Make what runs cells; these arguments travel to other processes."""
    return Bench(cache, streams, split, store)


class Clock:
    """Times the intervals of a training that are trained here: an interrupted one may have begun long ago.

    Args:
        tick: Told the finished share.
        now: Seconds since some moment.
    """

    def __init__(self, tick: Tick, now: Callable[[], float] = time.perf_counter) -> None:
        self._tick = tick
        self._now = now
        self._started = now()
        self._told: list[float] = []
        """When each record of the log came that was made here."""

    def __call__(self, ready: int, total: int, note: str) -> None:
        """Take the progress of `train_run`."""
        if note != "calibrating":
            self._told.append(self._now())
        self._tick(ready / max(total, 1))

    def cost(self, training: Training) -> Cost:
        """What the whole training took: its start as it was here, its intervals at the speed that was seen."""
        now = self._now()
        first = self._told[0] if self._told else now
        seen, intervals = len(self._told) - 1, len(training.log) - 1
        seconds = (first - self._started) + (now - first) * (intervals / seen if seen > 0 else 1.0)
        learned = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
        return Cost(seconds, _episodes(training), learned)


def _episodes(training: Training) -> int:
    """Episodes trained, at all learning rates that were tried."""
    last = {record.get("learning-rate", 0.0): record["episodes"] for record in training.log}
    return int(sum(last.values()))


def _costs(folders: list[Path]) -> tuple[Cost, ...]:
    """Of every run, or none where one was killed between its end and the note of its cost, or the note is damaged."""
    try:
        return tuple(Cost(**json.loads((folder / "cost.json").read_text(encoding="utf-8"))) for folder in folders)
    except (OSError, ValueError, TypeError):
        return ()
