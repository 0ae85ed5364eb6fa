"""Runs: what training leaves in a folder, interrupted or not, and what evaluation makes of it."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from amfir.cache.errors import UserError
from amfir.meta.episodes import EpisodeShape
from amfir.meta.evaluate import EvaluationConfig, evaluate
from amfir.meta.train import Training
from amfir.pipeline.features import FeatureSet, load_features, project_features
from amfir.pipeline.plots import COLOURS, FUSED, plot_curves
from amfir.pipeline.runs import RunPlan, evaluate_run, evaluate_untrained, train_run, write_log
from amfir.pipeline.splits import ClassSplit, load_split

from .plantedcache import plant

SHAPE = EpisodeShape(way=3, shot=1, query=2)
FAST = ("training.batch_episodes=8", "training.interval=16", "training.validation_episodes=40")
PLAN = RunPlan(shape=SHAPE, episodes=64, settings=(*FAST, "training.learning_rates=1e-3"))
PROGRAM = [sys.executable, "-c", "from amfir.pipeline.cli import main; main()"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So little work is faster on one thread, where other programs use the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted") / "cache", classes=18)


@pytest.fixture(scope="module")
def data(root: Path) -> FeatureSet:
    return load_features(root)


@pytest.fixture(scope="module")
def split(data: FeatureSet) -> ClassSplit:
    """Nine base classes, of which two are held out for validation."""
    return load_split("random:0", data.class_names)


@pytest.fixture(scope="module")
def undisturbed(data: FeatureSet, split: ClassSplit, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, learn(data, split, folder)


def learn(
    data: FeatureSet, split: ClassSplit, folder: Path, plan: RunPlan = PLAN, *, stop_at: int = -1, **more: Any
) -> Training:
    """Train AMFIR, and press Ctrl-C when so many episodes are saved."""

    def watch(ready: int, total: int, note: str) -> None:
        assert ready <= total in (plan.episodes, 2 * plan.episodes)
        if ready == stop_at:
            raise KeyboardInterrupt

    return train_run(data, split, folder, plan, progress=watch, **more)


def whole(folder: Path) -> tuple[dict[str, bytes], dict[str, Any], str]:
    """A run's model, bit by bit, and its log."""
    description = json.loads((folder / "model.json").read_text())
    tensors = load_file(folder / description.pop("tensors"))
    return {name: value.numpy().tobytes() for name, value in tensors.items()}, description, log_text(folder)


def log_text(folder: Path) -> str:
    return (folder / "log.csv").read_text()


@pytest.mark.parametrize("stop_at", [0, 32, 64])
def test_an_interrupted_training_ends_like_an_undisturbed_one(
    data: FeatureSet, split: ClassSplit, undisturbed: tuple[Path, Training], tmp_path: Path, stop_at: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(data, split, tmp_path, stop_at=stop_at)
    assert not (tmp_path / "model.json").exists()
    learn(data, split, tmp_path, resume=True)
    assert whole(tmp_path) == whole(undisturbed[0])


def test_resuming_before_anything_was_saved_starts_anew_and_resuming_what_is_finished_changes_nothing(
    data: FeatureSet, split: ClassSplit, undisturbed: tuple[Path, Training], tmp_path: Path
) -> None:
    for _ in range(2):
        assert learn(data, split, tmp_path, resume=True).episodes == 64
        assert whole(tmp_path) == whole(undisturbed[0])


def test_a_split_or_profile_of_another_name_is_no_other_training(
    data: FeatureSet, split: ClassSplit, undisturbed: tuple[Path, Training], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn(data, split, tmp_path, stop_at=16)
    renamed = replace(split, name="elsewhere/split.toml", source="elsewhere/split.toml")
    learn(data, renamed, tmp_path, resume=True)
    assert log_text(tmp_path) == log_text(undisturbed[0])


def test_resuming_with_other_settings_is_refused(
    data: FeatureSet, split: ClassSplit, undisturbed: tuple[Path, Training]
) -> None:
    folder, _ = undisturbed
    before = whole(folder)
    with pytest.raises(UserError, match=r"was started with .*training.*0\.002"):
        learn(data, split, folder, replace(PLAN, settings=(*FAST, "training.learning_rates=2e-3")), resume=True)
    with pytest.raises(UserError, match=r"was started with .*split"):
        learn(data, load_split("random:1", data.class_names), folder, resume=True)
    with pytest.raises(UserError, match="already holds a run; add --resume to go on with it, or choose another --run"):
        learn(data, split, folder)
    assert whole(folder) == before


def test_another_seed_is_another_training(data: FeatureSet, split: ClassSplit, tmp_path: Path) -> None:
    for seed in (0, 1):
        learn(data, split, tmp_path / str(seed), replace(PLAN, seed=seed, episodes=16))
    assert log_text(tmp_path / "0") != log_text(tmp_path / "1")


def test_the_log_has_a_row_for_each_interval_and_the_curves_are_a_picture(
    undisturbed: tuple[Path, Training],
) -> None:
    folder, training = undisturbed
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = ("cross-entropy", "accuracy", "free-energy", "group")
    by_modality = {f"{kind}/{name}" for kind in kinds for name in ("rgb", "flow")}
    assert rows[0].keys() == {"episodes", "loss", "distillation", "accuracy", "validation"} | by_modality
    assert [row["episodes"] for row in rows] == ["0", "16", "32", "48", "64"]
    assert rows[0]["loss"] == ""
    for row, record in zip(rows, training.log, strict=True):
        assert {name: float(text) for name, text in row.items() if text} == pytest.approx(record, rel=1e-5)
    picture = matplotlib.image.imread(folder / "curves.png")
    assert picture.shape[:2] == (770, 1210)
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20


def test_curves_show_what_there_is(tmp_path: Path) -> None:
    """The curve of a modality stands in its colour, and only in the panel of its key, the upper right one."""
    log = [{"episodes": 0.0, "validation": 50.0}, {"episodes": 9.0, "validation": 55.0}]
    plot_curves(log, ["rgb"], tmp_path / "without.png")
    plot_curves([{**record, "accuracy/rgb": 40.0} for record in log], ["rgb"], tmp_path / "with.png")
    without, shown = (_near(tmp_path / f"{name}.png", COLOURS["rgb"]) for name in ("without", "with"))
    assert not without.any()
    assert shown[:385, 605:].sum() > 500
    assert shown.sum() == shown[:385, 605:].sum()


def test_one_modality_alone_has_no_curve_of_all_that_covers_it(tmp_path: Path) -> None:
    log = [{"episodes": x, "loss": x, "cross-entropy/rgb": x, "cross-entropy/flow": 2 * x} for x in (0.0, 9.0)]
    for names, drawn in ((["rgb"], False), (["rgb", "flow"], True)):
        plot_curves(log, names, tmp_path / "curves.png")
        assert _near(tmp_path / "curves.png", FUSED).any() == drawn


def _near(path: Path, colour: str) -> NDArray[np.bool_]:
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    distance: NDArray[np.float64] = np.abs(matplotlib.image.imread(path)[..., :3] - rgb).max(-1)
    return distance < 0.02


def test_the_log_leaves_empty_what_a_record_lacks(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", [{"episodes": 0.0, "b": 1 / 3}, {"episodes": 160.0, "a": 2.0}])
    assert (tmp_path / "log.csv").read_text() == "episodes,b,a\n0,0.333333,\n160,,2\n"


def test_no_test_class_is_ever_touched_in_training(
    data: FeatureSet, split: ClassSplit, undisturbed: tuple[Path, Training], tmp_path: Path
) -> None:
    learn(replace(data, features=without(data, split.test)), split, tmp_path)
    weights, _, log = whole(tmp_path)
    expected, _, expected_log = whole(undisturbed[0])
    assert log == expected_log
    assert weights.keys() == expected.keys()
    for name, value in weights.items():
        if name.endswith("weight"):
            assert value == expected[name]
        else:  # calibrated on distances that are rounded about the mean of all clips
            precision = np.float64 if name.startswith("belief") else np.float32
            np.testing.assert_allclose(np.frombuffer(value, precision), np.frombuffer(expected[name], precision), 1e-3)


def without(data: FeatureSet, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Features in which the clips of some classes are distorted, each dimension by another factor."""
    hidden = torch.isin(data.labels, torch.tensor(data.ids(names)))[:, None, None, None]
    factors = {name: torch.linspace(-8, 8, values.shape[-1]).half() for name, values in data.features.items()}
    return {name: values.where(~hidden, values * factors[name]) for name, values in data.features.items()}


def test_untrained_prototypes_are_standardised_on_the_base_classes_alone(data: FeatureSet, split: ClassSplit) -> None:
    config = EvaluationConfig(SHAPE, 300, fusion="late")
    distorted = replace(data, features=without(data, split.test[:5]))
    found = evaluate_untrained(distorted, split, config)
    base = np.isin(data.labels.numpy(), data.ids(split.train))
    by_hand = {}
    for name, values in distorted.features.items():
        pooled = values[:, 0].double().numpy().mean(1)
        by_hand[name] = torch.from_numpy((pooled - pooled[base].mean(0)) / pooled[base].std(0, ddof=1))
    expected = evaluate(by_hand, data.labels, data.ids(split.test), config)
    for name, (accuracy, _) in expected.modalities.items():
        assert found.modalities[name][0] == pytest.approx(accuracy, abs=0.1)
    assert found.method == "untrained"
    assert "belief" not in found.fusions
    # Three ways, independent noise in both modalities: above chance, and what is fused is above each alone.
    plain = evaluate_untrained(data, split, config)
    assert plain.accuracy > max(accuracy for accuracy, _ in plain.modalities.values()) > 40


def test_training_without_episodes_keeps_the_start_and_can_be_evaluated(
    data: FeatureSet, split: ClassSplit, tmp_path: Path
) -> None:
    training = learn(data, split, tmp_path, replace(PLAN, episodes=0))
    assert training.episodes == 0
    found = evaluate_run(data, split, [tmp_path], EvaluationConfig(SHAPE, 100))
    assert found.method == "amfir"
    assert "belief" in found.fusions
    assert found.accuracy > 40


def test_what_a_method_lacks_is_refused_before_anything_is_written(
    data: FeatureSet, split: ClassSplit, tmp_path: Path
) -> None:
    wrong = {
        "unknown modality 'audio'; known: flow, rgb": replace(PLAN, strategy="audio-teacher"),
        "'belief' needs a fitted belief": replace(PLAN, criterion="belief"),
        "'belief' needs a fitted belief; none": replace(PLAN, fusion="belief"),
        "criterion 'certainty' only forms groups": replace(PLAN, method="amfar", fusion="select"),
        "'otam' looks at one modality": replace(PLAN, method="otam"),
        "unknown profile 'papers'; did you mean 'paper'": replace(PLAN, profile="papers"),
        "unknown setting of head 'otam' 'smoothness'; did you mean 'smoothing'": replace(
            PLAN, method="otam-lf", settings=("head.smoothness=1",)
        ),
        "unknown setting of training 'learningrate'; did you mean 'learning_rates'": replace(
            PLAN, settings=("training.learningrate=1",)
        ),
        "training.momentum is 'high'": replace(PLAN, settings=("training.momentum=high",)),
        "head 'strm' needs spatial tokens": replace(PLAN, method="strm-lf"),
    }
    for message, plan in wrong.items():
        with pytest.raises(UserError, match=message):
            train_run(data, split, tmp_path / "run", plan)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["otam-lf", "trx-ec", "hyrsm+ami"])
def test_heads_of_the_field_train_resume_and_evaluate(
    data: FeatureSet, split: ClassSplit, tmp_path: Path, name: str
) -> None:
    """Dropout and all: an interrupted training ends like an undisturbed one."""
    small = () if name.startswith("otam") else ("head.dim=8",) if name.startswith("trx") else ("head.head_dim=8",)
    plan = RunPlan(name, SHAPE, settings=(*FAST, *small), episodes=32)
    learn(data, split, tmp_path / "whole", plan)
    with pytest.raises(KeyboardInterrupt):
        learn(data, split, tmp_path / "cut", plan, stop_at=16)
    learn(data, split, tmp_path / "cut", plan, resume=True)
    assert whole(tmp_path / "cut") == whole(tmp_path / "whole")
    found = evaluate_run(data, split, [tmp_path / "whole"], EvaluationConfig(SHAPE, 100))
    assert found.method == name
    assert found.accuracy > 40


def test_runs_of_a_modality_each_are_fused_late(data: FeatureSet, split: ClassSplit, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("rgb", "flow")]
    for folder in folders:
        plan = replace(PLAN, method="protonet", episodes=0)
        learn(data.only([folder.name]), split, folder, plan)
    config = EvaluationConfig(SHAPE, 200, fusion="posterior-mean")
    both = evaluate_run(data, split, folders, config)
    for folder in folders:
        alone = evaluate_run(data, split, [folder], config)
        assert alone.accuracy == both.modalities[folder.name][0]
        assert both.accuracy > alone.accuracy
    assert both.method == "protonet"
    with pytest.raises(UserError, match="two runs look at rgb"):
        evaluate_run(data, split, [folders[0], folders[0]], config)
    learn(data, split, tmp_path / "early", replace(PLAN, method="protonet-ec", episodes=0))
    with pytest.raises(UserError, match="two runs look at flow"):
        evaluate_run(data, split, [tmp_path / "early", folders[1]], config)


def test_a_projection_travels_with_the_model(data: FeatureSet, split: ClassSplit, tmp_path: Path) -> None:
    narrow = project_features(data, data.ids((*split.train, *split.val)), 6)
    training = learn(narrow, split, tmp_path, replace(PLAN, episodes=16))
    assert training.model.branch("rgb").spec.widths == (6,)
    config = EvaluationConfig(SHAPE, 100)
    found = evaluate_run(data, split, [tmp_path], config)
    assert found.right.tolist() == evaluate_run(narrow, split, [tmp_path], config).right.tolist()


def test_an_interrupt_keeps_what_is_saved_and_prints_what_resumes_it(root: Path, tmp_path: Path) -> None:
    """The whole program, interrupted by a signal, against one that ran to its end."""
    options = ("--split", "random:0", "--way", "3", "--query", "2", "--episodes", "320")
    command = [*PROGRAM, "train", str(root), *options, "--run"]
    few = {**os.environ, "OMP_NUM_THREADS": "1"}
    null = subprocess.DEVNULL
    whole_run = subprocess.Popen([*command, str(tmp_path / "whole")], stdout=null, stderr=null, env=few)
    folder = tmp_path / "a run"
    child = subprocess.Popen(
        [*command, str(folder)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=few
    )
    deadline = time.monotonic() + 60
    while not (folder / "training.json").exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    resume = f"Resume with: amfir train {root} {' '.join(options)} --run '{folder}' --resume"
    assert stderr.splitlines()[-1].endswith(resume)
    assert not (folder / "model.json").exists()
    resumed = subprocess.run([*command, str(folder), "--resume"], capture_output=True, text=True, timeout=60, env=few)
    assert resumed.returncode == 0, resumed.stderr
    assert whole_run.wait(60) == 0
    assert whole(folder) == whole(tmp_path / "whole")
