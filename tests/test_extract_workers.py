"""The decoder workers: what they make of a clip, and what becomes of those that hang or die."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from amfir.extract.clips import Clip
from amfir.extract.config import ExtractConfig
from amfir.extract.decode import REASONS
from amfir.extract.pool import DecoderPool
from amfir.extract.worker import Decoded, Task, decode_task

from .extracting import settings_for

MakeClip = Callable[..., Path]
SLOW = settings_for(ExtractConfig(("flow",), views=20), flow=320)
TINY = settings_for(ExtractConfig(("rgb",), frames=2), rgb=16)


@pytest.fixture
def clip(tmp_path: Path, make_clip: MakeClip) -> Clip:
    return Clip("c.mp4", make_clip(tmp_path / "c.mp4"), "x")


def test_what_the_workers_import_contains_no_torch() -> None:
    for module in ("worker", "pool", "job", "config"):
        code = f"import sys, amfir.extract.{module}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, module


def slow_task(tmp_path: Path, make_clip: MakeClip) -> Task:
    """Return a task of a few seconds: flow of 160 pairs."""
    return Task(Clip("slow.mp4", make_clip(tmp_path / "slow.mp4", num_frames=40), "x"), ("flow",))


def test_a_clip_that_takes_too_long_is_given_up_and_its_worker_replaced(
    tmp_path: Path, make_clip: MakeClip, clip: Clip
) -> None:
    with DecoderPool(1, timeout_seconds=0.3) as pool:
        decoded = [item for item in pool.results([slow_task(tmp_path, make_clip)], SLOW) if item]
        assert [item.failures["flow"][0] for item in decoded] == ["timeout"]
        assert "0.3 s" in decoded[0].failures["flow"][1]
        assert decoded[0].source[0] == (tmp_path / "slow.mp4").stat().st_size
        (quick,) = (item for item in pool.results([Task(clip, ("rgb",))], TINY) if item)
        assert quick.products["rgb"].shape == (1, 2, 16, 16, 3)
    assert multiprocessing.active_children() == []


def test_a_clip_whose_worker_dies_twice_is_listed(tmp_path: Path, make_clip: MakeClip) -> None:
    decoded: list[Decoded] = []
    with DecoderPool(1, timeout_seconds=60) as pool:
        for item in pool.results([slow_task(tmp_path, make_clip)], SLOW):
            if item:
                decoded.append(item)
            elif any(worker.task for worker in pool._workers):
                kill_workers()
    ((reason, message),) = (item.failures["flow"] for item in decoded)
    assert reason == "decoder-died"
    assert "2 times" in message
    assert "-9" in message


def kill_workers() -> None:
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)


def test_whatever_goes_wrong_with_a_clip_becomes_a_reason_code(clip: Clip) -> None:
    nonsense = settings_for(ExtractConfig(("rgb",), frames=2), rgb=-5)
    decoded = decode_task(Task(clip, ("rgb",)), nonsense)
    assert decoded.failures["rgb"][0] == "decoder-error"
    assert "\n" not in decoded.failures["rgb"][1]
    assert decoded.failures["rgb"][0] in REASONS


def test_a_clip_of_one_frame_has_images_but_no_flow(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = Clip("one.mp4", make_clip(tmp_path / "one.mp4", num_frames=1), "x")
    settings = settings_for(ExtractConfig(frames=3), rgb=32, flow=48)
    both, rgb, flow = (decode_task(Task(clip, streams), settings) for streams in [("rgb", "flow"), ("rgb",), ("flow",)])
    assert both.products["rgb"].tobytes() == rgb.products["rgb"].tobytes()
    assert both.products["rgb"].shape == (1, 3, 32, 32, 3)
    assert [decoded.failures["flow"][0] for decoded in (both, flow)] == ["single-frame"] * 2
    assert rgb.failures == {}


def test_every_reason_code_is_documented() -> None:
    page = (Path(__file__).parent.parent / "docs" / "failures.md").read_text()
    documented = dict(re.findall(r"^\| `([a-z-]+)` \| .+ \| (.+) \|$", page, re.MULTILINE))
    assert documented.keys() == REASONS.keys()
    assert all(REASONS[code].endswith(mend) for code, mend in documented.items())
