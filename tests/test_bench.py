import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from amfir.meta.episodes import EpisodeSampler, EpisodeShape
from amfir.meta.evaluate import EvaluationConfig
from amfir.meta.methods import parse_method
from amfir.meta.profiles import load_profile
from amfir.meta.train import Task, TrainConfig, start_training, train
from amfir.pipeline import bench_eval, bench_train
from amfir.pipeline.cli import cli
from amfir.pipeline.fresh import in_fresh_process


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli, ["bench", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


CLIPS = bench_eval.Clips(classes=8, clips=12, frames=4, dim=16)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on few and narrow clips."""
    monkeypatch.setattr(bench_eval, "CLIPS", CLIPS)


@pytest.mark.parametrize("name", ["amfir", "otam", "protonet"])
def test_the_batched_evaluation_predicts_what_the_loop_does(name: str) -> None:
    figures = bench_eval.measure(name, CLIPS, EvaluationConfig(EpisodeShape(5, 2, 1), 260), 8)
    assert figures["different"] == 0
    assert figures["speedup"] == pytest.approx((260 / figures["seconds"]) / (8 / figures["loop_seconds"]))


@pytest.mark.usefixtures("small")
def test_heads_are_measured_in_processes_of_their_own() -> None:
    found = run("eval", "--episodes", "250", "--loop-episodes", "8", "--heads", "otam", "--shot", "2")
    assert (found["episodes"], found["loop_episodes"]) == (250, 8)
    assert list(found["methods"]) == ["otam"]
    assert 10 < found["methods"]["otam"]["peak_mib"] < 2048


def test_different_predictions_are_counted_but_ties_are_not() -> None:
    looped = torch.tensor([[[1.0, 2.0, 0.0], [5.0, 5.0 + 1e-6, 0.0], [3.0, 0.0, 0.0]]])
    batched = torch.tensor([[[2.0, 1.0, 0.0], [5.0 + 1e-6, 5.0, 0.0], [3.0, 0.0, 1.0]]])
    assert bench_eval.count_different(looped, batched) == 1
    assert bench_eval.count_different(looped, looped) == 0


def test_training_is_held_against_one_episode_at_a_time() -> None:
    figures = bench_train.measure("match-mean", CLIPS, TrainConfig(episodes=24), 4)
    assert figures["episodes_per_second"] == pytest.approx(24 / figures["seconds"])
    assert figures["speedup"] == pytest.approx(figures["episodes_per_second"] / figures["plain_per_second"])


def test_an_update_of_single_episodes_is_one_of_the_batch() -> None:
    features, labels = CLIPS.features(["rgb", "flow"])
    config = TrainConfig(EpisodeShape(3, 1, 2), episodes=4, batch_episodes=4, optimizer="sgd", learning_rates=(0.1,))
    names = [f"class {i}" for i in range(8)]
    task = Task(features, labels, range(8), (), names, parse_method("protonet+ami"), load_profile("protonet"), config)
    whole, single = start_training(task), start_training(task)
    sampler = EpisodeSampler(labels, range(8), config.shape)
    bench_train.plain_update(task, single, sampler.sample(4, single.generator))
    for _ in train(task, whole):
        pass
    start = start_training(task).model.state_dict()
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(single.model.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    assert any(not torch.equal(start[name], value) for name, value in whole.model.state_dict().items())


def test_an_unknown_head_is_refused() -> None:
    for command in ("eval", "train"):
        result = CliRunner().invoke(cli, ["bench", command, "--heads", "otamm"])
        assert result.exit_code == 2
        assert "did you mean 'otam'" in result.stderr
        assert "no head to measure; --heads" in CliRunner().invoke(cli, ["bench", command, "--heads", ""]).stderr


def test_a_loop_longer_than_a_block_is_refused() -> None:
    result = CliRunner().invoke(cli, ["bench", "eval", "--loop-episodes", "251"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "251 is not in the range 1<=x<=250" in result.stderr


def test_a_fresh_process_tells_its_own_peak() -> None:
    (few, small_peak), (many, large_peak) = (in_fresh_process(len, b"x" * size) for size in (1, 100 * 2**20))
    assert (few, many) == (1, 100 * 2**20)
    assert 90 < large_peak - small_peak < 400


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
    sizes = ("--episodes", "250", "--loop-episodes", "2", "--heads", "protonet")
    result = CliRunner().invoke(cli, ["bench", "eval", *sizes])
    assert result.stdout.splitlines()[0].split()[:4] == ["head", "250", "episodes,", "s"]
    assert result.stdout.splitlines()[1].split()[0] == "protonet"
    result = CliRunner().invoke(cli, ["bench", "train", "--head-episodes", "16", "--heads", "protonet"])
    assert result.stdout.splitlines()[0].split()[:3] == ["head", "episodes", "seconds"]
    assert result.stdout.splitlines()[1].split()[:2] == ["protonet", "16"]
    flow = CliRunner().invoke(cli, ["bench", "flow", "--pairs", "4", "--short-side", "48", "--backends", "triton"])
    assert flow.stdout.splitlines()[0].split()[:2] == ["backend", "pairs/s"]
    assert flow.stdout.splitlines()[1].split()[0] == "opencv"
    missing = CliRunner().invoke(cli, ["bench", "extract", str(tmp_path / "nowhere")])
    assert missing.exit_code == 2


def test_an_unknown_backend_is_refused() -> None:
    result = CliRunner().invoke(cli, ["bench", "flow", "--backends", "opncv"])
    assert result.exit_code == 2
    assert "did you mean 'opencv'" in result.stderr
