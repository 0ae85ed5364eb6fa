"""`amfir compare`: which cells there are, what is run and what is not, and the command itself."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from amfir.cache.errors import MachineError, UserError
from amfir.meta.heads import HEADS
from amfir.pipeline.cli import cli
from amfir.pipeline.compare import Comparison, compare
from amfir.pipeline.compare_cells import WHOLE, Cell, Wish, all_methods, plan_cells, row_title
from amfir.pipeline.compare_pool import run_cells
from amfir.pipeline.compare_progress import Forecast
from amfir.pipeline.compare_run import Clock, Tick
from amfir.pipeline.compare_store import CellStore, CompareConfig, Cost, Measured

from .plantedcache import plant

BOTH = ("rgb", "flow")
CONFIG = CompareConfig(way=3, query=2, episodes=60, train_episodes=16)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted") / "cache", classes=10)


@pytest.fixture(scope="module")
def rgb_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted") / "rgb", streams=("rgb",), classes=10)


def planned(*methods: str, shots: tuple[int, ...] = (1,), seeds: tuple[int, ...] = (0,)) -> list[Cell]:
    return plan_cells(Wish(methods or ("all",), shots=shots, seeds=seeds), BOTH, tokens=False)[0]


class Stub:
    """Stands for training: notes what it was asked for, and makes an outcome of the cell's name."""

    def __init__(self, fail: Sequence[str] = (), interrupt: str = "") -> None:
        self.ran: list[str] = []
        self._fail = fail
        self._interrupt = interrupt

    def __call__(self, cell: Cell, tick: Tick) -> Measured:
        if cell.label == self._interrupt:
            raise KeyboardInterrupt
        self.ran.append(cell.label)
        tick(0.5)
        if cell.label in self._fail:
            raise UserError(f"{cell.method} cannot; here; mend it")
        right = np.random.default_rng(len(cell.label)).integers(0, 7, CONFIG.episodes)
        return Measured(right, 1.0, (Cost(2.0, 16, 3),))


def compared(
    stub: Stub,
    root: Path,
    out: Path,
    *methods: str,
    config: CompareConfig = CONFIG,
    split: str = "random:0",
    **more: object,
) -> Comparison:
    wish = Wish(methods, **{"shots": (1,), **more})  # type: ignore[arg-type]
    return compare(root, split, out, wish, config, make_runner=lambda store: lambda: stub)


# Cells


def test_all_is_every_head_in_every_arrangement_and_the_methods_of_their_own() -> None:
    cells = planned()
    rows = {cell.row for cell in cells}
    assert rows == {name for name in HEADS if name not in ("temporal", "arn", "ta2n", "strm")} | set(WHOLE)
    for row in rows - set(WHOLE):
        own = [cell.arrangement for cell in cells if cell.row == row]
        assert own == ["rgb", "flow", "ec", "ea", "lf", "ami"]
    assert {cell.row: cell.arrangement for cell in cells if cell.row in WHOLE} == {
        "amefu-net": "own",
        "amfar": "ami",
        "amfir": "ami",
    }
    assert len(set(cells)) == len(cells) == len({cell.label for cell in cells})


def test_spatial_heads_take_part_where_there_are_tokens_and_pooled_ones_elsewhere() -> None:
    with_tokens, without = set(all_methods(True)), set(all_methods(False))
    assert with_tokens - without == {"strm", "ta2n", "arn"}
    assert without - with_tokens == {"strm[pooled]", "ta2n[pooled]", "arn[pooled]"}


def test_late_fusion_comes_after_the_heads_that_it_fuses() -> None:
    cells = planned("otam", shots=(1, 5), seeds=(0, 3))
    for cell in cells:
        assert all(cells.index(part) < cells.index(cell) for part in cell.parts)
        assert bool(cell.parts) == (cell.arrangement == "lf")
        assert all((part.shot, part.seed, part.method) == (cell.shot, cell.seed, "otam") for part in cell.parts)
    assert len(cells) == 2 * 2 * 6


def test_late_fusion_alone_brings_what_it_fuses() -> None:
    cells, _ = plan_cells(Wish(("otam",), ("lf",), (1,)), BOTH, tokens=False)
    assert [cell.arrangement for cell in cells] == ["rgb", "flow", "lf"]


def test_names_of_methods_are_single_cells() -> None:
    found = {cell.method: (cell.row, cell.arrangement) for cell in planned("otam-ec", "trx+ami", "amfir[otam]")}
    assert found == {"otam-ec": ("otam", "ec"), "trx+ami": ("trx", "ami"), "amfir[otam]": ("amfir[otam]", "ami")}
    logits = planned("otam", "otam-lf-logit")[-1]
    assert (logits.row, logits.arrangement) == ("otam-lf-logit", "lf")
    assert [part.label for part in logits.parts] == ["otam-rgb-1shot-seed0", "otam-flow-1shot-seed0"]


def test_an_ablation_without_distillation_is_trained_as_one_model() -> None:
    (cell,) = planned("amfir:no-amd")
    assert (cell.arrangement, cell.parts) == ("ami", ())
    assert cell.label == "amfir_no-amd-1shot-seed0"


def test_a_name_given_twice_is_compared_once() -> None:
    assert planned("otam", "otam", "otam-ec") == planned("otam")


def test_titles_say_what_was_rebuilt() -> None:
    assert row_title("mtfan") == "MTFAN (re-implementation)"
    assert row_title("otam") == "OTAM"
    assert row_title("amfir[otam]") == "AMFIR [OTAM]"
    assert row_title("amefu-net") == "AMeFu-Net"


def test_one_modality_leaves_multimodal_cells_out_and_says_so() -> None:
    cells, notes = plan_cells(Wish(("otam", "amfir"), (), (1,)), ("rgb",), tokens=False)
    assert [cell.label for cell in cells] == ["otam-rgb-1shot-seed0"]
    assert notes == [
        "left out: flow, ec, ea, lf, ami; the cache has rgb only",
        "not compared, since they need two modalities: amfir",
    ]


def test_notes_speak_of_what_was_asked_for() -> None:
    assert plan_cells(Wish(("otam",), ("rgb",), (1,)), ("rgb",), tokens=False)[1] == []
    assert plan_cells(Wish(("otam",), (), (1,)), BOTH, tokens=False)[1] == []


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        (Wish(("otamm",)), "unknown method 'otamm'; did you mean 'otam'"),
        (Wish(("amfir[otamm]",)), "unknown head 'otamm'; did you mean 'otam'"),
        (Wish(("otam",), ("lv",)), "unknown arrangement 'lv'; did you mean 'lf'?"),
        (Wish(("strm",)), "head 'strm' needs spatial tokens; .* use 'strm\\[pooled\\]'"),
        (Wish(("otam",), shots=(0,)), "0 is no shot"),
        (Wish(("otam",), shots=()), "no number in --shot"),
        (Wish(("otam",), seeds=(-1,)), "-1 is no seed"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(wish: Wish, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        plan_cells(wish, BOTH, tokens=False)
    assert "\n" not in str(refused.value)


def test_nothing_left_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to compare"):
        plan_cells(Wish(("amfir",)), ("rgb",), tokens=False)


# Running


def test_finished_cells_are_not_run_again(root: Path, tmp_path: Path) -> None:
    first, second, third = Stub(), Stub(), Stub()
    once = compared(first, root, tmp_path, "otam")
    again = compared(second, root, tmp_path, "otam")
    assert len(first.ran) == 6
    assert second.ran == []
    assert [entry.accuracy for entry in again.entries] == [entry.accuracy for entry in once.entries]
    assert [entry.spent for entry in again.entries] == [entry.spent for entry in once.entries]
    compared(third, root, tmp_path, "otam", "tsn-ec")
    assert third.ran == ["tsn-ec-1shot-seed0"]


def test_a_changed_setting_makes_other_cells(root: Path, tmp_path: Path) -> None:
    compared(Stub(), root, tmp_path, "otam-ec")
    changes: Sequence[dict[str, object]] = (
        {"config": replace(CONFIG, train_episodes=17)},
        {"config": replace(CONFIG, query=1)},
        {"config": replace(CONFIG, profile="paper")},
        {"config": replace(CONFIG, settings=("training.weight_decay=0.01",))},
        {"config": replace(CONFIG, settings=("head.smoothing=1",))},
        {"config": replace(CONFIG, settings=("early.width_of_ec=3",))},
        {"config": replace(CONFIG, project=4)},
        {"split": "random:1"},
        {"shots": (2,)},
        {"seeds": (1,)},
    )
    for change in changes:
        stub = Stub()
        compared(stub, root, tmp_path, "otam-ec", **change)  # type: ignore[arg-type]
        assert len(stub.ran) == 1, change
    stub = Stub()
    compared(stub, root, tmp_path, "otam-ec")
    assert stub.ran == []


def test_settings_of_early_fusion_do_not_touch_methods_without(root: Path, tmp_path: Path) -> None:
    compared(Stub(), root, tmp_path, "otam")
    stub = Stub()
    compared(stub, root, tmp_path, "otam", config=replace(CONFIG, settings=("early.width_of_ec=3",)))
    assert stub.ran == ["otam-ec-1shot-seed0", "otam-ea-1shot-seed0"]


def test_changed_features_make_other_cells(tmp_path: Path) -> None:
    cache, out, stub = tmp_path / "cache", tmp_path / "out", Stub()
    plant(cache, classes=8, clips=4)
    compared(Stub(), cache, out, "otam-ec")
    plant(cache, classes=8, clips=5)  # the same clips again, and one more of each class
    compared(stub, cache, out, "otam-ec")
    assert len(stub.ran) == 1


def test_other_evaluation_episodes_keep_the_training(tmp_path: Path) -> None:
    facts = {"streams": dict.fromkeys(BOTH, "features")}
    cells = planned("otam")
    stores = [CellStore(tmp_path, replace(CONFIG, episodes=episodes), facts, cells) for episodes in (60, 80)]
    single = cells[0]
    assert stores[0].run_folder(single) == stores[1].run_folder(single)
    stores[0].save(single, Measured(np.zeros(60, np.int64), 1.0))
    assert stores[0].find(single) is not None
    assert stores[1].find(single) is None


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_damaged_cell_is_run_again(root: Path, tmp_path: Path, damage: str) -> None:
    compared(Stub(), root, tmp_path, "otam-ec")
    (folder,) = (tmp_path / "cells").iterdir()
    if damage == "cut":
        (folder / "result.json").write_text((folder / "result.json").read_text()[:100])
    elif damage == "gone":
        (folder / "right.npy").unlink()
    else:
        np.save(folder / "right.npy", np.zeros(3, np.int64))
    stub = Stub()
    compared(stub, root, tmp_path, "otam-ec")
    assert len(stub.ran) == 1


def test_no_temporary_file_is_left(root: Path, tmp_path: Path) -> None:
    found = compared(Stub(), root, tmp_path, "otam")
    assert not list(tmp_path.rglob("*.tmp"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cells",
        "table.csv",
        "table.json",
        "table.md",
        "table.png",
    ]
    assert all(path.is_file() for path in found.files.values())


def test_a_failing_cell_takes_those_that_need_it_and_no_others(root: Path, tmp_path: Path) -> None:
    stub = Stub(fail=["otam-flow-1shot-seed0"])
    found = compared(stub, root, tmp_path, "otam", "tsn")
    failed = {(entry.row, entry.arrangement): entry.failure for entry in found.entries if entry.failed}
    assert failed == {
        ("otam", "flow"): "otam cannot; here; mend it",
        ("otam", "lf"): "otam-flow-1shot-seed0 failed: otam cannot; here; mend it",
    }
    assert len(stub.ran) == 11
    assert "1. failed: otam cannot; here; mend it" in found.to_markdown()
    mended = Stub()
    assert compared(mended, root, tmp_path, "otam", "tsn").failures == 0
    assert mended.ran == ["otam-flow-1shot-seed0", "otam-lf-1shot-seed0"]


def test_an_interrupted_comparison_keeps_what_is_finished(root: Path, tmp_path: Path) -> None:
    stub = Stub(interrupt="otam-ea-1shot-seed0")
    with pytest.raises(KeyboardInterrupt):
        compared(stub, root, tmp_path, "otam")
    rest = Stub()
    compared(rest, root, tmp_path, "otam")
    assert stub.ran + rest.ran == [cell.label for cell in planned("otam")]


def test_a_bug_is_not_taken_for_a_failed_cell() -> None:
    def broken(cell: Cell, tick: Tick) -> Measured:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(run_cells(planned("otam"), [], lambda: broken, 1, lambda cell, share: None))


def test_episodes_that_the_novel_classes_cannot_fill_are_refused_before_anything_runs(
    root: Path, tmp_path: Path
) -> None:
    stub = Stub()
    with pytest.raises(UserError, match="has 6 clips; an episode of 5 shot \\+ 2 queries needs 7; lower --query"):
        compared(stub, root, tmp_path, "otam", shots=(1, 5))
    assert stub.ran == []
    assert not (tmp_path / "cells").exists()


def test_settings_of_training_that_do_not_exist_are_refused(root: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, settings=("training.patienc=1",))
    with pytest.raises(UserError, match="did you mean 'patience'"):
        compared(Stub(), root, tmp_path, "otam", config=config)
    with pytest.raises(UserError, match="unknown profile 'papers'; did you mean 'paper'"):
        compared(Stub(), root, tmp_path, "otam", config=replace(CONFIG, profile="papers"))


def test_forecast_takes_the_most_similar_cell_that_was_measured() -> None:
    rgb, _flow, _ec, ea, late, _ami = planned("otam")
    other = planned("trx")
    forecast = Forecast()
    assert forecast.seconds(late) < forecast.seconds(rgb) < forecast.seconds(ea)
    forecast.note(rgb, Measured(np.zeros(1, np.int64), 1.0, (Cost(5.0, 1, 1),)))
    assert forecast.seconds(rgb) == 6.0
    assert forecast.seconds(replace(rgb, shot=5)) == 6.0
    assert forecast.seconds(other[0]) == 6.0
    forecast.note(other[0], Measured(np.zeros(1, np.int64), 1.0, (Cost(99.0, 1, 1),)))
    assert forecast.seconds(replace(rgb, shot=5)) == 6.0
    assert forecast.seconds(replace(other[1])) == 100.0
    forecast.note(late, Measured(np.zeros(1, np.int64), 3.0, (Cost(5.0, 1, 1), Cost(5.0, 1, 1))))
    assert forecast.seconds(other[4]) == 3.0


def test_cost_of_a_resumed_training_is_reckoned_from_its_last_part() -> None:
    """Two learning rates, of which the second was resumed before its last interval."""
    log = [{"episodes": 0.0}, *({"learning-rate": 0.1, "episodes": done} for done in (16.0, 32.0))]
    log += [{"learning-rate": 0.2, "episodes": done} for done in (16.0, 32.0, 48.0)]
    parameters = torch.nn.Linear(2, 3)
    parameters.register_parameter("fixed", torch.nn.Parameter(torch.zeros(5), requires_grad=False))
    seconds = iter((10.0, 11.0, 13.0, 14.0))  # begun, told, told, asked
    clock = Clock(lambda share: None, lambda: next(seconds))
    for ready in (80, 96):
        clock(ready, 96, "")
    clock(96, 96, "calibrating")
    cost = clock.cost(SimpleNamespace(log=log, model=parameters))  # type: ignore[arg-type]
    assert cost == Cost(1.0 + 3.0 * 5, 32 + 48, 9)


# The command

SMALL = ("--split", "random:0", "--way", "3", "--query", "2", "--episodes", "100", "--train-episodes", "16")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def test_two_methods_end_to_end_and_late_fusion_reuses_the_single_heads(root: Path, tmp_path: Path) -> None:
    asked = ("compare", root, *SMALL, "--methods", "protonet,amfir", "--arrangements", "rgb,flow,lf", "--shot", "1")
    result = run(*asked, "--out", tmp_path / "here", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    shares = {(entry["method"], entry["arrangement"]): entry["accuracy"] for entry in found["entries"]}
    assert set(shares) == {("protonet", "rgb"), ("protonet", "flow"), ("protonet", "lf"), ("amfir", "ami")}
    assert all(share > 100 / 3 for share in shares.values())
    assert shares["protonet", "lf"] > shares["protonet", "rgb"]
    trained = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "here" / "runs").iterdir())
    assert trained == ["amfir-1shot-seed0", "protonet-flow-1shot-seed0", "protonet-rgb-1shot-seed0"]
    late = next(entry for entry in found["entries"] if entry["arrangement"] == "lf")
    parts = [entry for entry in found["entries"] if entry["arrangement"] in BOTH]
    assert late["train_seconds"] == pytest.approx(sum(part["train_seconds"] for part in parts))
    assert late["parameters"] == sum(part["parameters"] for part in parts)

    fewer = ("--methods", "protonet", "--arrangements", "flow", "--out", tmp_path / "processes")
    others = run(*asked, *fewer, "--json", "--jobs", "2")
    assert others.exit_code == 0, others.stderr
    again = json.loads(others.stdout)["entries"]
    assert [entry["accuracy"] for entry in again] == [shares["protonet", "flow"]]


@pytest.mark.parametrize("damage", ["", "[]", "{}", "null"])
def test_a_damaged_note_of_the_cost_costs_no_more_than_the_figure(root: Path, tmp_path: Path, damage: str) -> None:
    methods = ("--methods", "protonet", "--arrangements", "rgb", "--shot", "1")
    asked = ("compare", root, *SMALL, *methods, "--out", tmp_path)
    accuracy = json.loads(run(*asked, "--json").stdout)["entries"][0]["accuracy"]
    for file in (*tmp_path.glob("runs/*/cost.json"), *tmp_path.glob("cells/*/result.json")):
        file.write_text(damage, encoding="utf-8")
    result = run(*asked, "--json")
    assert result.exit_code == 0, result.exception
    entry = json.loads(result.stdout)["entries"][0]
    assert (entry["accuracy"], entry["train_seconds"]) == (accuracy, None)


def test_ctrl_c_keeps_the_training_and_says_how_to_go_on(root: Path, tmp_path: Path) -> None:
    def press_when_trained() -> None:
        while not list(tmp_path.glob("runs/*/training.json")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    finger = threading.Thread(target=press_when_trained, daemon=True)
    finger.start()
    endless = ("--train-episodes", "1000000", "--set", "training.patience=100000")
    result = run("compare", root, *SMALL, "--methods", "protonet", "--shot", "1", "--out", tmp_path, *endless)
    finger.join()
    assert result.exit_code == 130
    assert "Resume with: amfir compare" in result.stderr
    assert not (tmp_path / "table.md").exists()


def test_a_killed_process_is_one_line() -> None:
    with pytest.raises(MachineError, match=r"exit code 7 .* while it ran otam-ec-.* fewer --jobs"):
        list(run_cells(planned("otam-ec"), [], partial(os._exit, 7), 2, lambda cell, share: None))


def test_a_failing_cell_ends_with_code_3_and_stands_in_the_table(rgb_root: Path, tmp_path: Path) -> None:
    asked = ("compare", rgb_root, *SMALL, "--methods", "protonet,otam", "--shot", "1", "--out", tmp_path)
    result = run(*asked, "--set", "head.smoothing=0.2")
    assert result.exit_code == 3, result.stderr
    assert "| ProtoNet | failed (1) |" in result.stdout
    assert "unknown setting of head 'protonet' 'smoothing'" in result.stdout
    assert "left out: flow, ec, ea, lf, ami; the cache has rgb only" in result.stderr
    assert "entries failed" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "otamm"), "did you mean 'otam'"),
        (("--arrangements", "ecc"), "did you mean 'ec'"),
        (("--shot", "one"), "'one' is no list of whole numbers; --shot"),
        (("--shot", "5"), "lower --query"),
        (("--seeds", "0,x"), "--seeds"),
        (("--jobs", "0"), "jobs is 0"),
        (("--project", "-1"), "project is -1"),
        (("--episodes", "1"), "episodes is 1"),
        (("--streams", "depth"), "no stream 'depth'"),
        (
            ("--shot", "1", "--methods", "otam,protonet", "--set", "head.smothing=1"),
            "unknown setting of head 'otam' 'smothing'",
        ),
        (("--shot", "1", "--set", "training.momentun=1"), "did you mean 'momentum'"),
        (("--methods", ""), "nothing to compare; add a head to --methods"),
    ],
)
def test_bad_input_is_one_line(root: Path, tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    result = run("compare", root, *SMALL, "--out", tmp_path, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""


def test_a_place_that_is_no_directory_is_refused_before_anything_is_run(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "below"):
        result = run("compare", root, *SMALL, "--methods", "protonet", "--shot", "1", "--out", out)
        assert result.exit_code == 2
        assert result.stderr == f"Error: {out} is no directory; --out; choose another one\n"
