"""Blocks dealt to processes and to Ray: the same numbers, one copy of the clips, and nobody left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import MachineError, UserError
from amfir.meta.episodes import EpisodeSampler, EpisodeShape
from amfir.meta.evaluate import BlockJob, Engine, EvaluationConfig, evaluate_scorer, here
from amfir.meta.generalised import Generalised, Space, evaluate_generalised
from amfir.meta.heads import Inputs, build_head
from amfir.meta.prototypes import PrototypeScorer
from amfir.meta.scorers import HeadScorer, ModelScorer
from amfir.pipeline.eval_processes import in_processes, read_job, write_job
from amfir.pipeline.eval_ray import on_ray

ROOT = Path(__file__).parent.parent

CONFIG = EvaluationConfig(EpisodeShape(4, 1, 2), episodes=1130, seed=3)


def clips() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(8).repeat_interleave(6)
    features = {}
    for name, width in (("rgb", 9), ("flow", 6)):
        centres = torch.randn(8, width, generator=generator)
        features[name] = (centres[labels][:, None] + torch.randn(48, 3, width, generator=generator)).half()
    return features, labels


def make(name: str) -> ModelScorer:
    features, _ = clips()
    return ModelScorer(
        {
            stream: HeadScorer(build_head(name, Inputs(3, values.shape[-1]), {}, seed=0).eval(), values)
            for stream, values in features.items()
        }
    )


def figures(engine: Engine) -> list[Any]:
    """All that an evaluation gives, and what it told on its way."""
    blocks: list[list[int]] = []
    found = evaluate_scorer(
        make("protonet"),
        clips()[1],
        range(8),
        CONFIG,
        engine=engine,
        watch=lambda part: blocks.append(part.top.tolist()),
    )
    return [replace(found, seconds=1.0), found.right.tolist(), found.confusion.tolist(), blocks]


def joint_figures(engine: Engine) -> Generalised:
    features, labels = clips()
    vectors = {name: values.float().mean(1) for name, values in features.items()}
    space = Space(vectors, dict.fromkeys(vectors, 0.3), dict.fromkeys(vectors, "squared-euclidean"))
    return evaluate_generalised(space, labels, range(3), range(3, 8), CONFIG, engine=engine)


def test_figures_do_not_depend_on_the_number_of_processes() -> None:
    expected = figures(in_processes(1))
    assert [len(block) for block in expected[3]] == [250] * 4 + [130]
    for workers in (2, 4):
        assert figures(in_processes(workers)) == expected
    assert joint_figures(in_processes(2)) == joint_figures(here)
    assert multiprocessing.active_children() == []


def test_figures_on_ray_are_the_same() -> None:
    assert figures(on_ray(2, "local")) == figures(here)


def test_without_ray_the_engine_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="Ray is not installed; --engine ray; run"):
        figures(on_ray(None, None))


@pytest.mark.parametrize("engine", [in_processes, lambda workers: on_ray(workers, None)])
def test_no_processes_are_refused(engine: Callable[[int], Engine]) -> None:
    with pytest.raises(UserError, match=r"^workers is 0; an evaluation needs at least 1 process; raise --workers$"):
        engine(0)


@pytest.mark.parametrize("name", ["protonet", "otam", "trx", "hyrsm"])
def test_what_travels_is_encoded_and_without_features(name: str, tmp_path: Path) -> None:
    """A scorer of every kind: prototypes, a table of pairs, encodings."""
    features, labels = clips()
    scorer = make(name)
    sampler = EpisodeSampler(labels, range(8), CONFIG.shape)
    job = BlockJob(scorer, sampler, CONFIG)
    job.prepare()
    write_job(tmp_path / "job", job)
    assert features["rgb"].numpy().tobytes() not in (tmp_path / "job").read_bytes()
    sent = read_job(tmp_path / "job")
    ours, theirs = job(4), sent(4)
    assert len(theirs.top) == 130
    assert torch.equal(ours.fusions["ami"], theirs.fusions["ami"])
    assert torch.equal(ours.hits, theirs.hits)
    # Nothing was taken from the scorer that stays here.
    assert scorer(sampler.sample(2, torch.Generator().manual_seed(0))).psi.isfinite().all()


def test_embeddings_are_mapped_and_not_copied(tmp_path: Path) -> None:
    scorer = PrototypeScorer({"rgb": torch.rand(20_000, 64)})
    job = BlockJob(scorer, EpisodeSampler(torch.arange(20_000) % 5, range(5), CONFIG.shape), CONFIG)
    write_job(tmp_path / "job", job)
    sent = read_job(tmp_path / "job")
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "job") in maps.read_text()
    assert torch.equal(job(0).top, sent(0).top)


def fail(block: int) -> int:
    raise UserError(f"no block {block}")


def die(marker: Path, block: int) -> int:
    marker.touch()
    os.kill(os.getpid(), signal.SIGKILL)
    return block


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes import this module, whose functions are their jobs."""
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.usefixtures("importable")
def test_an_error_ends_all_processes_and_is_the_callers() -> None:
    with pytest.raises(UserError, match=r"^no block 0$"):
        in_processes(2)(fail, 1, print)
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("importable")
def test_a_killed_process_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"a process of the evaluation was killed .*; --workers; run it with fewer"):
        in_processes(2)(partial(die, tmp_path / "ran"), 1, print)
    assert (tmp_path / "ran").exists()
    assert multiprocessing.active_children() == []


SLOW = """
from amfir.pipeline.eval_processes import in_processes
from tests.test_eval_processes import dawdle
in_processes(2)(dawdle, 1, print)
"""


def dawdle(block: int) -> None:
    print(os.getpid(), flush=True)
    time.sleep(60)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_or_a_killed_parent_leaves_no_process(how: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    if how == signal.SIGINT:
        os.killpg(parent.pid, how)  # as a terminal does: to all of them
    else:
        parent.kill()
    parent.wait(30)
    deadline = time.monotonic() + 20
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)
    parent.stdout.close()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
