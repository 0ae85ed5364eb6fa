"""The study of reliability on planted features: its numbers are those of plain evaluations of the same run."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from amfir.meta.checkpoint import load_model
from amfir.meta.evaluate import EvaluationConfig, evaluate_scorer
from amfir.pipeline.compare_cells import Cell
from amfir.pipeline.compare_store import CompareConfig
from amfir.pipeline.runs import evaluate_run
from amfir.pipeline.studies.base import Context, Result, StudyConfig, open_context
from amfir.pipeline.studies.reliability import run
from amfir.pipeline.studies.store import plain

from .plantedcache import plant

FAST = ("training.batch_episodes=8", "training.interval=16", "training.validation_episodes=20")
COMPARE = CompareConfig(
    way=3, query=2, episodes=300, train_episodes=32, settings=(*FAST, "training.learning_rates=1e-3")
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Nine base classes, two of them held out."""
    root = tmp_path_factory.mktemp("reliability")
    cache = plant(root / "cache", classes=18)
    return open_context(StudyConfig(cache, "random:0", root / "out", compare=COMPARE, shots=(1,)))


@pytest.fixture(scope="module")
def result(context: Context) -> Result:
    return run(context)


@pytest.fixture(scope="module")
def folder(context: Context, result: Result) -> Path:
    """The run that the study trained."""
    return context.folders(Cell("amfir", "amfir", "ami", ("rgb", "flow"), 1))[0]


def test_its_accuracies_and_selections_are_those_of_an_evaluation(
    context: Context, result: Result, folder: Path
) -> None:
    expected = evaluate_run(context.data, context.split, [folder], EvaluationConfig(COMPARE.shape(1), 300))
    found = {part["view"]: part for part in result.extra["calibration"] if part["temperatures"] == "folds"}
    assert found["rgb"]["accuracy"] == pytest.approx(expected.modalities["rgb"][0], abs=1e-9)
    assert found["flow"]["accuracy"] == pytest.approx(expected.modalities["flow"][0], abs=1e-9)
    assert found["ami"]["accuracy"] == pytest.approx(expected.fusions["ami"][0], abs=1e-9)
    assert found["late"]["accuracy"] == pytest.approx(expected.fusions["late"][0], abs=1e-9)
    selected = {row["criterion"]: row["selection_accuracy"] for row in result.rows}
    assert selected == pytest.approx(expected.selection_accuracy, abs=1e-9)
    (block,) = (block for block in result.episodes if block.condition == "view=ami;temperatures=folds")
    assert block.right.tolist() == expected.right.tolist()
    assert (block.way, block.shot, block.queries, block.method) == (3, 1, 6, "amfir")


def test_other_temperatures_are_those_of_the_model_evaluated_with_them(
    context: Context, result: Result, folder: Path
) -> None:
    taus = {row["temperatures"]: {"rgb": row["rgb"], "flow": row["flow"]} for row in result.extra["temperatures"]}
    assert list(taus) == ["none", "folds", "validation"]
    assert taus["none"] == {"rgb": 1.0, "flow": 1.0}
    clips = context.data.clips_of(context.split.test)
    for name, values in taus.items():
        model, _ = load_model(folder)
        model.set_temperatures(values)
        expected = evaluate_scorer(
            model.scorer(context.data.features, clips),
            context.data.labels[clips],
            context.data.ids(context.split.test),
            EvaluationConfig(COMPARE.shape(1), 300),
        )
        found = {part["view"]: part["accuracy"] for part in result.extra["calibration"] if part["temperatures"] == name}
        assert found["ami"] == pytest.approx(expected.fusions["ami"][0], abs=1e-9)
        known = {row["criterion"] for row in result.extra["selection"] if row["temperatures"] == name}
        # Without a fitted temperature there is nothing that the belief was fitted on.
        assert ("belief" in known) == (name != "none")


def test_bins_add_up(result: Result) -> None:
    queries = 300 * 6
    assert sum(part["count"] for part in result.extra["weights"]) == queries
    for part in result.extra["calibration"]:
        bins = part["bins"]
        assert sum(b["count"] for b in bins) == queries
        assert sum(b["count"] * b["accuracy"] for b in bins) / queries == pytest.approx(part["accuracy"])
        gaps = sum(b["count"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / queries
        assert gaps == pytest.approx(part["ece"])
        assert all(100 * b["low"] < b["confidence"] <= 100 * b["high"] + 1e-4 for b in bins)
    accuracy = {
        part["view"]: part["accuracy"] for part in result.extra["calibration"] if part["temperatures"] == "folds"
    }
    weights = result.extra["weights"]
    gain = sum(part["count"] * part["gain"] for part in weights) / queries
    fused = sum(part["count"] * part["fused_gain"] for part in weights) / queries
    assert gain == pytest.approx(accuracy["rgb"] - accuracy["flow"], abs=1e-9)
    assert fused == pytest.approx(accuracy["ami"] - accuracy["late"], abs=1e-9)
    assert all(part["low"] < part["weight"] <= part["high"] for part in weights)


def test_it_is_json_and_equal_when_repeated(context: Context, result: Result) -> None:
    again = run(context)
    assert json.dumps(plain(again.rows)) == json.dumps(plain(result.rows))
    assert json.dumps(plain(again.extra)) == json.dumps(plain(result.extra))
    assert result.skipped == result.failures == []


def test_one_modality_is_calibrated_and_the_rest_is_skipped(tmp_path: Path) -> None:
    """Ten classes: none of the five base classes is held out."""
    cache = plant(tmp_path / "cache", classes=10, streams=("rgb",))
    found = run(open_context(StudyConfig(cache, "random:0", tmp_path / "out", compare=COMPARE, shots=(1,))))
    assert found.failures == []
    assert found.skipped == [
        "selection, weights and fusions: they need two modalities; the cache has rgb only",
        "1-shot, temperatures 'validation': the run held out no validation classes; its temperatures can be fitted on "
        "two or more; keep its own, or train with a split that names val classes",
    ]
    assert found.extra["weights"] == []
    assert {part["view"] for part in found.extra["calibration"]} == {"rgb"}
    assert all(row["selection_accuracy"] is None and row["auroc"] is None for row in found.rows)
    assert all(0 <= row["auroc_rgb"] <= 1 for row in found.rows)


def test_a_training_that_fails_is_told(context: Context) -> None:
    """Classes of six clips, and episodes that want nine."""
    config = replace(context.config, shots=(7,))
    found = run(Context(config, context.data, context.split))
    (failure,) = found.failures
    assert failure.startswith("7-shot: class 'class ")
    assert "needs 9" in failure
    assert not found.rows


def test_an_evaluation_takes_the_same_temperatures(context: Context, result: Result, folder: Path) -> None:
    config = EvaluationConfig(COMPARE.shape(1), 300)
    for study, name in (("none", "none"), ("folds", "run"), ("validation", "validation")):
        found = evaluate_run(context.data, context.split, [folder], config, temperature=name)
        (block,) = (block for block in result.episodes if block.condition == f"view=ami;temperatures={study}")
        assert found.right.tolist() == block.right.tolist()
        assert ("belief" in found.fusions) == (name != "none")
