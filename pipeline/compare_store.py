"""What a comparison keeps: trained runs, and finished cells, each under a fingerprint of all that it depends on.

    OUT/runs/LABEL-FINGERPRINT/    what `train_run` writes, and cost.json
    OUT/cells/LABEL-FINGERPRINT/   right.npy, then result.json: a cell is finished when that is there

Nothing is ever overwritten by something else: other settings have other fingerprints, and with them other folders.
"""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache import Store
from ..cache.files import file_errors
from ..cache.view import load_view, settled
from ..meta.episodes import EpisodeShape
from ..meta.heads import HEADS
from ..meta.methods import parse_method
from .compare_cells import Cell
from .features import FeatureSet
from .runs import RunPlan
from .splits import ClassSplit


@dataclass(frozen=True)
class CompareConfig:
    """What all cells of a comparison have in common."""

    way: int = 5
    """Classes of an episode."""
    query: int = 5
    """Query clips of each class, in training (where the profile says nothing else) and evaluation."""
    episodes: int = 10_000
    """Evaluation episodes of each cell, the same ones for all of a shot."""
    train_episodes: int = 2000
    """Training episodes at most."""
    profile: str = "fair"
    """Profile of every head."""
    settings: tuple[str, ...] = ()
    """Over the profiles, as `RunPlan` takes them."""
    project: int = 0
    """Width that features are projected to first; 0: none."""

    def shape(self, shot: int) -> EpisodeShape:
        """The episodes of a shot."""
        return EpisodeShape(self.way, shot, self.query)

    def plan(self, cell: Cell) -> RunPlan:
        """The training of a cell."""
        return RunPlan(
            method=cell.method,
            shape=self.shape(cell.shot),
            profile=self.profile,
            settings=self.settings,
            episodes=self.train_episodes,
            seed=cell.seed,
        )


@dataclass(frozen=True)
class Cost:
    """What a training took."""

    seconds: float
    """Time of the whole training; where it was interrupted, reckoned from the speed of its last part."""
    episodes: int
    """Episodes trained."""
    parameters: int
    """Numbers that were learned."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What a cell came to."""

    right: NDArray[np.int64]
    """Right queries of each evaluation episode, [E]."""
    seconds: float
    """Time of the evaluation."""
    costs: tuple[Cost, ...] = ()
    """Of its trainings, one for each run that it evaluates; empty where one is not known."""


def origin(cache: Path, data: FeatureSet, split: ClassSplit) -> dict[str, Any]:
    """What all cells share, as fingerprints see it: the split, each stream's contents, and what computes with them."""
    store = Store(cache)
    return {
        "split": {"train": split.train, "val": split.val, "test": split.test},
        "streams": {name: [spec.fingerprint, _contents(store, name)] for name, spec in data.specs.items()},
        "versions": {name: version(name) for name in ("amfir", "torch")},
    }


class CellStore:
    """The folder of a comparison.

    Args:
        out: The folder; made when something is saved.
        config: What all cells have in common.
        facts: What fingerprints depend on beside configuration and cell, see `origin`.
        cells: All that it will be asked for, their parts included. What they depend on is settled here: heads and
            profiles may be edited while others run.

    Raises:
        UserError: If the profile or a setting of the training is unknown.
    """

    def __init__(self, out: Path, config: CompareConfig, facts: Mapping[str, Any], cells: Sequence[Cell]) -> None:
        self.out = out
        self.config = config
        self._facts = dict(facts)
        self._trainings = {cell: self._training(cell) for cell in cells if not cell.parts}

    def run_folder(self, cell: Cell) -> Path:
        """Where the training of a cell without parts goes."""
        return self.out / "runs" / f"{cell.label}-{_fingerprint(self._trainings[cell])[:16]}"

    def find(self, cell: Cell) -> Measured | None:
        """What a finished cell came to; None where it is not finished, or what it left is damaged."""
        folder = self._cell_folder(cell)
        try:
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            right = np.load(folder / "right.npy", allow_pickle=False)
            costs = tuple(Cost(**cost) for cost in result["costs"])
            found = Measured(right, float(result["seconds"]), costs)
        except (OSError, ValueError, TypeError, KeyError, EOFError):
            return None
        whole = right.shape == (self.config.episodes,) and right.dtype == np.int64
        return found if whole else None

    def save(self, cell: Cell, measured: Measured) -> None:
        """Keep what a cell came to.

        Raises:
            UserError: If the folder cannot be written.
            MachineError: If the disk is full or fails.
        """
        folder = self._cell_folder(cell)
        queries = self.config.way * self.config.query
        result = {
            "cell": asdict(cell),
            "accuracy": 100 * float(measured.right.mean()) / queries,
            "seconds": measured.seconds,
            "costs": [asdict(cost) for cost in measured.costs],
            "depends_on": self._evaluation(cell),
        }
        with file_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with _whole(folder / "right.npy").open("wb") as file:
                np.save(file, measured.right)
            os.replace(_whole(folder / "right.npy"), folder / "right.npy")
            write_whole(folder / "result.json", json.dumps(result, indent=2))

    def _cell_folder(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell.label}-{_fingerprint(self._evaluation(cell))[:16]}"

    def _training(self, cell: Cell) -> dict[str, Any]:
        """All that the training of a cell depends on."""
        plan = self.config.plan(cell)
        method, profile = plan.read_method(), plan.read_profile()
        return {
            **self._facts,
            "method": asdict(method),
            "streams": {name: self._facts["streams"][name] for name in cell.streams},
            # Which clips there are is decided by all streams: those that one lacks take no part.
            "beside": self._facts["streams"],
            "head": dict(profile.head),
            "early": dict(profile.early) if method.early else {},
            "training": asdict(plan.train_config()),
            "project": self.config.project,
            "source": _source(method.head),
        }

    def _evaluation(self, cell: Cell) -> dict[str, Any]:
        """All that the result of a cell depends on."""
        trainings = [self._trainings[part] for part in cell.parts or (cell,)]
        shape = asdict(self.config.shape(cell.shot))
        fusion = parse_method(cell.method).fusion
        return {"trainings": trainings, "shape": shape, "episodes": self.config.episodes, "fusion": fusion}


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is whole or not there."""
    _whole(path).write_text(text, encoding="utf-8")
    os.replace(_whole(path), path)


def _whole(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")


def _fingerprint(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _contents(store: Store, stream: str) -> str:
    """Digest of the checksums of all clips of a stream, which depend on every byte of them."""
    spec = store.spec(stream)
    index = settled(store.root, lambda: load_view(store.root, spec)).merged(spec)
    return hashlib.sha256(index.checksums.tobytes()).hexdigest()


def _source(head: str) -> str:
    """Digest of the head's own file: whoever writes a head compares it again and again."""
    return hashlib.sha256(Path(inspect.getfile(HEADS[head].load())).read_bytes()).hexdigest()
