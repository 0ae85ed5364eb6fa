"""`amfir study`: its store, what is made again and what is not, the tables and figures 2 to 5, and the command."""

import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from click.testing import Result as Ran

from amfir.cache.errors import UserError
from amfir.meta.active import CRITERIA
from amfir.meta.episodes import EpisodeShape
from amfir.meta.evaluate import EvaluationConfig
from amfir.meta.methods import parse_method
from amfir.pipeline import runs
from amfir.pipeline.cli import cli
from amfir.pipeline.compare_store import CompareConfig
from amfir.pipeline.features import load_features
from amfir.pipeline.runs import evaluate_run
from amfir.pipeline.splits import load_split
from amfir.pipeline.studies import run as run_module
from amfir.pipeline.studies.base import EpisodeBlock, Result, Study, StudyConfig, open_context
from amfir.pipeline.studies.figures import chosen_rate, episodes_at, read_log
from amfir.pipeline.studies.kept import kept_array
from amfir.pipeline.studies.registry import STUDIES
from amfir.pipeline.studies.run import Fingerprints, run_studies
from amfir.pipeline.studies.store import StudyStore, plain, to_parquet
from amfir.pipeline.studies.table2 import ARMS, TWINS

from .plantedcache import plant

CONFIG = CompareConfig(way=3, query=2, episodes=60, train_episodes=16)
SMALL = ("--split", "random:0", "--way", "3", "--query", "2", "--episodes", "60", "--train-episodes", "16")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def no_pictures() -> Iterator[None]:
    """Curves of some thirty trainings take longer than the trainings; they are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "plot_curves", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted") / "cache", classes=12, clips=4)


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """The tables and figures of one small cache; tests only read it."""
    out = tmp_path_factory.mktemp("made")
    names = ("table1", "table2", "figure2", "figure3", "figure4", "figure5")
    more = ("--methods", "protonet,amfir", "--shots", "1", "--project", "8")
    return out, run("study", root, *names, *SMALL, *more, "--out", out, "--json")


@pytest.fixture
def own_studies(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., Result]]:
    """Two studies that cost nothing, instead of the real ones; tests may exchange what they do."""
    doings: dict[str, Callable[..., Result]] = {name: lambda context: found(3) for name in ("table1", "table2")}

    class Stub(Study):
        def run(self, context: Any) -> Result:
            return doings[self.module](context)

    for name in list(STUDIES):
        monkeypatch.delitem(STUDIES, name)
    for name in doings:
        monkeypatch.setitem(STUDIES, name, Stub(name, name, reads=("shots",)))
    return doings


def found(right: int) -> Result:
    block = EpisodeBlock("some", 3, 1, np.full(4, right, np.int64), 6)
    return Result([{"accuracy": 100 * right / 6}], episodes=[block], extra={"files": {"picture.jpg": b"jpg"}})


def run(*arguments: object) -> Ran:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def config_of(root: Path, out: Path, **more: Any) -> StudyConfig:
    return replace(StudyConfig(root, "random:0", out, compare=CONFIG, shots=(1,), methods=("protonet",)), **more)


def read(out: Path, name: str) -> dict[str, Any]:
    content = json.loads((out / name / "result.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def recomputed(out: Path, name: str, **wanted: object) -> tuple[float, float]:
    """Accuracy and interval of a measurement from the raw episodes alone, by plain loops."""
    lines = pq.read_table(out / name / "episodes.parquet").to_pylist()
    mine = [line for line in lines if all(line[key] == value for key, value in wanted.items())]
    assert [line["episode"] for line in mine] == list(range(len(mine)))
    shares = [100 * line["right"] / line["queries"] for line in mine]
    mean = sum(shares) / len(shares)
    return mean, 1.96 * math.sqrt(sum((share - mean) ** 2 for share in shares) / len(shares)) / math.sqrt(len(shares))


# The studies


def test_all_are_made_and_say_so(made: tuple[Path, Ran]) -> None:
    out, result = made
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert list(printed["studies"]) == ["table1", "table2", "figure2", "figure3", "figure4", "figure5"]
    assert printed["failed"] == {}
    for name, content in printed["studies"].items():
        assert content == read(out, name)
        assert content["rows"], name
        assert content["title"] == STUDIES[name].title
        assert content["settings"]["train_episodes"] == 16
    info = json.loads((out / "study.json").read_text(encoding="utf-8"))
    assert info["commands"][0].startswith("amfir study ")
    assert set(info["specs"]) == {"rgb", "flow"}
    assert set(info["studies"]) == set(printed["studies"])
    assert info["provenance"]["split"]["test"] == list(load_split("random:0", [f"class {n}" for n in range(12)]).test)


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("table1", ("method", "shot", "condition=arrangement")),
        ("table2", ("method", "shot", "condition=base")),
        ("figure3", ("method", "shot", "way")),
        ("figure4", ("shot", "condition=strategy")),
        ("figure5", ("method", "way", "shot")),
    ],
)
def test_accuracies_follow_from_the_raw_episodes(made: tuple[Path, Ran], name: str, keys: Sequence[str]) -> None:
    out, _ = made
    for row in read(out, name)["rows"]:
        wanted = {key: row[key] for key in keys if "=" not in key}
        field = next((key.partition("=")[2] for key in keys if "=" in key), "")
        if field:
            wanted["condition"] = row[field] if field == "arrangement" else f"{field}={row[field]}"
        assert (row["accuracy"], row["ci95"]) == pytest.approx(recomputed(out, name, **wanted)), row
        assert row["seed"] == 0


def test_table1_has_every_cell_with_its_cost_and_the_tables_of_compare(made: tuple[Path, Ran]) -> None:
    out, _ = made
    rows = read(out, "table1")["rows"]
    assert [(row["method"], row["arrangement"]) for row in rows] == [
        *(("protonet", name) for name in ("rgb", "flow", "ec", "ea", "lf", "ami")),
        ("amfir", "ami"),
    ]
    assert all(row["training_seconds"] > 0 and row["parameters"] >= 0 for row in rows)
    assert (out / "table1" / "table.md").read_bytes() == (out / "trained" / "table.md").read_bytes()
    assert read(out, "table1")["extra"] == {"published": []}


def test_table2_holds_every_arm_against_the_whole_on_the_same_episodes(made: tuple[Path, Ran]) -> None:
    out, _ = made
    rows = read(out, "table2")["rows"]
    arms = [f"{base}:{arm}" if arm else base for base, arms in ARMS.items() for arm in arms]
    assert [row["method"] for row in rows] == arms
    lines = pq.read_table(out / "table2" / "episodes.parquet").to_pylist()
    for row in rows:
        if row["method"] == row["base"]:
            assert (row["difference"], row["difference_ci95"], row["p"]) == (None, None, None)
            continue
        arm, whole = (
            np.array([line["right"] for line in lines if line["method"] == method])
            for method in (row["method"], row["base"])
        )
        gain = 100 * (arm - whole) / 6
        assert row["difference"] == pytest.approx(gain.mean())
        assert row["difference_ci95"] == pytest.approx(1.96 * gain.std() / math.sqrt(60))
        assert 0 <= row["p"] <= 1


def test_arms_of_another_name_are_the_same_method() -> None:
    for one, other in TWINS.items():
        first, second = parse_method(one), parse_method(other)
        criteria = [CRITERIA[method.objective.criterion] for method in (first, second)]
        if first.objective.strategy == "mutual":
            assert criteria[0] == criteria[1]
        same = replace(first.objective, criterion=second.objective.criterion)
        assert replace(first, name=second.name, objective=same) == second


def test_figure2_is_the_log_of_the_run(made: tuple[Path, Ran]) -> None:
    out, _ = made
    content = read(out, "figure2")
    (folder,) = (out / "trained" / "runs").glob("amfir-1shot-*")
    log = json.loads((folder / "training.json").read_text(encoding="utf-8"))["log"][1:]
    for modality in ("rgb", "flow"):
        shown = [row for row in content["rows"] if row["modality"] == modality]
        assert [row["episode"] for row in shown] == [line["episodes"] for line in log] == [16]
        expected = [line[f"free-energy/{modality}"] for line in log]
        assert [row["free_energy"] for row in shown] == pytest.approx(expected, rel=1e-5)
    assert content["extra"]["published"][0]["free_energy"] == -4.0


def test_the_rate_behind_the_start_is_the_first() -> None:
    log = [{"episodes": 0.0, "validation": 70.0}]
    log += [
        {"learning-rate": rate, "episodes": 8.0, "validation": accuracy}
        for rate, accuracy in ((0.1, 60.0), (0.2, 65.0))
    ]
    assert chosen_rate(log) == log[1:2]
    log[2]["validation"] = 71.0
    assert chosen_rate(log) == log[2:]
    assert chosen_rate([{"episodes": 8.0}]) == [{"episodes": 8.0}]


def test_an_empty_field_of_a_log_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("episodes,validation\n0,\n8,50\n", encoding="utf-8")
    assert read_log(tmp_path / "log.csv") == [{"episodes": 0.0}, {"episodes": 8.0, "validation": 50.0}]


def test_figure3_takes_the_shots_that_the_clips_allow(made: tuple[Path, Ran]) -> None:
    """Four clips in each class, two of them queries."""
    out, _ = made
    content = read(out, "figure3")
    assert sorted({row["shot"] for row in content["rows"]}) == [1, 2]
    methods = ["amfir", "amfar", "strm[pooled]-lf", "otam-lf", "protonet-lf"]
    assert [row["method"] for row in content["rows"] if row["shot"] == 2] == methods
    assert [reason.partition(":")[0] for reason in content["skipped"]] == ["3-shot", "4-shot", "5-shot", "10-shot"]
    assert "a novel class has 4 clips, and 3 shots + 2 queries need 5" in content["skipped"][0]


def test_figure4_has_every_strategy(made: tuple[Path, Ran]) -> None:
    out, _ = made
    rows = read(out, "figure4")["rows"]
    assert [(row["shot"], row["strategy"]) for row in rows] == [
        (1, strategy) for strategy in ("none", "rgb-teacher", "flow-teacher", "mutual")
    ]
    table2 = {row["method"]: row["accuracy"] for row in read(out, "table2")["rows"]}
    shown = {row["strategy"]: row["accuracy"] for row in rows}
    assert (shown["mutual"], shown["none"]) == (table2["amfir"], table2["amfir:no-amd"])


def test_figure5_tests_what_was_trained_once_at_every_way(root: Path, made: tuple[Path, Ran]) -> None:
    out, _ = made
    content = read(out, "figure5")
    methods = {"amfir", "amfar", "strm[pooled]-rgb", "strm[pooled]-flow", "strm[pooled]-lf"}
    assert {(row["method"], row["way"]) for row in content["rows"]} == {(m, way) for m in methods for way in (3, 5, 6)}
    assert content["skipped"] == ["7, 8, 9, 10, 20, 50, 100 ways: there are 6 novel classes"]
    (folder,) = (out / "trained" / "runs").glob("amfir-1shot-*")
    data = load_features(root)
    config = EvaluationConfig(EpisodeShape(6, 1, 2), 60)
    alone = evaluate_run(data, load_split("random:0", data.class_names), [folder], config)
    (row,) = [row for row in content["rows"] if (row["method"], row["way"]) == ("amfir", 6)]
    assert row["accuracy"] == pytest.approx(alone.accuracy)
    table1 = {row["method"]: row["accuracy"] for row in read(out, "table1")["rows"]}
    (row,) = [row for row in content["rows"] if (row["method"], row["way"]) == ("amfir", 3)]
    assert row["accuracy"] == table1["amfir"]


@pytest.mark.parametrize(
    ("way", "episodes"), [(3, 10_000), (5, 10_000), (10, 10_000), (20, 2500), (50, 400), (100, 100), (500, 100)]
)
def test_many_ways_are_shown_by_fewer_episodes(way: int, episodes: int) -> None:
    assert episodes_at(way, 5, 10_000) == episodes
    assert episodes_at(way, 5, 60) == 60


def test_what_is_evaluated_is_kept(tmp_path: Path) -> None:
    path, calls = tmp_path / "below" / "some.npy", []

    def make() -> np.ndarray[Any, np.dtype[np.int64]]:
        calls.append(1)
        return np.arange(5)

    assert kept_array(path, 5, make).tolist() == kept_array(path, 5, make).tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 1
    other = BytesIO()
    np.save(other, np.arange(4))
    for damage in (b"", path.read_bytes()[:-1], other.getvalue()):
        path.write_bytes(damage)
        assert kept_array(path, 5, make).tolist() == [0, 1, 2, 3, 4]
    assert len(calls) == 4


# What is made again


def test_no_two_studies_pass_for_each_other(root: Path, tmp_path: Path) -> None:
    prints = Fingerprints(open_context(config_of(root, tmp_path)))
    assert len({prints.of(name) for name in STUDIES}) == len(STUDIES)


def test_a_finished_study_is_kept_to_the_byte(root: Path, tmp_path: Path, own_studies: Mapping[str, object]) -> None:
    config = config_of(root, tmp_path)
    first = run_studies(config, ["table1"], "amfir study")
    before = {path: path.read_bytes() for path in tmp_path.glob("table1/*")}
    assert {path.name for path in before} == {"result.json", "episodes.parquet", "picture.jpg"}
    assert "files" not in read(tmp_path, "table1")["extra"]
    again = run_studies(config, ["table1"], "amfir study")
    assert (first.finished["table1"].kept, again.finished["table1"].kept) == (False, True)
    assert before == {path: path.read_bytes() for path in tmp_path.glob("table1/*")}


def damage_result(folder: Path) -> None:
    (folder / "result.json").write_text('{"rows": [', encoding="utf-8")


def list_result(folder: Path) -> None:
    (folder / "result.json").write_text("[]", encoding="utf-8")


def lose_skipped(folder: Path) -> None:
    kept = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    del kept["skipped"]
    (folder / "result.json").write_text(json.dumps(kept), encoding="utf-8")


def cut_episodes(folder: Path) -> None:
    (folder / "episodes.parquet").write_bytes((folder / "episodes.parquet").read_bytes()[:-9])


def change_picture(folder: Path) -> None:
    (folder / "picture.jpg").write_bytes(b"gpj")


def lose_picture(folder: Path) -> None:
    (folder / "picture.jpg").unlink()


def exchange(folder: Path) -> None:
    """The result of another study."""
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("table2"), folder)


@pytest.mark.parametrize(
    "harm", [damage_result, list_result, lose_skipped, cut_episodes, change_picture, lose_picture, exchange]
)
def test_a_damaged_or_foreign_result_is_made_again(
    root: Path, tmp_path: Path, own_studies: dict[str, Callable[..., Result]], harm: Callable[[Path], None]
) -> None:
    config = config_of(root, tmp_path)
    own_studies["table2"] = lambda context: found(5)
    run_studies(config, [], "amfir study")
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("table1/*") if path.name != "result.json"}
    harm(tmp_path / "table1")
    again = run_studies(config, [], "amfir study")
    assert [study.kept for study in again.finished.values()] == [False, True]
    assert read(tmp_path, "table1")["rows"] == [{"accuracy": 50.0}]
    assert whole == {path.name: path.read_bytes() for path in tmp_path.glob("table1/*") if path.name != "result.json"}


@pytest.mark.parametrize(
    "change",
    [
        {"split": "random:1"},
        {"shots": (2,)},
        {"seed": 1},
        {"streams": ("rgb",)},
        {"compare": replace(CONFIG, episodes=61)},
        {"compare": replace(CONFIG, settings=("training.momentum=0.5",))},
    ],
)
def test_other_settings_make_a_study_again(
    root: Path, tmp_path: Path, own_studies: Mapping[str, object], change: dict[str, Any]
) -> None:
    run_studies(config_of(root, tmp_path), ["table1"], "first")
    again = run_studies(config_of(root, tmp_path, **change), ["table2"], "second")
    info = json.loads((tmp_path / "study.json").read_text(encoding="utf-8"))
    assert list(info["studies"]) == ["table2"], "table1 belongs to other settings"
    assert info["commands"] == ["first", "second"]
    again = run_studies(config_of(root, tmp_path, **change), ["table1"], "third")
    assert not again.finished["table1"].kept


@pytest.mark.parametrize("change", [{"jobs": 2}, {"methods": ("otam",)}, {"targets": ()}])
def test_what_a_study_does_not_depend_on_does_not(
    root: Path, tmp_path: Path, own_studies: Mapping[str, object], change: dict[str, Any]
) -> None:
    run_studies(config_of(root, tmp_path), ["table1"], "")
    assert run_studies(config_of(root, tmp_path, **change), ["table1"], "").finished["table1"].kept


def test_another_helper_makes_a_study_again(
    root: Path, tmp_path: Path, own_studies: Mapping[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "helper.py"
    helper.write_text("1")
    monkeypatch.setitem(STUDIES, "table1", replace(STUDIES["table1"], helpers=(str(helper),)))
    config = config_of(root, tmp_path / "out")
    assert not run_studies(config, ["table1"], "").finished["table1"].kept
    assert run_studies(config, ["table1"], "").finished["table1"].kept
    helper.write_text("2")
    assert not run_studies(config, ["table1"], "").finished["table1"].kept


def test_all_helpers_are_there() -> None:
    package = Path(run_module.__file__).parent
    assert all((package / name).is_file() for study in STUDIES.values() for name in study.helpers)


def test_another_cache_makes_a_study_again(root: Path, tmp_path: Path, own_studies: Mapping[str, object]) -> None:
    run_studies(config_of(root, tmp_path / "out"), ["table1"], "")
    other = plant(tmp_path / "other", classes=12, clips=4, without={"rgb": ["class 3/000.mp4"]})
    assert not run_studies(config_of(other, tmp_path / "out"), ["table1"], "").finished["table1"].kept


def test_files_of_an_old_result_go_with_it(tmp_path: Path) -> None:
    store, study = StudyStore(tmp_path), Study("A title", "table1")
    more = {"settings": {}, "seconds": 1.0}
    store.save("table1", study, found(3), fingerprint="a", **more)  # type: ignore[arg-type]
    (tmp_path / "table1" / "mine.txt").touch()
    store.save("table1", study, Result([]), fingerprint="b", **more)  # type: ignore[arg-type]
    left = {path.name for path in (tmp_path / "table1").iterdir()}
    assert left == {"result.json", "episodes.parquet", "mine.txt"}
    assert store.find("table1", "a") is None


def test_one_that_fails_does_not_stop_the_others_and_is_tried_again(
    root: Path, tmp_path: Path, own_studies: dict[str, Callable[..., Result]]
) -> None:
    def fail(context: object) -> Result:
        raise UserError("it cannot; here; mend it")

    own_studies["table1"] = fail
    own_studies["table2"] = lambda context: Result([], failures=["a cell"])
    told: list[str] = []
    outcome = run_studies(config_of(root, tmp_path), [], "", told.append)
    assert (outcome.failures, dict(outcome.failed), list(outcome.finished)) == (
        2,
        {"table1": "it cannot; here; mend it"},
        ["table2"],
    )
    assert "table1 failed: it cannot; here; mend it" in told
    own_studies |= {name: lambda context: found(1) for name in own_studies}
    assert run_studies(config_of(root, tmp_path), [], "").failures == 0
    assert read(tmp_path, "table2")["failures"] == []


def test_killed_between_two_studies_goes_on_with_the_second(
    root: Path, tmp_path: Path, own_studies: dict[str, Callable[..., Result]]
) -> None:
    def interrupt(context: object) -> Result:
        raise KeyboardInterrupt

    own_studies["table2"] = interrupt
    with pytest.raises(KeyboardInterrupt):
        run_studies(config_of(root, tmp_path), [], "")
    own_studies["table2"] = lambda context: found(2)
    again = run_studies(config_of(root, tmp_path), [], "")
    assert [study.kept for study in again.finished.values()] == [True, False]


def test_raw_results_keep_their_order_and_types() -> None:
    blocks = [EpisodeBlock("b", 5, 1, np.array([3, 1]), 25, 7, "x=1"), EpisodeBlock("a", 3, 2, np.array([0]), 6)]
    lines = pq.read_table(BytesIO(to_parquet(blocks))).to_pylist()
    assert [(line["method"], line["episode"], line["right"]) for line in lines] == [
        ("b", 0, 3),
        ("b", 1, 1),
        ("a", 0, 0),
    ]
    first = {"method": "b", "way": 5, "shot": 1, "seed": 7, "condition": "x=1", "queries": 25, "episode": 0, "right": 3}
    assert lines[0] == first
    assert pq.read_table(BytesIO(to_parquet([]))).num_rows == 0


def test_json_has_no_number_that_is_none() -> None:
    value = {"a": (np.float32(0.5), np.int64(3), float("nan")), 2: [math.inf, Path("x"), None, True]}
    assert plain(value) == {"a": [0.5, 3, None], "2": [None, "x", None, True]}


# The command


def test_one_modality_leaves_out_what_needs_two_and_says_so(root: Path, tmp_path: Path) -> None:
    names = ("table1", "table2", "figure2", "figure3", "figure4", "figure5", "transfer")
    more = ("--methods", "protonet,amfir", "--shots", "1", "--streams", "rgb", "--out", tmp_path)
    result = run("study", root, *names, *SMALL, *more)
    assert result.exit_code == 0, result.stderr
    for name in ("table2", "figure2", "figure4"):
        assert read(tmp_path, name)["rows"] == []
        assert read(tmp_path, name)["skipped"] == ["it needs two modalities; the cache has rgb only"]
        assert f"{name}, left out: it needs two modalities" in result.stderr
    assert (
        "no other" in read(tmp_path, "transfer")["skipped"][0]
        or "another cache" in read(tmp_path, "transfer")["skipped"][0]
    )
    assert {row["method"] for row in read(tmp_path, "table1")["rows"]} == {"protonet"}
    shown = {"strm[pooled]-rgb", "otam-rgb", "protonet-rgb"}
    assert {row["method"] for row in read(tmp_path, "figure3")["rows"]} == shown
    assert {row["method"] for row in read(tmp_path, "figure5")["rows"]} == {"strm[pooled]-rgb"}
    for name in ("table1", "figure3", "figure5"):
        assert any("need two modalities: amfir" in reason for reason in read(tmp_path, name)["skipped"]), name
    assert "Table 1: every method: 1 rows in" in result.stdout
    assert "protonet" in result.stdout


def test_a_cell_that_fails_ends_with_code_3(root: Path, tmp_path: Path) -> None:
    more = ("--methods", "protonet,otam", "--shots", "1", "--set", "head.smoothing=0.2", "--streams", "rgb")
    result = run("study", root, "table1", *SMALL, *more, "--out", tmp_path)
    assert result.exit_code == 3, result.stderr
    content = read(tmp_path, "table1")
    assert [row["method"] for row in content["rows"]] == ["otam"]
    assert "unknown setting of head 'protonet' 'smoothing'" in content["failures"][0]
    assert "something failed in 1 of 1 studies" in result.stderr


def test_ctrl_c_says_how_to_go_on(root: Path, tmp_path: Path) -> None:
    def press_when_trained() -> None:
        while not list(tmp_path.glob("trained/runs/*/training.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press_when_trained, daemon=True)
    finger.start()
    endless = ("--train-episodes", "1000000", "--set", "training.patience=100000", "--shots", "1")
    result = run("study", root, "figure2", *SMALL, *endless, "--out", tmp_path)
    finger.join()
    assert result.exit_code == 130
    assert "Resume with: amfir study" in result.stderr
    assert not (tmp_path / "figure2").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--way", "7"), "way is 7, but there are 6 classes to draw from; lower --way"),
        (("tabel1",), "unknown study 'tabel1'; did you mean 'table1'?"),
        (("--shots", "3"), "lower --query"),
        (("--shots", "0"), "0 is no shot; --shots"),
        (("--shots", ""), "no number is no shot; --shots"),
        (("--shots", "one"), "'one' is no list of whole numbers; --shots"),
        (("--methods", "otamm"), "did you mean 'otam'"),
        (("--episodes", "1"), "episodes is 1"),
        (("--jobs", "0"), "jobs is 0"),
        (("--seed", "-1"), "seed is -1"),
        (("--streams", "depth"), "no stream 'depth'"),
        (("--profile", "unfair"), "unknown profile 'unfair'"),
        (("--set", "training.momentun=1"), "did you mean 'momentum'"),
        (("--to", "nowhere"), "'nowhere' is no CACHE:SPLIT; --to"),
        (("--to", "nowhere:random:0"), "nowhere"),
        (("--videos", "nowhere"), "no such folder: nowhere; --videos"),
        (("--split", "random:x"), "'x' is no seed"),
    ],
)
def test_bad_input_is_one_line(root: Path, tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    out = tmp_path / "out"
    result = run("study", root, *SMALL, "--shots", "1", "--out", out, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    assert not out.exists()


def test_a_file_in_the_place_of_the_folder_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("study", root, "table1", *SMALL, "--shots", "1", "--out", tmp_path / "file")
    assert (result.exit_code, result.stderr) == (
        2,
        f"Error: {tmp_path / 'file'} is no directory; --out; choose another one\n",
    )


def test_all_registered_studies_are_there(root: Path) -> None:
    """Each module has its function, and each field that a study reads is one of the configuration."""
    fields = asdict(open_context(config_of(root, Path("out"))).config)
    for name, study in STUDIES.items():
        module = import_module(f"amfir.pipeline.studies.{study.module}")
        assert callable(getattr(module, study.function)), name
        assert set(study.reads) <= set(fields)
