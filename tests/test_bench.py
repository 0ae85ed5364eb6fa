import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amfir.pipeline import bench_eval
from amfir.pipeline.cli import cli


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["bench", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluate on features that take a second to embed, instead of a minute."""
    monkeypatch.setattr(bench_eval, "EvalBench", partial(bench_eval.EvalBench, classes=8, clips=12, dim=48))


@pytest.mark.usefixtures("small")
def test_the_batched_evaluation_predicts_what_the_loop_does() -> None:
    found = run("eval", "--episodes", "250", "--loop-episodes", "8")
    assert found["different"] == 0
    assert found["loop_episodes"] == 8
    assert found["speedup"] == pytest.approx((250 / found["seconds"]) / (8 / found["loop_seconds"]))


def test_the_extraction_is_held_against_its_stages_and_a_plain_loop() -> None:
    found = run("extract", "--clips", "24", "--size", "32")
    stages = found["stages"]
    assert set(stages) == {"decode", "prepare-rgb", "prepare-flow", "network-rgb", "network-flow", "write"}
    assert found["clips"] == 24
    assert found["core_seconds"] == pytest.approx(sum(stages.values()))
    assert found["ratio"] == pytest.approx(found["seconds"] / (found["core_seconds"] / found["cores"]))
    assert found["speedup"] == pytest.approx(found["plain_seconds"] / found["seconds"])
    assert min(found["peak_mib"].values()) > 10


def test_flow_backends_are_held_against_opencv() -> None:
    found = run("flow", "--pairs", "8", "--short-side", "48", "--backends", "opencv,torch,triton", "--device", "cpu")
    assert (found["pairs"], found["height"], found["device"]) == (8, 48, "cpu")
    opencv, ours = (found["backends"][name] for name in ("opencv", "torch"))
    assert (opencv["speedup"], opencv["mean"], opencv["codes"]) == (1.0, 0.0, 0.0)
    assert ours["speedup"] == pytest.approx(ours["pairs_per_second"] / opencv["pairs_per_second"])
    assert 0 < ours["mean"] <= 1e-5
    assert ours["p999"] <= 1e-2
    assert ours["codes"] <= 1e-4
    assert "CPU" in found["backends"]["triton"]["unavailable"]


@pytest.mark.usefixtures("small")
def test_the_tables_are_for_reading(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", "eval", "--episodes", "250", "--loop-episodes", "2"])
    assert "times faster, 0 predictions differ" in result.stdout
    flow = CliRunner().invoke(cli, ["bench", "flow", "--pairs", "4", "--short-side", "48", "--backends", "triton"])
    assert flow.stdout.splitlines()[0].split()[:2] == ["backend", "pairs/s"]
    assert flow.stdout.splitlines()[1].split()[0] == "opencv"
    missing = CliRunner().invoke(cli, ["bench", "extract", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2


def test_an_unknown_backend_is_refused() -> None:
    result = CliRunner().invoke(cli, ["bench", "flow", "--backends", "opncv"])
    assert result.exit_code == 2
    assert "did you mean 'opencv'" in result.stderr
