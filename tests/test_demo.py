"""The demo, the real thing at a smaller size."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import matplotlib.image
import pytest
import torch
from click.testing import CliRunner

from amfir.cache.errors import MachineError, UserError
from amfir.meta.episodes import EpisodeShape
from amfir.pipeline import demo
from amfir.pipeline.cli import cli
from amfir.pipeline.demo import Demo, DemoConfig, run_demo
from amfir.pipeline.runs import RunPlan

SMALL = DemoConfig(
    classes=8,
    clips_per_class=3,
    image_size=64,
    training=RunPlan(shape=EpisodeShape(way=2, shot=1, query=2), episodes=32, settings=("training.interval=16",)),
    episodes=300,
)
METHODS = ["untrained", "temporal-lf", "amfar", "amfir"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Demo, list[tuple[str, int, int]]]:
    """Where the demo ran, what it found, and the progress that it told."""
    out = tmp_path_factory.mktemp("demo") / "out"
    told: list[tuple[str, int, int]] = []
    return out, run_demo(out, lambda stage, ready, total, note: told.append((stage, ready, total)), SMALL), told


def files(out: Path) -> dict[Path, int]:
    """When each file was written that a second run has no reason to write again."""
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "demo.png"}


def test_each_method_is_evaluated_as_eval_does_it_and_amfir_is_last(
    ran: tuple[Path, Demo, list[tuple[str, int, int]]],
) -> None:
    out, found, _ = ran
    assert [result["method"] for result in found.results] == METHODS
    split = str(out / "videos" / "split.toml")
    arguments = ["eval", str(out / "cache"), "--split", split, "--way", "2", "--query", "2", "--episodes", "300"]
    for result, more in zip(
        found.results, ([], *(["--run", str(out / "runs" / name)] for name in METHODS[1:])), strict=True
    ):
        printed = json.loads(CliRunner().invoke(cli, [*arguments, *more, "--json"]).stdout)
        assert list(printed) == list(result)
        timed = ("seconds", "episodes_per_second")
        assert {key: printed[key] for key in printed if key not in timed} == {
            key: result[key] for key in result if key not in timed
        }


def test_progress_is_told_for_every_stage_up_to_its_end(ran: tuple[Path, Demo, list[tuple[str, int, int]]]) -> None:
    stages = list(dict.fromkeys(stage for stage, _, _ in ran[2]))
    assert stages == ["clips", "features", "temporal-lf", "amfar", "amfir"]
    last = {stage: (ready, total) for stage, ready, total in ran[2]}
    assert last == {"clips": (24, 24), "features": (24, 24), **dict.fromkeys(METHODS[1:], (32, 32))}


def test_the_picture_shows_accuracies_and_clips(ran: tuple[Path, Demo, list[tuple[str, int, int]]]) -> None:
    assert ran[1].picture == ran[0] / "demo.png"
    picture = matplotlib.image.imread(ran[1].picture)
    assert picture.shape[:2] == (935, 1430)
    assert (picture[:537, :, :3].min((0, 1)) < 0.3).all()
    assert picture[537:].std() > 0.05


def test_a_second_run_takes_up_what_is_there(ran: tuple[Path, Demo, list[tuple[str, int, int]]]) -> None:
    out, found, _ = ran
    before = files(out)
    told: list[str] = []
    again = run_demo(out, lambda stage, ready, total, note: told.append(stage), SMALL)
    assert files(out) == before
    assert set(told) == {"features"}
    assert [result["accuracy"] for result in again.results] == [result["accuracy"] for result in found.results]


def test_an_interrupted_demo_goes_on_where_it_was(
    ran: tuple[Path, Demo, list[tuple[str, int, int]]], tmp_path: Path
) -> None:
    """Interrupted in the middle of a training; clips, features and the finished run before it stay as they are."""

    def interrupt(stage: str, ready: int, total: int, note: str) -> None:
        if (stage, ready) == ("amfar", 16):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, interrupt, SMALL)
    before = {path: when for path, when in files(tmp_path).items() if "amfar" not in path.parts}
    assert (tmp_path / "runs" / "temporal-lf" / "model.json") in before
    found = run_demo(tmp_path, lambda *_: None, SMALL)
    assert before.items() <= files(tmp_path).items()
    assert [r["fusions"] for r in found.results] == [r["fusions"] for r in ran[1].results]


def test_a_clip_that_cannot_be_extracted_is_the_machines_failure(tmp_path: Path) -> None:
    def spoil(stage: str, ready: int, total: int, note: str) -> None:
        if (stage, ready) == ("clips", total):
            next((tmp_path / "videos").glob("*/002.mp4")).write_bytes(b"")

    with pytest.raises(MachineError, match=r"/002\.mp4 cannot be extracted \(.*\); delete .* and try again"):
        run_demo(tmp_path, spoil, DemoConfig(classes=2, clips_per_class=3, image_size=64))


def test_a_place_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="which is a file; choose another directory"):
        run_demo(tmp_path / "file", lambda *_: None, SMALL)
    result = CliRunner().invoke(cli, ["demo", "--out", str(tmp_path / "file"), "--json"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith("which is a file; choose another directory\n")
    assert result.stderr.count("\n") == 1


def test_the_command_prints_a_table_or_one_object(
    ran: tuple[Path, Demo, list[tuple[str, int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, found, _ = ran
    monkeypatch.setattr(demo, "run_demo", partial(run_demo, config=SMALL))
    result = CliRunner().invoke(cli, ["demo", "--out", str(out), "--json"])
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed["seconds"] > 0
    assert [entry["fusions"] for entry in printed["results"]] == [entry["fusions"] for entry in found.results]
    assert Path(printed["picture"]).is_file()
    result = CliRunner().invoke(cli, ["demo", "--out", str(out)])
    lines = result.stdout.splitlines()
    assert "2-way 1-shot accuracy on held-out classes, 300 episodes" in lines[0]
    assert "no benchmark" in lines[0]
    assert lines[1].split() == ["method", "rgb", "flow", "fused"]
    for line, entry in zip(lines[2:6], found.results, strict=True):
        shares = [*entry["modalities"].values(), entry]
        text = [f"{share['accuracy']:.1f} +- {share['ci95']:.1f}" for share in shares]
        assert line.split() == [entry["method"], *" ".join(text).split()]
    chosen = found.results[-1]["selection_accuracy"]
    best = max(value for name, value in chosen.items() if not name.startswith("always"))
    assert f"ASI picks it in {best:.1f} % (criterion " in lines[6]
    assert f"max-prob in {chosen['max-prob']:.1f} %, always-" in lines[6]
    assert str(out / "demo.png") in lines[7]
    assert "1. features" in result.stderr
    assert "24/24" in result.stderr


def test_the_help_says_what_it_is_and_the_defaults_are_the_demos() -> None:
    result = CliRunner().invoke(cli, ["demo", "--help"])
    assert result.exit_code == 0
    assert "amfir demo --out" in result.stdout
    assert "no figure on them is a benchmark result" in " ".join(result.stdout.split())
    config = DemoConfig()
    assert (config.classes, config.clips_per_class, config.image_size, config.episodes) == (24, 10, 160, 10_000)
    assert config.training == RunPlan(episodes=640)
    assert config.training.shape == EpisodeShape(5, 1, 5)
