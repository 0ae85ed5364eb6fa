"""What `amfir eval --details` writes: the confusion matrix, the classes, and the counts of each episode.

    confusion.csv      queries of a true class (row) that were taken for a class (column)
    classes.csv        class, queries, right, accuracy (percent; empty where no episode drew it), most_confused_with
    confusion.png      the matrix as a picture, each row in shares of its queries
    episodes.parquet   a row for each episode: its number and its right queries, by each modality and each fusion

Each file is whole or not there.
"""

import csv
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.errors import UserError
from ..cache.files import file_errors, whole_file
from ..meta.evaluate import Evaluation
from ..meta.tally import Counts

ROWS_AT_ONCE = 10_000
"""Episodes of a row group of the Parquet file: so many are held in memory."""

NAMED = 60
"""Classes whose names the picture shows; of more, some are."""

NUMBERED = 20
"""Classes up to which the cells of the picture hold their numbers."""


class EpisodeFile:
    """Right queries of each episode, written block by block.

    Args:
        folder: Made if it is not there; a file of an earlier evaluation is replaced at the end.

    Raises:
        UserError: If the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {folder} ({error.strerror}); --details; choose another directory") from None
        self._path = folder / "episodes.parquet"
        self._temporary = _beside(self._path)
        self._writer: Any = None
        self._held: list[dict[str, NDArray[np.int64]]] = []
        self._rows = 0

    def __enter__(self) -> "EpisodeFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None:
                self._flush()
            with _one_line(self._path.parent):
                if self._writer is not None:
                    self._writer.close()
                if kind is None:
                    os.replace(self._temporary, self._path)
        finally:
            with suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def add(self, counts: Counts) -> None:
        """Take the counts of a block."""
        named = {**counts.modalities, **{f"fused: {name}": values for name, values in counts.fusions.items()}}
        number = len(next(iter(named.values())))
        episodes = np.arange(self._rows, self._rows + number)
        self._rows += number
        self._held.append({"episode": episodes, **{name: values.numpy() for name, values in named.items()}})
        if sum(len(part["episode"]) for part in self._held) >= ROWS_AT_ONCE or self._writer is None:
            self._flush()

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if not self._held:
            return
        columns = {name: np.concatenate([part[name] for part in self._held]) for name in self._held[0]}
        self._held.clear()
        table = pyarrow.table(columns)
        with _one_line(self._path.parent):
            if self._writer is None:
                self._writer = pyarrow.parquet.ParquetWriter(self._temporary, table.schema)
            self._writer.write_table(table)


def write_details(folder: Path, found: Evaluation) -> None:
    """Write the matrix, the classes and the picture.

    Raises:
        UserError: If the folder cannot be written.
    """
    names, confusion = list(found.per_class), found.confusion.numpy()
    _write_csv(folder / "confusion.csv", [["true \\ predicted", *names], *_labelled(names, confusion)])
    head = ["class", "queries", "right", "accuracy", "most_confused_with"]
    _write_csv(folder / "classes.csv", [head, *_class_rows(found)])
    _draw(folder / "confusion.png", names, confusion)


def _labelled(names: Sequence[str], confusion: NDArray[np.int64]) -> Iterator[list[object]]:
    for name, row in zip(names, confusion.tolist(), strict=True):
        yield [name, *row]


def _class_rows(found: Evaluation) -> Iterator[list[object]]:
    names, confusion = list(found.per_class), found.confusion.numpy()
    for position, (name, accuracy) in enumerate(found.per_class.items()):
        row = confusion[position].copy()
        queries, right = int(row.sum()), int(row[position])
        row[position] = 0
        rival = names[int(row.argmax())] if row.any() else ""
        yield [name, queries, right, "" if accuracy is None else f"{accuracy:.4f}", rival]


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    with _whole(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _draw(path: Path, names: Sequence[str], confusion: NDArray[np.int64]) -> None:
    """A cell is never smaller than a few pixels, and the picture never larger than a screen or two."""
    from matplotlib.figure import Figure

    shares = 100 * confusion / confusion.sum(1, keepdims=True).clip(min=1)
    inches = min(24.0, max(6.0, 0.2 * len(names)))
    figure = Figure(figsize=(inches + 1.5, inches), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=100, interpolation="nearest")
    step = -(-len(names) // NAMED)
    shown = range(0, len(names), step)
    labels = [_short(names[position]) for position in shown]
    axes.set_xticks(list(shown), labels, rotation=90, fontsize=8)
    axes.set_yticks(list(shown), labels, fontsize=8)
    axes.set_xlabel("predicted" if step == 1 else f"predicted (every {step}th class is named)")
    axes.set_ylabel("true")
    if len(names) <= NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            colour = "black" if share > 60 else "white"
            axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, label="% of the true class's queries", shrink=0.7)
    with _whole(path) as temporary, warnings.catch_warnings():
        # One line for each character of a name that the font lacks; it is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(temporary, format="png", dpi=110)


def _short(name: str) -> str:
    # A dollar sign would start a formula.
    return (name if len(name) <= 24 else f"{name[:23]}…").replace("$", r"\$")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    with _one_line(path.parent), whole_file(path) as temporary:
        yield temporary


def _one_line(folder: Path) -> AbstractContextManager[None]:
    return file_errors(folder, what="the details")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.{os.getpid()}.tmp")
