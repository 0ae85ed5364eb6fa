"""The extraction job as a real process: killed, interrupted, out of disk; nothing is lost and nobody is left."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from amfir.cache import Store

MakeClip = Callable[..., Path]
MARK = "AMFIR_TEST_JOB"

# A segment every two rows, so that a killed job leaves some behind. The guard is what spawned workers need.
SCRIPT = """
import functools, resource, sys
from pathlib import Path
import amfir.extract.job as job
from amfir.cache.errors import MachineError, UserError
from amfir.extract.clips import Clip
from amfir.extract.config import ExtractConfig

if __name__ == "__main__":
    folder, cache, limit, views = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    job.StreamWriter = functools.partial(job.StreamWriter, max_rows=2)
    clips = [Clip(path.name, path, "x") for path in sorted(folder.iterdir())]
    config = ExtractConfig(frames=4, views=views, size=64, workers=2, device="cpu")
    try:
        report = job.extract(clips, cache, config, lambda progress: print("done", progress.done, flush=True))
    except (KeyboardInterrupt, MachineError, UserError) as error:
        print(type(error).__name__, error, flush=True)
    else:
        print("complete", report.done, report.skipped, report.failed, flush=True)
"""


class Job:
    """An extraction in a process group of its own, whose processes can be found by a mark in their environment."""

    def __init__(self, tmp_path: Path, cache: str = "cache", limit: int = 0, views: int = 1) -> None:
        script = tmp_path / "job.py"
        script.write_text(SCRIPT)
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "videos"), str(tmp_path / cache), str(limit), str(views)],
            env=os.environ | {MARK: self.mark},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait_for_clips(self, count: int) -> None:
        """Read the output until so many clips are done."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("done") and int(line.split()[1]) >= count:
                return
        raise AssertionError("the job ended before")

    def output(self) -> str:
        """Wait for the end, and return what was printed since `wait_for_clips`."""
        return str(self.process.communicate(timeout=120)[0])

    def finish(self) -> str:
        """Wait for the end, and return the last line of the output."""
        return self.output().strip().split("\n")[-1]

    def processes(self) -> list[int]:
        """Return the ids of the job's living processes, the job itself included."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    marked = f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                except OSError:
                    continue
                if marked:
                    found.append(int(entry.name))
        return found

    def assert_gone(self) -> None:
        """Give the orphans a few seconds to notice."""
        for _ in range(200):
            if not self.processes():
                return
            time.sleep(0.05)
        raise AssertionError(f"processes {self.processes()} outlived their job")


@pytest.fixture
def videos(tmp_path: Path, make_clip: MakeClip) -> list[str]:
    folder = tmp_path / "videos"
    folder.mkdir()
    names = [f"c{i:02d}.mp4" for i in range(16)]
    for i, name in enumerate(names):
        make_clip(folder / name, num_frames=12, seed=i)
    return names


def bits(cache: Path) -> dict[str, list[tuple[str, bytes, bytes]]]:
    streams = {stream: Store(cache).read(stream) for stream in ("rgb", "flow")}
    return {
        name: [
            (clip_id, data.features[i].tobytes(), data.times[i].tobytes()) for i, clip_id in enumerate(data.clip_ids)
        ]
        for name, data in streams.items()
    }


def test_killed_at_any_moment_and_resumed_the_cache_is_that_of_an_undisturbed_job(
    videos: list[str], tmp_path: Path
) -> None:
    started = time.monotonic()
    assert Job(tmp_path, "undisturbed").finish() == "complete 16 0 0"
    seconds = time.monotonic() - started
    moments = random.Random(0)
    jobs = []
    for kill in range(8):
        job = Job(tmp_path)
        if kill % 2:  # at any moment, the start included
            time.sleep(min(1.0, moments.uniform(0.0, seconds)))
        else:  # between two segments or while one is written
            try:
                job.wait_for_clips(1 + moments.randrange(3))
                time.sleep(moments.uniform(0.0, 0.05))
            except AssertionError:
                pass  # nothing was left to do
        os.kill(job.process.pid, signal.SIGKILL)
        job.finish()
        jobs.append(job)
    for job in jobs:
        job.assert_gone()
    last = Job(tmp_path).finish().split()
    assert last[0] == "complete"
    assert int(last[2]) > 0, "no job left a segment behind: the test shows nothing"
    assert bits(tmp_path / "cache") == bits(tmp_path / "undisturbed")


def test_an_interrupted_job_keeps_what_was_finished_and_ends_its_workers(videos: list[str], tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.wait_for_clips(3)
    os.killpg(job.process.pid, signal.SIGINT)  # as a terminal does: to the job and to its workers
    output = job.output()
    assert output.strip().split("\n")[-1].startswith("KeyboardInterrupt")
    assert "Traceback" not in output
    job.assert_gone()
    assert len(Store(tmp_path / "cache").done("rgb")) >= 3
    assert len(Store(tmp_path / "cache").done("flow")) >= 3
    assert Job(tmp_path).finish().startswith("complete")
    assert len(Store(tmp_path / "cache").done("flow")) == len(videos)


def test_a_full_disk_gives_one_line_and_damages_nothing(videos: list[str], tmp_path: Path) -> None:
    job = Job(tmp_path, limit=20_000)
    last = job.finish()
    assert last.startswith("MachineError")
    assert str(tmp_path / "cache") in last
    job.assert_gone()
    assert Job(tmp_path).finish().startswith("complete")
    assert len(Store(tmp_path / "cache").done("rgb")) == len(videos)


def test_a_worker_busy_with_a_clip_ends_with_its_killed_job(tmp_path: Path, make_clip: MakeClip) -> None:
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos" / "c.mp4")
    job = Job(tmp_path, views=10_000)  # flow of 40,000 pairs: a minute and more
    for _ in range(4):
        job.wait_for_clips(0)  # the job's heartbeats, twice a second
    assert len(job.processes()) >= 2
    os.kill(job.process.pid, signal.SIGKILL)
    job.assert_gone()
    job.finish()


def test_a_script_without_a_guard_is_told_so(tmp_path: Path, make_clip: MakeClip) -> None:
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos" / "c.mp4")
    script = tmp_path / "unguarded.py"
    script.write_text(SCRIPT.replace('__name__ == "__main__"', "True"))
    command = [sys.executable, str(script), str(tmp_path / "videos"), str(tmp_path / "cache"), "0", "1"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "MachineError the decoder processes do not start" in run.stdout
    assert "__main__" in run.stdout.strip().split("\n")[-1]
