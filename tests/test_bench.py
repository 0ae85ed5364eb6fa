import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from amfir.pipeline.cli import cli


def run(*arguments: str) -> dict[str, float]:
    result = CliRunner().invoke(cli, ["bench", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, float] = json.loads(result.stdout)
    return found


def test_the_batched_evaluation_predicts_what_the_loop_does() -> None:
    found = run("eval", "--episodes", "250", "--loop-episodes", "8")
    assert found["different"] == 0
    assert found["loop_episodes"] == 8
    assert found["speedup"] == pytest.approx((250 / found["seconds"]) / (8 / found["loop_seconds"]))


def test_the_extraction_is_held_against_its_stages() -> None:
    found = run("extract", "--clips", "24", "--size", "32")
    stages = json.loads(json.dumps(found["stages"]))
    assert set(stages) == {"decode", "prepare-rgb", "prepare-flow", "network-rgb", "network-flow", "write"}
    assert found["clips"] == 24
    assert found["core_seconds"] == pytest.approx(sum(stages.values()))
    assert found["ratio"] == pytest.approx(found["seconds"] / (found["core_seconds"] / found["cores"]))


def test_the_tables_are_for_reading(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", "eval", "--episodes", "250", "--loop-episodes", "2"])
    assert "times faster, 0 predictions differ" in result.stdout
    missing = CliRunner().invoke(cli, ["bench", "extract", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2
