"""Killed processes, full disks and places that cannot be written: what was whole stays whole."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from amfir.cache import MachineError, Store, StreamWriter, UserError, discard_damaged, pack, verify
from amfir.cache.files import whole_file

from .cacherows import SPEC, expected, make_row, read, segment_files, start_child, write_rows

# Runs `job(root)` in a fork for each folder args[0]/1, args[0]/2, ... and kills it before its 1st, 2nd, ... step on the
# disk, as the interpreter reports them, until one job ends by itself; prints how many were killed.
KILL_BEFORE_EACH_STEP = """
import itertools, os, shutil, signal
steps = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "shutil.rmtree"}
def killed(job, root, number):
    left = iter(range(number - 1))
    def hook(event, _):
        if event in steps and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    job(root)
    os._exit(0)
def kill_before_each_step(job):
    for number in itertools.count(1):
        root = Path(args[0]) / str(number)
        if len(args) > 1:
            shutil.copytree(args[1], root)
        child = os.fork()
        if not child:
            killed(job, root, number)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            print(number - 1)
            return
"""


def run_child(code: str, *arguments: object) -> str:
    child = start_child(code, *arguments)
    output, errors = child.communicate()
    assert (errors, child.returncode) == ("", 0)
    return output.strip()


def test_a_writer_killed_before_any_step_leaves_whole_segments(tmp_path: Path) -> None:
    code = KILL_BEFORE_EACH_STEP + (
        "def job(root):\n"
        "    with StreamWriter(root, SPEC, max_rows=2) as writer:\n"
        "        for number in range(4): writer.add(make_row(number))\n"
        "kill_before_each_step(job)\n"
    )
    num_killed = int(run_child(code, tmp_path))
    assert num_killed > 20
    whole = set()
    for number in range(1, num_killed + 2):
        root = tmp_path / str(number)
        if (root / "cache.json").exists() and "rgb" in Store(root).streams():
            clips = read(root)
            whole.add(len(clips))
            assert clips == expected(range(len(clips)))
            assert verify(root) == []
            assert discard_damaged(root, "rgb") == []
        for debris in root.rglob("*.tmp"):
            os.utime(debris, (0, 0))
        write_rows(root, range(4))
        assert read(root) == expected(range(4))
        assert verify(root) == []
        assert not list(root.rglob("*.tmp"))
    assert whole == {0, 2, 4}


def test_a_pack_killed_before_any_step_leaves_everything_readable(tmp_path: Path) -> None:
    write_rows(tmp_path / "source", range(3))
    pack(tmp_path / "source")
    write_rows(tmp_path / "source", range(2, 5), take=0)
    write_rows(tmp_path / "source", range(5, 7))
    code = KILL_BEFORE_EACH_STEP + "from amfir.cache import pack\nkill_before_each_step(pack)\n"
    num_killed = int(run_child(code, tmp_path, tmp_path / "source"))
    assert num_killed > 20
    for number in range(1, num_killed + 2):
        root = tmp_path / str(number)
        assert read(root) == expected(range(7))
        assert verify(root) == []
        assert discard_damaged(root, "rgb") == []
        pack(root)
        assert read(root) == expected(range(7))
        assert segment_files(root) == []
        shutil.rmtree(root)


def test_a_merge_killed_before_any_step_leaves_everything_readable(tmp_path: Path) -> None:
    write_rows(tmp_path / "source", [8, 9], take=0)
    code = KILL_BEFORE_EACH_STEP + (
        "import amfir.cache.index, amfir.cache.writer\n"
        "sys.modules['amfir.cache.index']._MISSING_FILES = 1\n"
        "sys.modules['amfir.cache.writer']._FEW_SEGMENTS = 2\n"
        "def job(root):\n"
        "    with StreamWriter(root, SPEC, max_rows=2) as writer:\n"
        "        writer.add_failure(make_failure(10))\n"
        "        for number in range(3): writer.add(make_row(number))\n"
        "kill_before_each_step(job)\n"
    )
    num_killed = int(run_child(code, tmp_path, tmp_path / "source"))
    assert num_killed > 40
    states = set()
    for number in range(1, num_killed + 2):
        root = tmp_path / str(number)
        store = Store(root)
        clips = read(root)
        assert clips == sorted(expected([8, 9]) + expected(range(len(clips) - 2)))
        assert len(store.index("rgb").done) == len(clips)
        assert len(store.index("rgb").failed) == len(store.failures("rgb")) == (len(clips) > 2)
        assert verify(root) == []
        assert discard_damaged(root, "rgb") == []
        states.add((len(clips), len(segment_files(root)), (root / "rgb" / "index.bin").exists()))
        for debris in root.rglob("*.tmp"):
            os.utime(debris, (0, 0))
        write_rows(root, range(8))
        assert read(root) == expected(range(10))
        assert not list(root.rglob("*.tmp"))
        shutil.rmtree(root)
    # None, one or all of the rows; all in two segments, in these and the merged one, in this and one, and in it alone.
    before = {(2, 1, False), (3, 2, False), (5, 3, False)}
    assert states == before | {(5, 4, False), (5, 3, False), (5, 2, False), (5, 2, True)}


def test_writers_killed_at_random_moments_leave_a_readable_cache(tmp_path: Path) -> None:
    code = (
        "with StreamWriter(Path(args[0]), SPEC, max_rows=2) as writer:\n"
        "    for number in range(100000): writer.add(make_row(number))\n"
    )
    rng = random.Random(0)
    for attempt in range(12):
        root = tmp_path / str(attempt)
        child = start_child(code, root)
        while not segment_files(root):
            assert child.poll() is None
        time.sleep(rng.uniform(0, 0.05))
        child.kill()
        child.communicate()
        clips = read(root)
        assert clips == expected(range(len(clips)))
        assert clips
        assert verify(root) == []


def test_a_file_that_may_not_grow_is_one_clear_error_and_damages_nothing(tmp_path: Path) -> None:
    write_rows(tmp_path, range(3))
    code = (
        "import resource, signal\n"
        "from amfir.cache import MachineError, pack\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "writer = StreamWriter(Path(args[0]), SPEC)\n"
        "writer.add(make_row(9))\n"
        "for limit in range(0, 6000, 500):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    for step in (writer.flush, lambda: pack(Path(args[0]))):\n"
        "        try: step()\n"
        "        except MachineError as error: print(error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "writer.flush()\n"
    )
    lines = run_child(code, tmp_path).splitlines()
    assert len(lines) == 24
    assert all(line.startswith("cannot write the cache (File too large); in ") for line in lines)
    assert not list(tmp_path.rglob("*.tmp"))
    assert read(tmp_path) == expected([0, 1, 2, 9])
    assert verify(tmp_path) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user cannot mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def write_one_by_one(root: Path, numbers: Iterable[int]) -> None:
    with StreamWriter(root, SPEC, max_rows=1) as writer:
        for number in numbers:
            writer.add(make_row(number))


def test_a_full_disk_is_one_clear_error_and_damages_nothing(small_disk: Path) -> None:
    with StreamWriter(small_disk, SPEC) as writer:
        writer.add(make_row(0))
    with pytest.raises(MachineError) as error:
        write_one_by_one(small_disk, range(1, 1000))
    whole = len(segment_files(small_disk))
    assert str(error.value).startswith("cannot write the cache (No space left on device); in ")
    assert "make room" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(MachineError, match="No space left on device"):
        pack(small_disk)
    assert not list(small_disk.rglob("*.tmp"))
    assert whole > 3
    assert read(small_disk) == expected(range(whole))
    assert verify(small_disk) == []
    segment_files(small_disk)[0].unlink()
    assert len(discard_damaged(small_disk, "rgb")) == 1
    write_rows(small_disk, [0])
    assert read(small_disk) == expected(range(whole))


def test_a_full_disk_keeps_no_half_made_stream(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(256 * 1024))
    with pytest.raises(MachineError, match="No space left on device"):
        StreamWriter(small_disk / "cache", SPEC)
    (small_disk / "ballast").unlink()
    write_rows(small_disk / "cache", [0])
    assert read(small_disk / "cache") == expected([0])


@pytest.mark.parametrize("place", ["file", "file/cache", "dir/cache.json", "rgb", "segments"])
def test_a_file_in_place_of_a_directory_is_one_clear_error(tmp_path: Path, place: str) -> None:
    root = tmp_path / {"dir/cache.json": "dir", "rgb": "dir", "segments": "dir"}.get(place, place)
    if place in ("file", "file/cache"):
        (tmp_path / "file").touch()
    elif place == "dir/cache.json":
        (root / "cache.json").mkdir(parents=True)
    elif place == "rgb":
        root.mkdir()
        (root / "rgb").touch()
    else:
        StreamWriter(root, SPEC).close()
        (root / "rgb" / "segments").rmdir()
        (root / "rgb" / "segments").touch()
    with pytest.raises(UserError) as error:
        StreamWriter(root, SPEC)
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cache_removed_under_a_writer_is_one_clear_error(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path / "cache", SPEC)
    writer.add(make_row(0))
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=r"cannot write the cache \(No such file or directory\); in .*segments"):
        writer.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_one_clear_error(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    (tmp_path / "rgb" / "segments").chmod(0o555)
    with pytest.raises(UserError, match="Permission denied"):
        write_rows(tmp_path, [1])
    assert read(tmp_path) == expected([0])


def test_a_machine_error_is_not_followed_by_another_attempt(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path, SPEC)
    writer.add(make_row(0))
    with pytest.raises(MachineError, match="out of memory"), writer:
        raise MachineError("out of memory")
    assert segment_files(tmp_path) == []


def test_a_result_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def interrupted() -> None:
        with whole_file(path) as temporary:
            temporary.write_text("ne")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
    with whole_file(path) as temporary:
        temporary.write_text("new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["new"]
