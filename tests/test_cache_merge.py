"""A writer merges its small segments; readers notice nothing."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from amfir.cache import Store, StreamWriter, UserError, discard_damaged, pack, verify
from amfir.cache.files import list_files
from amfir.cache.folder import stream_files
from amfir.cache.merge import merge_segments
from amfir.cache.segment import read_index

from .cacherows import SPEC, expected, make_failure, make_row, read, segment_files, start_child, write_rows


def sizes(root: Path) -> list[int]:
    """Return the number of rows and failures of each segment, in the order of their names."""
    indices = [read_index(path) for path in segment_files(root)]
    return [len(index.clip_ids) + len(index.failures) for index in indices]


def test_small_segments_become_one_when_the_writer_closes(tmp_path: Path) -> None:
    with StreamWriter(tmp_path, SPEC, max_rows=3) as writer:
        for number in range(30):
            writer.add_failure(make_failure(number)) if number % 5 == 4 else writer.add(make_row(number))
        assert sizes(tmp_path) == [3] * 10
        before = read(tmp_path), Store(tmp_path).failures("rgb"), Store(tmp_path).done("rgb")
    assert sizes(tmp_path) == [30]
    assert (read(tmp_path), Store(tmp_path).failures("rgb"), Store(tmp_path).done("rgb")) == before
    assert read(tmp_path) == expected(number for number in range(30) if number % 5 != 4)
    assert Store(tmp_path).info()["rgb"]["duplicates"] == 0
    assert len(list((tmp_path / "rgb" / "segments").iterdir())) == 2
    assert verify(tmp_path) == []


def test_few_segments_and_those_of_others_are_left_alone(tmp_path: Path) -> None:
    for number in range(10):
        write_rows(tmp_path, [number])
    with StreamWriter(tmp_path, SPEC, max_rows=1) as writer:
        for number in range(10, 17):
            writer.add(make_row(number))
    assert sizes(tmp_path) == [1] * 17
    assert read(tmp_path) == expected(range(17))


def test_large_segments_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amfir.cache.writer._SMALL_ROWS", 3)
    writer = StreamWriter(tmp_path, SPEC)
    numbers = iter(range(100))
    for count in (2, 3, 1, 1, 2, 4, 2, 1, 1, 2):
        for _ in range(count):
            writer.add(make_row(next(numbers)))
        writer.flush()
    writer.close()
    assert sorted(sizes(tmp_path)) == [3, 4, 12]
    assert read(tmp_path) == expected(range(19))


@pytest.mark.parametrize("limit", [("_MERGED_ROWS", 5), ("_MERGED_BYTES", 12 * 5 + 11)])
def test_merged_segments_do_not_get_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: tuple[str, int]
) -> None:
    monkeypatch.setattr(f"amfir.cache.merge.{limit[0]}", limit[1])
    with StreamWriter(tmp_path, SPEC, max_rows=2) as writer:
        for number in range(18):
            writer.add(make_row(number))
    assert sorted(sizes(tmp_path)) == [2, 4, 4, 4, 4]  # of rows with 1 x 2 x 3 float16 each
    assert read(tmp_path) == expected(range(18))


def test_a_long_job_merges_now_and_then_and_what_is_merged_only_once(tmp_path: Path) -> None:
    with StreamWriter(tmp_path, SPEC, max_rows=1) as writer:
        for number in range(130):
            writer.add(make_row(number))
            assert number % 20 or read_count(tmp_path) == number + 1
        assert sizes(tmp_path) == [64, 64, 1, 1]
    assert sizes(tmp_path) == [64, 64, 1, 1]
    assert read(tmp_path) == expected(range(130))


def read_count(root: Path) -> int:
    return len(Store(root).index("rgb").done)


def test_everything_flushed_is_there_for_another_process(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path, SPEC)
    for number in range(20):
        writer.add(make_row(number))
        writer.flush()
        code = "print(len(Store(Path(args[0])).index('rgb').done))"
        if number % 10 == 9:
            assert start_child(code, tmp_path).communicate() == (f"{number + 1}\n", "")


def test_the_first_row_and_the_last_failure_of_a_clip_are_kept(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path, SPEC)
    for take in range(8):
        writer.add(make_row(1, take))
        writer.add_failure(make_failure(1, "beaten"))
        writer.add_failure(make_failure(2, f"take {take}"))
        writer.flush()
    writer.close()
    assert sizes(tmp_path) == [2]
    assert read(tmp_path) == expected([1], take=0)
    assert Store(tmp_path).failures("rgb") == [make_failure(2, "take 7")]


def test_segments_that_were_packed_meanwhile_are_left_out(tmp_path: Path) -> None:
    with StreamWriter(tmp_path, SPEC, max_rows=1) as writer:
        for number in range(10):
            writer.add(make_row(number))
            if number == 4:
                pack(tmp_path)
    assert read(tmp_path) == expected(range(10))
    assert len(list_files(tmp_path / "rgb" / "packed")) == 1
    assert not list(tmp_path.rglob("*.tmp"))


def test_damaged_segments_are_not_merged(tmp_path: Path) -> None:
    with StreamWriter(tmp_path, SPEC, max_rows=1) as writer:
        for number in range(10):
            writer.add(make_row(number))
        path = segment_files(tmp_path)[3]
        data, stat = path.read_bytes(), path.stat()
        values = make_row(3).features.tobytes()
        path.write_bytes(data.replace(values, bytes(len(values))))
        os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    assert len(segment_files(tmp_path)) == 10
    assert [damage.path for damage in verify(tmp_path)] == [path]
    assert discard_damaged(tmp_path, "rgb") == [path.name]
    assert read(tmp_path) == expected(number for number in range(10) if number != 3)


def test_the_other_segments_are_merged_although_one_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amfir.cache.merge._MERGED_ROWS", 2)
    with StreamWriter(tmp_path, SPEC, max_rows=1) as writer:
        for number in range(8):
            writer.add(make_row(number))
        damaged = segment_files(tmp_path)[3]
        os.truncate(damaged, 10)
    discard_damaged(tmp_path, "rgb")
    assert sorted(sizes(tmp_path)) == [1, 2, 2, 2]


def test_a_disk_without_room_for_merging_leaves_the_small_segments(tmp_path: Path) -> None:
    code = (
        "import resource, signal\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "with StreamWriter(Path(args[0]), SPEC, max_rows=4) as writer:\n"
        "    for number in range(40): writer.add(make_row(number))\n"
        "    size = max(path.stat().st_size for path in segment_files(Path(args[0])))\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
    )
    assert start_child(code, tmp_path).communicate() == ("", "")
    assert sizes(tmp_path) == [4] * 10
    assert not list(tmp_path.rglob("*.tmp"))
    assert read(tmp_path) == expected(range(40))


def test_merging_into_a_folder_that_is_gone_is_one_clear_error(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path, [number]) for number in range(2)]
    segments = [(path, 1) for path in paths]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write the cache \(Not a directory\); in .*file"):
        merge_segments(segments, SPEC, lambda: tmp_path / "file" / "x.h5")
    assert read(tmp_path) == expected(range(2))


def test_a_list_made_while_segments_are_merged_lacks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that changes while it is listed may show neither the new file nor the old ones."""
    paths = [write_rows(tmp_path, [number]) for number in range(3)]
    merged = paths[0].with_name("9.h5")
    calls = []

    def list_during_merge(folder: Path) -> list[Path]:
        calls.append(folder)
        if len(calls) == 1:
            merge_segments([(path, 1) for path in paths], SPEC, lambda: merged)
            return [paths[0]]
        return list_files(folder)

    monkeypatch.setattr("amfir.cache.folder.list_files", list_during_merge)
    assert stream_files(tmp_path, "rgb") == [paths[0], merged]
    assert read(tmp_path) == expected(range(3))


def test_a_merge_between_any_two_steps_of_a_reader_is_not_noticed(tmp_path: Path) -> None:
    code = (
        "import itertools, shutil\n"
        "from amfir.cache import discard_damaged, verify\n"
        "from amfir.cache.merge import merge_segments\n"
        "steps = None\n"
        "def hook(event, _):\n"
        "    global steps\n"
        "    if steps is not None and event in ('open', 'os.listdir'):\n"
        "        steps -= 1\n"
        "        if steps == 0:\n"
        "            steps = None\n"
        "            merge_segments([(path, 1) for path in paths], SPEC, lambda: paths[-1].with_name('9.h5'))\n"
        "sys.addaudithook(hook)\n"
        "def look(kind):\n"
        "    if kind == 'read': assert read(root) == expected(range(5)), number\n"
        "    if kind == 'index': assert len(Store(root).index('rgb').done) == 5, number\n"
        "    if kind == 'verify': assert verify(root) == [] and discard_damaged(root, 'rgb') == [], number\n"
        "for kind in ('read', 'index', 'verify'):\n"
        "    for number in itertools.count(1):\n"
        "        root = Path(args[0]) / kind / str(number)\n"
        "        shutil.copytree(args[1], root)\n"
        "        paths = segment_files(root)[1:]\n"
        "        steps = number\n"
        "        look(kind)\n"
        "        if steps: break\n"
        "        assert read(root) == expected(range(5))\n"
        "    print(number)\n"
    )
    source = tmp_path / "source"
    for numbers in ([0, 1], [2], [3], [4]):
        write_rows(source, numbers)
    output, errors = start_child(code, tmp_path, source).communicate()
    assert errors == ""
    assert all(int(number) > 8 for number in output.split())


def test_writers_that_merge_packs_and_readers_run_at_once(tmp_path: Path) -> None:
    StreamWriter(tmp_path, SPEC).close()
    write = (
        "for start in range(0, 60, 12):\n"
        "    with StreamWriter(Path(args[0]), SPEC, max_rows=1) as writer:\n"
        "        for number in range(start, start + 12): writer.add(make_row(number))\n"
    )
    packing = "from amfir.cache import pack\nfor _ in range(6): pack(Path(args[0]))\n"
    children = [start_child(code, tmp_path) for code in (write, packing)]
    last = 0
    while any(child.poll() is None for child in children):
        count = read_count(tmp_path)
        stream = Store(tmp_path).read("rgb")
        assert len(stream.clip_ids) >= count >= last
        last = len(stream.clip_ids)
        assert stream.clip_ids == sorted(make_row(number).clip_id for number in range(last))
    assert [child.communicate()[1] for child in children] == ["", ""]
    assert read(tmp_path) == expected(range(60))
    assert verify(tmp_path) == []


def test_merging_streams_with_tokens(tmp_path: Path) -> None:
    spec = replace(SPEC, tokens=2)
    with StreamWriter(tmp_path, spec, max_rows=1) as writer:
        for number in range(9):
            row = make_row(number)
            writer.add(replace(row, features=row.features[:, :, None].repeat(2, axis=2)))
    stream = Store(tmp_path).read("rgb")
    assert sizes(tmp_path) == [9]
    assert stream.features.shape == (9, 1, 2, 2, 3)
    rows = sorted((make_row(number) for number in range(9)), key=lambda row: row.clip_id)
    assert [features[:, :, 1].tobytes() for features in stream.features] == [row.features.tobytes() for row in rows]
