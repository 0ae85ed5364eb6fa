"""Extraction on a Ray cluster of two machines (here: two nodes on one), whose processes and machines are lost."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from amfir.cache import Failure, Store
from amfir.cache.errors import MachineError, UserError
from amfir.extract import cluster_chunks, cluster_job
from amfir.extract.clips import Clip
from amfir.extract.cluster import run_cluster
from amfir.extract.cluster_actor import ClusterActor
from amfir.extract.cluster_posts import Post, find_posts
from amfir.extract.config import ExtractConfig
from amfir.extract.job import extract
from amfir.extract.plan import Plan
from amfir.extract.report import Progress, Tally
from amfir.extract.worker import Task

from .clipmaker import make_clip

ray = pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'amfir[ray]'")

MakeClip = Callable[..., Path]
LOCAL = ExtractConfig(frames=3, views=8, size=32, workers=1, device="cpu")
TINY = replace(LOCAL, views=1)


class TwoMachines:
    """A cluster whose head runs no actors, and two machines of one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        memory: dict[str, Any] = {"object_store_memory": 80_000_000}
        # A machine that does not answer is lost after one second instead of 15.
        health = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 300, "health_check_timeout_ms": 1000}
        self.cluster = Cluster(True, head_node_args={"num_cpus": 0, "_system_config": health, **memory})
        self.nodes = [self.cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
        self.address = str(self.cluster.address)

    def actors(self, node: int) -> list[int]:
        """Return the ids of the actors' processes on a machine."""
        raylet = self.nodes[node].all_processes["raylet"][0].process.pid
        return [pid for pid in children(raylet) if "ray::ClusterActor" in read(Path(f"/proc/{pid}/cmdline"))]

    def lose(self, node: int) -> None:
        """Take a machine away at once."""
        self.cluster.remove_node(self.nodes[node], allow_graceful=False)


def read(path: Path) -> str:
    """Return a file of a process, which may have ended meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""


def children(parent: int) -> list[int]:
    stats = {entry.name: read(entry / "stat") for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return [int(pid) for pid, stat in stats.items() if stat and int(stat.rpartition(")")[2].split()[1]) == parent]


def has(port: int, actor: int) -> bool:
    """Return whether a decoder of an actor owns the TCP connection from a port."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{line[9]}]" for line in lines if int(line[1].rpartition(":")[2], 16) == port}
    return any(os.readlink(file) in sockets for pid in children(actor) for file in Path(f"/proc/{pid}/fd").iterdir())


@pytest.fixture(scope="module")
def machines() -> Iterator[TwoMachines]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    two = TwoMachines()
    yield two
    two.cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        Clip(f"c{i:02}.mp4", make_clip(folder / f"c{i:02}.mp4", num_frames=8, seed=i), f"class {i % 2}")
        for i in range(36)
    ]


def on(machines: TwoMachines, config: ExtractConfig) -> ExtractConfig:
    return replace(config, engine="ray", address=machines.address)


def bits(cache: Path, stream: str) -> dict[str, tuple[bytes, bytes, str]]:
    data = Store(cache).read(stream)
    return {
        clip_id: (data.features[i].tobytes(), data.times[i].tobytes(), data.labels[i])
        for i, clip_id in enumerate(data.clip_ids)
    }


def assert_same_rows(cache: Path, reference: Path) -> None:
    """Both caches hold the same bits, each row once."""
    for stream in ("rgb", "flow"):
        assert bits(cache, stream) == bits(reference, stream)
        assert Store(cache).info()[stream]["duplicates"] == 0


def test_another_spec_in_the_cache_comes_back_as_the_actors_own_line(
    machines: TwoMachines, clips: list[Clip], tmp_path: Path
) -> None:
    extract(clips[:2], tmp_path, replace(TINY, streams=("rgb",)))
    with pytest.raises(UserError, match="frames"):
        extract(clips, tmp_path, on(machines, replace(TINY, frames=2)))
    assert sorted(Store(tmp_path).done("rgb")) == ["c00.mp4", "c01.mp4"]
    assert [path.name for path in tmp_path.glob("*.tmp")] == []


def test_a_clip_that_kills_its_actors_is_listed_and_the_others_extracted(
    machines: TwoMachines, clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp", reason="the clip comes from an HTTP server")
    monkeypatch.setattr(cluster_job, "FIRST_CHUNK", 2)
    monkeypatch.setattr(cluster_chunks, "MAX_DEATHS", 1)
    absent = Clip("absent.mp4", Path("absent.mp4"), "x")
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as open_ones, ThreadPoolExecutor(1) as pool:

        def kill() -> None:
            """Wait until a decoder asks for the clip, and kill its actor instead of an answer."""
            for _ in range(2):  # with another clip in its chunk, and alone
                connection, (_, port) = server.accept()
                open_ones.enter_context(connection)  # if it were closed, the decoder would try again
                actors = machines.actors(0) + machines.actors(1)
                os.kill(next(pid for pid in actors if has(port, pid)), signal.SIGKILL)

        killing = pool.submit(kill)
        deadly = Clip("deadly.mp4", f"http://127.0.0.1:{server.getsockname()[1]}/deadly.mp4", "x")
        report = extract([deadly, *clips, absent], tmp_path, on(machines, TINY))
        killing.result()
    assert (report.done, report.failed) == (len(clips), 2)
    failures = [("absent.mp4", "missing"), ("deadly.mp4", "decoder-died")]
    assert [(failure.clip_id, failure.reason) for failure in report.failures] == failures
    for stream in ("rgb", "flow"):
        assert [(failure.clip_id, failure.reason) for failure in Store(tmp_path).failures(stream)] == failures
        assert set(Store(tmp_path).done(stream)) == {clip.id for clip in clips}


def node(name: str, cpus: float, gpus: float = 0, alive: bool = True) -> dict[str, object]:
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus, "GPU": gpus, "memory": 1e9}}


def test_each_gpu_or_else_each_machine_gets_an_actor() -> None:
    nodes = [node("a", 9, 2), node("b", 4), node("c", 8, 1, alive=False), node("d", 0)]
    assert find_posts("auto", nodes) == find_posts("cuda", nodes) == [Post("a", 4, 1), Post("a", 4, 1)]
    assert find_posts("cpu", nodes) == [Post("a", 9, 0), Post("b", 4, 0)]
    assert find_posts("auto", nodes[1:]) == [Post("b", 4, 0)]
    for device, message in (("cuda", "no GPU"), ("cuda:1", "cuda:1")):
        with pytest.raises(UserError, match=message):
            find_posts(device, nodes[1:])
    with pytest.raises(MachineError, match="no machine with cores"):
        find_posts("auto", nodes[3:])


def test_no_room_for_an_actor_is_one_line_after_a_while(
    machines: TwoMachines, clips: list[Clip], tmp_path: Path
) -> None:
    ray.init(machines.address, log_to_driver=False, logging_level="error")
    try:
        others = [ray.remote(Failure).options(num_cpus=1).remote(*"abcd", 0, 0) for _ in range(2)]
        ray.wait([other.__ray_ready__.remote() for other in others], num_returns=2)
        tally = Tally(Plan(lambda: iter([])), 0.0)
        with pytest.raises(MachineError, match=r"no machine has had room for an actor \(1 CPUs\)"):
            run_cluster(iter([]), tmp_path, TINY, None, tally, lambda _: None, patience_seconds=1.0)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


SCRIPT = """
import sys
from pathlib import Path
from amfir.extract.clips import Clip
from amfir.extract.config import ExtractConfig
from amfir.extract.job import extract

clips = [Clip(path.name, path, "x") for path in sorted(Path(sys.argv[1]).iterdir())]
config = ExtractConfig(frames=3, views=8, size=32, workers=1, device="cpu", engine="ray", address=sys.argv[3])
try:
    extract(clips, Path(sys.argv[2]), config, lambda progress: print(progress.done, flush=True))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_an_interrupted_job_keeps_what_was_finished_and_ends_its_actors(
    machines: TwoMachines, clips: list[Clip], tmp_path: Path
) -> None:
    folder, cache = Path(clips[0].path).parent, tmp_path / "cache"
    command = [sys.executable, "-c", SCRIPT, str(folder), str(cache), machines.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        next(line for line in job.stdout if int(line) >= 4)
        job.send_signal(signal.SIGINT)
        *progress, last = job.communicate(timeout=60)[0].split()
    assert last == "interrupted"
    assert all(count.isdecimal() for count in progress)  # nothing of Ray's own on the standard output
    for stream in ("rgb", "flow"):
        assert 4 <= len(Store(cache).done(stream)) < len(clips)
    for _ in range(100):
        if not machines.actors(0) + machines.actors(1):
            break
        time.sleep(0.1)
    assert machines.actors(0) + machines.actors(1) == []


def test_an_actor_killed_and_a_machine_lost_leave_no_trace_in_the_cache(
    machines: TwoMachines, clips: list[Clip], tmp_path: Path
) -> None:
    extract(clips, tmp_path / "local", LOCAL)
    lost: list[str] = []

    def disturb(progress: Progress) -> None:
        if progress.done >= 1 and not lost:
            lost.append("actor")
            for pid in machines.actors(0):
                os.kill(pid, signal.SIGKILL)
        elif progress.done >= 9 and len(lost) == 1:
            lost.append("machine")
            machines.lose(1)

    report = extract(clips, tmp_path / "cluster", on(machines, LOCAL), disturb)
    assert lost == ["actor", "machine"]
    assert (report.done, report.failed, report.failures) == (len(clips), 0, [])
    assert_same_rows(tmp_path / "cluster", tmp_path / "local")


def test_of_a_lost_chunk_only_what_is_not_in_the_cache_is_left(clips: list[Clip], tmp_path: Path) -> None:
    extract(clips[:1], tmp_path, TINY)
    extract(clips[1:2], tmp_path, replace(TINY, streams=("rgb",)))
    both = ("rgb", "flow")
    tasks = [Task(clips[0], both), Task(clips[1], both, standing=True), Task(clips[2], both), Task(clips[0], ("rgb",))]
    left = cluster_chunks.unwritten(cluster_chunks.Chunk(tasks, suspect=True, deaths=1), tmp_path)
    assert left.tasks == [Task(clips[1], ("flow",), standing=True), Task(clips[2], both)]
    assert (left.suspect, left.deaths) == (True, 1)


def test_only_a_clip_that_was_alone_with_its_actor_answers_for_the_loss(clips: list[Clip]) -> None:
    tasks = [Task(clip, ("rgb",)) for clip in clips[:3]]
    first, second = cluster_chunks.lost(cluster_chunks.Chunk(tasks))
    assert (first.tasks, second.tasks) == (tasks[:1], tasks[1:])
    assert [chunk.deaths for chunk in (first, second, *cluster_chunks.lost(second))] == [0, 0, 0, 0]
    (again,) = cluster_chunks.lost(first)
    assert (again.deaths, again.deadly, cluster_chunks.lost(again)[0].deadly) == (1, False, True)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:{port}", "no Ray cluster answers"),
        ("nowhere.invalid:6379", "no Ray cluster answers"),
        ("127.0.0.1:99999999", "no Ray cluster answers"),
        ("ray://127.0.0.1:10001", "no Ray address"),
        ("here", "no Ray address"),
    ],
)
def test_an_address_that_does_not_answer_is_one_line(
    address: str, message: str, clips: list[Clip], tmp_path: Path
) -> None:
    config = replace(TINY, engine="ray", address=address.format(port=closed_port()))
    with pytest.raises(UserError, match=message) as caught:
        extract(clips, tmp_path / "cache", config)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_another_program_behind_the_address_is_told_from_ray(tmp_path: Path, clips: list[Clip]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        answered = pool.submit(answer)
        config = replace(TINY, engine="ray", address=f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError, match="something else than Ray"):
            extract(clips, tmp_path / "cache", config)
        answered.result()


def test_without_ray_the_extra_is_named(clips: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'amfir\[ray\]'"):
        extract(clips, tmp_path / "cache", replace(TINY, engine="ray"))


@pytest.fixture
def actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterActor]:
    """An actor in this process: Ray does no more than call its methods on threads."""
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "__file__", getattr(main, "__file__", ""), raising=False)  # the actor removes it
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "token.tmp").touch()
    actor = ClusterActor(tmp_path / "cache", TINY, 1, "token.tmp")
    yield actor
    actor.stop()


def test_a_chunk_returns_when_it_is_on_disk(actor: ClusterActor, clips: list[Clip], tmp_path: Path) -> None:
    assert list(actor.start()) == ["rgb", "flow"]
    absent = Clip("absent.mp4", tmp_path / "absent.mp4", "x")
    chunks = [clips[:3], [absent, *clips[3:8]], clips[8:9]]

    def run(chunk: list[Clip]) -> list[str]:
        failures = actor.extract([Task(clip, ("rgb", "flow")) for clip in chunk])
        failed = [failure.clip_id for failure in failures]
        for stream in ("rgb", "flow"):
            assert {clip.id for clip in chunk} - set(failed) <= set(Store(tmp_path / "cache").done(stream))
        return failed

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, chunks)) == [[], ["absent.mp4", "absent.mp4"], []]
    extract(clips[:9], tmp_path / "local", TINY)
    assert_same_rows(tmp_path / "cache", tmp_path / "local")


def test_a_cache_that_cannot_be_written_ends_all_chunks(actor: ClusterActor, clips: list[Clip], tmp_path: Path) -> None:
    actor.start()
    segments = tmp_path / "cache" / "rgb" / "segments"
    segments.rmdir()
    segments.touch()
    for chunk in (clips[:2], clips[2:3]):
        with pytest.raises(UserError, match="cannot write the cache"):
            actor.extract([Task(clip, ("rgb",)) for clip in chunk])


def test_a_cache_that_is_not_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="all machines share"):
        ClusterActor(tmp_path, TINY, 1, "token.tmp").start()
