"""The files of `amfir eval --details`."""

import csv
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow.parquet
import pytest
import torch

from amfir.cache.errors import UserError
from amfir.meta.episodes import EpisodeShape
from amfir.meta.evaluate import Evaluation, EvaluationConfig, evaluate
from amfir.pipeline import eval_details
from amfir.pipeline.eval_details import EpisodeFile, write_details

CONFIG = EvaluationConfig(EpisodeShape(4, 1, 2), episodes=610)


def measured(folder: Path) -> Evaluation:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(6).repeat_interleave(4)
    embeddings = {name: torch.randn(6, 5, generator=generator)[labels] for name in ("rgb", "flow")}
    noisy = {name: values + torch.randn(24, 5, generator=generator) for name, values in embeddings.items()}
    names = ["run, fast", "walk $1", "jump", "sit", "stand\nup", "ß" * 40]
    with EpisodeFile(folder) as file:
        return evaluate(noisy, labels, range(6), CONFIG, class_names=names, watch=file.add)


def read(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_the_tables_are_the_confusion(tmp_path: Path) -> None:
    found = measured(tmp_path)
    write_details(tmp_path, found)
    header, *rows = read(tmp_path / "confusion.csv")
    assert header[1:] == [row[0] for row in rows] == list(found.per_class)
    assert [[int(cell) for cell in row[1:]] for row in rows] == found.confusion.tolist()
    assert sum(sum(int(cell) for cell in row[1:]) for row in rows) == 610 * 8
    head, *classes = read(tmp_path / "classes.csv")
    assert head == ["class", "queries", "right", "accuracy", "most_confused_with"]
    for k, (name, queries, right, accuracy, rival) in enumerate(classes):
        others = [(count, -j) for j, count in enumerate(found.confusion[k].tolist()) if j != k]
        assert (int(queries), int(right)) == (int(found.confusion[k].sum()), int(found.confusion[k, k]))
        assert float(accuracy) == pytest.approx(found.per_class[name], abs=1e-4)
        assert rival == list(found.per_class)[-max(others)[1]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "classes.csv",
        "confusion.csv",
        "confusion.png",
        "episodes.parquet",
    ]


def test_a_class_that_is_never_confused_has_no_rival(tmp_path: Path) -> None:
    found = measured(tmp_path)
    write_details(tmp_path, replace(found, confusion=torch.diag(torch.arange(6))))
    assert [row[-1] for row in read(tmp_path / "classes.csv")[1:]] == [""] * 6


@pytest.mark.parametrize("rows_at_once", [1, 300, 10_000])
def test_the_episodes_are_those_of_the_evaluation(
    tmp_path: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_details, "ROWS_AT_ONCE", rows_at_once)
    found = measured(tmp_path)
    table = pyarrow.parquet.read_table(tmp_path / "episodes.parquet").to_pydict()
    assert table["episode"] == list(range(610))
    assert table["fused: ami"] == found.right.tolist()
    assert 100 * sum(table["rgb"]) / (610 * 8) == pytest.approx(found.modalities["rgb"][0])
    assert list(table) == ["episode", "rgb", "flow", *(f"fused: {name}" for name in found.fusions)]


def test_what_is_interrupted_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "episodes.parquet").write_text("old")
    with pytest.raises(KeyboardInterrupt), EpisodeFile(tmp_path):
        raise KeyboardInterrupt
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_file_in_the_way_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make .*file.*; --details; choose another directory"):
        EpisodeFile(tmp_path / "file")
    (tmp_path / "episodes.parquet").mkdir()
    with pytest.raises(UserError, match=r"cannot write the details \(Is a directory\)"):
        measured(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episodes.parquet", "file"]


def test_the_picture_of_many_classes_shows_the_diagonal(tmp_path: Path) -> None:
    found = measured(tmp_path)
    confusion = torch.eye(130, dtype=torch.int64) * 9 + 1
    many = replace(found, confusion=confusion, per_class={f"class number {k}": 1.0 for k in range(130)})
    write_details(tmp_path, many)
    picture = matplotlib.image.imread(tmp_path / "confusion.png")[..., :3]
    assert 1500 < max(picture.shape) < 3200
    dark = np.abs(picture - np.array([0.267, 0.005, 0.329])).max(-1) < 0.05
    rows = np.flatnonzero(dark.mean(1) > 0.3)
    assert len(rows) > 130 * 6  # pixels for each class
