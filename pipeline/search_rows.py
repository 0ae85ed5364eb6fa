"""The neighbours of queries as a file: CSV or Parquet, a row a query and rank, written block by block."""

import csv
import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

import pyarrow as pa
from pyarrow import parquet

from ..cache.errors import UserError
from .export_names import utf8_text
from .gallery import Gallery
from .search_queries import KINDS, Answers, Queries

SUFFIXES = (".csv", ".parquet")


class RowFile:
    """A row for each query and rank.

    query, query_label; rank, from 1; neighbour, label: the clip's id (the class where classes are prototypes) and its
    class; distance: sum_m weight_m psi_m; psi_<m> and weight_<m> of each modality; normaliser: what the posteriors
    behind the weights are normalised over.

    Args:
        path: Ends in .csv or .parquet; whole or not there.
        gallery: What is found.
        queries: All that are asked.
        modalities: Branches in the order of the answers' tensors.
        k: Ranks that are written.

    Raises:
        UserError: If the suffix is another one, or the file cannot be written.
    """

    def __init__(self, path: Path, gallery: Gallery, queries: Queries, modalities: tuple[str, ...], k: int) -> None:
        require_suffix(path)
        self._path, self._temporary = path, path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._gallery, self._queries = gallery, queries
        self._modalities, self._k = modalities, k
        self._labels = gallery.prototype_labels
        try:
            if path.is_dir():
                raise IsADirectoryError(0, "Is a directory")
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = (_Csv if path.suffix == ".csv" else _Parquet)(self._temporary, self._schema())
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}); --out; choose another file") from None

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
            if kind is None:
                os.replace(self._temporary, self._path)
        finally:
            with suppress(FileNotFoundError):
                self._temporary.unlink()

    def add(self, answers: Answers) -> None:
        """Write a block of answers."""
        self._writer.write(pa.Table.from_pydict(self._columns(answers), schema=self._schema()))

    def _schema(self) -> pa.Schema:
        numbers = ["distance", *(f"{what}_{name}" for name in self._modalities for what in ("psi", "weight"))]
        return pa.schema(
            [
                ("query", pa.string()),
                ("query_label", pa.string()),
                ("rank", pa.int32()),
                ("neighbour", pa.string()),
                ("label", pa.string()),
                *((name, pa.float64()) for name in numbers),
                ("normaliser", pa.string()),
            ]
        )

    def _columns(self, answers: Answers) -> dict[str, list[Any]]:
        near = answers.nearest
        ids = near.ids[:, : self._k]
        count, ranks = ids.shape
        data, rows = self._queries.data, self._queries.clips[answers.start : answers.start + count].tolist()
        classes = self._gallery.data.class_names
        columns = {
            "query": _each([utf8_text(data.clip_ids[row]) for row in rows], ranks),
            "query_label": _each([utf8_text(data.class_names[label]) for label in data.labels[rows].tolist()], ranks),
            "rank": list(range(1, ranks + 1)) * count,
            "neighbour": [utf8_text(self._gallery.name(place)) for place in ids.flatten().tolist()],
            "label": [utf8_text(classes[label]) for label in self._labels[ids].flatten().tolist()],
            "distance": near.distances[:, : self._k].flatten().tolist(),
            "normaliser": _each([KINDS[kind] for kind in answers.kinds.tolist()], ranks),
        }
        for name, psi, weights in zip(self._modalities, near.psi, near.weights, strict=True):
            columns[f"psi_{name}"] = psi[:, : self._k].flatten().tolist()
            columns[f"weight_{name}"] = _each(weights.tolist(), ranks)
        return columns


def require_suffix(path: Path) -> None:
    """Refuse a file that is neither CSV nor Parquet.

    Raises:
        UserError: If its name says so.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path.name!r} is neither .csv nor .parquet; --out; name the file like neighbours.csv")


class _Writer(Protocol):
    def write(self, table: pa.Table) -> None:
        """Append rows."""

    def close(self) -> None:
        """End the file."""


class _Csv:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        # It stays open from block to block.
        self._file: IO[str] = path.open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._file, lineterminator="\n")
        self._csv.writerow(schema.names)

    def write(self, table: pa.Table) -> None:
        self._csv.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))

    def close(self) -> None:
        self._file.close()


class _Parquet:
    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = parquet.ParquetWriter(path, schema)

    def write(self, table: pa.Table) -> None:
        self._file.write_table(table)

    def close(self) -> None:
        self._file.close()


def _each(values: list[Any], times: int) -> list[Any]:
    return [value for value in values for _ in range(times)]
