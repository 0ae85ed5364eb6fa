"""What all studies have in common: what the user asked for, the data, the trained runs, and what a study gives.

A study is a function from a `Context` to a `Result`. It trains through `Context.train`, so that a run that two studies
need is trained once, and it never writes: `store.py` does.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...meta.episodes import EpisodeShape
from ...meta.evaluate import EvaluationConfig, here
from ...meta.heads import HEADS, PrototypeHead
from ...meta.methods import parse_method
from ..compare import finish_cells
from ..compare_cells import Cell
from ..compare_run import open_bench
from ..compare_store import CellStore, CompareConfig, Measured, origin
from ..eval_processes import in_processes
from ..features import FeatureSet, load_features, needs_tokens
from ..runs import evaluate_run
from ..splits import ClassSplit, load_split
from .kept import kept_array

TRAINED = "trained"
"""Folder below the studies' own that holds the runs all of them share; a folder of `amfir compare`."""


@dataclass(frozen=True)
class StudyConfig:
    """What the user asked for."""

    cache: Path
    """Features."""
    split: str
    """As `load_split` reads it."""
    out: Path
    """Where the studies go, a folder each."""
    streams: tuple[str, ...] = ()
    """Modalities; empty: all of the cache."""
    compare: CompareConfig = field(default_factory=CompareConfig)
    """Way, query, episodes, training: what all runs have in common."""
    shots: tuple[int, ...] = (1, 5)
    """Shots of the tables."""
    seed: int = 0
    """Of the trainings; the evaluation's episodes are the same whatever it is."""
    jobs: int = 1
    """Trainings at a time, a process each."""
    methods: tuple[str, ...] = ("all",)
    """Methods of table 1."""
    videos: Path | None = None
    """The dataset that the cache was extracted from, where it is at hand."""
    targets: tuple[tuple[Path, str], ...] = ()
    """Other caches to test on, each with its split: transfer."""


@dataclass(frozen=True, eq=False)
class EpisodeBlock:
    """Raw results of the episodes of one measurement: what any of its figures can be redrawn from."""

    method: str
    """Name of the method."""
    way: int
    """Classes of an episode."""
    shot: int
    """Support clips of each class."""
    right: NDArray[np.int64]
    """Right queries of each episode, [E], in the order of the episodes."""
    queries: int
    """Queries of an episode."""
    seed: int = 0
    """Of the training."""
    condition: str = ""
    """What else sets the measurement apart: "noise=0.2", "to=hmdb51"."""


@dataclass(frozen=True, eq=False)
class Result:
    """What a study found."""

    rows: list[dict[str, Any]]
    """The numbers that its table or figure shows, each row with the same keys, JSON-able; percent for accuracies."""
    skipped: list[str] = field(default_factory=list)
    """What was left out and why, a sentence each."""
    notes: list[str] = field(default_factory=list)
    """What a reader has to know of the numbers, a sentence each."""
    episodes: list[EpisodeBlock] = field(default_factory=list)
    """Raw results."""
    extra: dict[str, Any] = field(default_factory=dict)
    """JSON-able: what rows cannot hold, such as the bins of a reliability diagram. `extra["files"]`, name -> bytes, is
    written beside it: pictures."""
    failures: list[str] = field(default_factory=list)
    """What went wrong, a sentence each; a study with failures is tried again when it is asked for again."""


@dataclass(eq=False)
class Context:
    """One cache and split, and the runs that were trained on it."""

    config: StudyConfig
    data: FeatureSet
    """All clips of the wanted streams, frames without spatial tokens, not projected."""
    split: ClassSplit
    say: Callable[[str], None] = lambda _: None
    """Told what the user should know at once; a line each."""

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the streams."""
        return tuple(self.data.features)

    @property
    def tokens(self) -> bool:
        """Whether all streams have spatial tokens, which some heads need."""
        return all(spec.tokens for spec in self.data.specs.values())

    @property
    def num_novel(self) -> int:
        """Classes to test on."""
        return len(self.split.test)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What all trainings and studies depend on, as fingerprints see it."""
        return origin(self.config.cache, self.data, self.split)

    def train(self, cells: Sequence[Cell]) -> dict[Cell, Measured | str]:
        """Train and evaluate cells, but for those that are finished; what is interrupted goes on where it was.

        Args:
            cells: Each after its parts.

        Returns:
            What each came to, or the line of the error that ended it. Evaluated on `config.compare`'s episodes, seed 0.
        """
        store = self._store(cells)
        maker = partial(open_bench, self.config.cache, self.modalities, self.config.split, store)
        return finish_cells(cells, store, maker, self.config.jobs, self.say)

    def folders(self, cell: Cell) -> list[Path]:
        """The runs that a trained cell consists of: its own, or those of its parts, fused late."""
        store = self._store([cell, *cell.parts])
        return [store.run_folder(part) for part in cell.parts or (cell,)]

    def evaluate(self, cell: Cell, shape: EpisodeShape, episodes: int) -> NDArray[np.int64]:
        """Right queries of each of the novel classes' episodes [E], kept: an interrupted study need not repeat it.

        Args:
            cell: A trained one.
            shape: Of the episodes; they need not be those that it was trained on.
            episodes: How many, the first ones of seed 0.

        Raises:
            UserError: If the novel classes cannot fill the episodes.
        """
        folders = self.folders(cell)
        method = parse_method(cell.method)
        name = f"{cell.label}-{shape.way}way-{shape.shot}shot-{shape.query}query-{episodes}-{method.fusion}"
        # A run's folder is named after all that the run depends on.
        digest = hashlib.sha256("/".join(folder.name for folder in folders).encode()).hexdigest()

        def make() -> NDArray[np.int64]:
            tokens = needs_tokens(method.head)
            data = load_features(self.config.cache, self.modalities, cell.streams) if tokens else self.data
            config = EvaluationConfig(shape, episodes, fusion=method.fusion)
            # Prototypes take less time than processes need to start.
            fast = issubclass(HEADS[method.head].load(), PrototypeHead)
            engine = here if fast else in_processes(self.config.jobs)
            found = evaluate_run(data.only(cell.streams), self.split, folders, config, engine=engine)
            right: NDArray[np.int64] = found.right.numpy()
            return right

        return kept_array(self.config.out / TRAINED / "evaluations" / f"{name}-{digest[:16]}.npy", episodes, make)

    def _store(self, cells: Sequence[Cell]) -> CellStore:
        return CellStore(self.config.out / TRAINED, self.config.compare, self.facts, cells)


@dataclass(frozen=True)
class Study:
    """An entry of the registry; its module is imported when it runs."""

    title: str
    """Heading, as a reader sees it."""
    module: str
    """Below this package."""
    function: str = "run"
    """In the module: from a `Context` to a `Result`."""
    needs: tuple[str, ...] = ()
    """`modalities`: two of them; `targets`: other caches. A study that lacks one is skipped, and that is said."""
    reads: tuple[str, ...] = ()
    """Fields of the configuration that it depends on, beside those that all do: another value makes it again."""
    helpers: tuple[str, ...] = ()
    """Sources beside its module that its numbers come from, as seen from this package: another text, too."""

    def run(self, context: Context) -> Result:
        """Do it."""
        result = getattr(import_module(f".{self.module}", __package__), self.function)(context)
        assert isinstance(result, Result)
        return result


def open_context(config: StudyConfig, say: Callable[[str], None] = lambda _: None) -> Context:
    """Open the cache and the split.

    Raises:
        UserError: If either cannot be read.
    """
    data = load_features(config.cache, config.streams)
    return Context(config, data, load_split(config.split, data.class_names), say)
