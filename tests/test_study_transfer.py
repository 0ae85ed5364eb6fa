"""The transfer study, on planted features."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from amfir.meta.evaluate import EvaluationConfig
from amfir.pipeline.compare_cells import Cell
from amfir.pipeline.compare_store import CompareConfig, Measured
from amfir.pipeline.features import load_features
from amfir.pipeline.runs import evaluate_run, evaluate_untrained
from amfir.pipeline.splits import load_split
from amfir.pipeline.studies import transfer
from amfir.pipeline.studies.base import Context, Result, StudyConfig, open_context

from .plantedcache import plant

COMPARE = CompareConfig(
    way=3,
    query=2,
    episodes=60,
    train_episodes=32,
    settings=(
        "training.batch_episodes=8",
        "training.interval=16",
        "training.validation_episodes=40",
        "training.learning_rates=[1e-2]",
    ),
    project=6,
)
CELL = Cell("amfir", "amfir", "ami", ("rgb", "flow"), 1, 0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_split(path: Path, train: Sequence[int], test: Sequence[int]) -> str:
    """A split file of the classes with these numbers; the case differs from the labels'."""
    lines = [f"{part} = {[f'Class {i}' for i in which]}" for part, which in (("train", train), ("test", test))]
    path.write_text("\n".join(["[classes]", *lines]))
    return str(path)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Trained on classes 0 to 5 of ten."""
    folder = tmp_path_factory.mktemp("transfer")
    split = write_split(folder / "source.toml", range(6), range(6, 10))
    return open_context(
        StudyConfig(plant(folder / "source", classes=10), split, folder / "out", compare=COMPARE, shots=(1,))
    )


def study(context: Context, *targets: tuple[Path, str], say: Callable[[str], None] = lambda _: None) -> Result:
    return transfer.run(Context(replace(context.config, targets=targets), context.data, context.split, say))


def test_the_source_itself_as_a_target_gives_what_training_measured(context: Context, tmp_path: Path) -> None:
    copy = plant(tmp_path / "copy", classes=10)
    result = study(context, (copy, context.config.split))
    measured = context.train([CELL])[CELL]
    assert isinstance(measured, Measured)
    moved, own = result.rows
    assert (moved["source"], moved["target"], own["source"], own["target"]) == ("source", "copy", "copy", "copy")
    assert moved["accuracy"] == own["accuracy"] == pytest.approx(100 * measured.right.mean() / 6)
    blocks = {(block.method, block.condition): block for block in result.episodes}
    assert np.array_equal(blocks["amfir", "from=source to=copy"].right, measured.right)
    assert "copy: test classes that are novel in both sets, and tested: class 6, class 7, class 8, class 9." in (
        result.notes
    )


def test_classes_that_trained_the_run_are_not_tested(context: Context, tmp_path: Path) -> None:
    other = plant(tmp_path / "other", classes=14, clips=7)
    split = write_split(tmp_path / "other.toml", (6, 7, 8), (0, 10, 11, 12, 13, 5))
    result = study(context, (other, split))
    assert "other: test classes left out, since they trained the run: class 0, class 5." in result.notes
    assert not result.skipped
    assert not result.failures
    data = load_features(other)
    kept = replace(load_split(split, data.class_names), test=tuple(f"class {i}" for i in (10, 11, 12, 13)))
    config = EvaluationConfig(COMPARE.shape(1), 60)
    moved, own = result.rows
    expected = evaluate_run(data, kept, context.folders(CELL), config)
    untrained = evaluate_untrained(data, kept, replace(config, fusion="late"))
    assert (moved["accuracy"], moved["ci95"]) == (expected.accuracy, expected.ci95)
    for row in (moved, own):
        assert (row["untrained"], row["untrained_ci95"]) == (untrained.accuracy, untrained.ci95)
        assert (row["method"], row["shot"]) == ("amfir", 1)
    assert own["accuracy"] != moved["accuracy"]
    assert sorted((block.method, block.condition) for block in result.episodes) == [
        ("amfir", "from=other to=other"),
        ("amfir", "from=source to=other"),
        ("untrained", "to=other"),
    ]
    again = study(context, (other, split))
    assert again.rows == result.rows


def test_targets_that_do_not_fit_are_skipped_with_the_reason_and_the_others_tested(
    context: Context, tmp_path: Path
) -> None:
    foreign = plant(tmp_path / "foreign", classes=10, backbone="another")
    rgb = plant(tmp_path / "rgb", classes=10, streams=("rgb",))
    small = plant(tmp_path / "small", classes=8)
    fine = plant(tmp_path / "fine", classes=14)
    split = write_split(tmp_path / "small.toml", (6,), (0, 7))
    told: list[str] = []
    result = study(
        context,
        (foreign, "random:0"),
        (rgb, "random:0"),
        (small, split),
        (tmp_path / "nowhere", "random:0"),
        (fine, write_split(tmp_path / "fine.toml", range(6), range(6, 14))),
        say=told.append,
    )
    specs, stream, classes, nowhere = result.skipped
    assert specs.startswith('foreign: the run was trained on another rgb stream: settings.backbone.name: "planted" in ')
    assert '"another" here' in specs
    assert stream.startswith("rgb: no stream 'flow' in ")
    assert classes.startswith("small: 1 novel class is left to test on, and an episode draws 3; the split ")
    assert nowhere.startswith("nowhere: ")
    assert [line.removeprefix("transfer: ") for line in told if line.startswith("transfer: ")] == result.skipped
    assert {row["target"] for row in result.rows} == {"fine"}


def test_without_a_target_it_says_how_to_name_one(context: Context) -> None:
    assert study(context).skipped == ["no other cache to test on; name one or more: --to CACHE:SPLIT"]


def test_caches_of_one_name_are_told_apart(tmp_path: Path) -> None:
    places = [tmp_path / "ucf" / "cache", tmp_path / "hmdb", tmp_path / "b" / "hmdb"]
    assert transfer._names([(place, "s") for place in places]) == [
        "ucf/cache",
        "hmdb (s)",
        "b/hmdb (s)",
    ]


def test_one_modality_transfers_too(tmp_path: Path) -> None:
    source, target = (plant(tmp_path / name, streams=("rgb",), classes=14) for name in ("one", "two"))
    split = write_split(tmp_path / "split.toml", range(6), range(6, 14))
    config = StudyConfig(source, split, tmp_path / "out", (), COMPARE, (1,), targets=((target, split),))
    result = transfer.run(open_context(config))
    assert [row["source"] for row in result.rows] == ["one", "two"]
