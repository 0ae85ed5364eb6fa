"""Packing a stream into one memory-mapped file."""

import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from amfir.cache import MachineError, Store, StreamSpec, StreamWriter, UserError, pack, verify
from amfir.cache.files import list_files
from amfir.cache.sidecar import VanishedError
from amfir.cache.view import settled

from .cacherows import SPEC, contents, expected, make_failure, make_row, read, segment_files, start_child, write_rows


def packed_files(root: Path) -> list[Path]:
    return list_files(root / "rgb" / "packed")


def test_a_packed_stream_reads_as_before_from_a_memory_map(tmp_path: Path) -> None:
    write_rows(tmp_path, [5, 1, 3], take=1)
    write_rows(tmp_path, [0, 1, 2], take=2)
    with StreamWriter(tmp_path, SPEC) as writer:
        writer.add_failure(make_failure(0))
        writer.add_failure(make_failure(9))
    before, done, failures = read(tmp_path), Store(tmp_path).done("rgb"), Store(tmp_path).failures("rgb")
    pack(tmp_path)
    assert segment_files(tmp_path) == []
    stream = Store(tmp_path).read("rgb")
    assert isinstance(stream.features, np.memmap)
    assert not stream.features.flags.writeable
    assert contents(stream) == before == sorted(expected([5, 1, 3], take=1) + expected([0, 2], take=2))
    assert Store(tmp_path).done("rgb") == done
    assert Store(tmp_path).failures("rgb") == failures == [make_failure(9)]
    stream.check()
    assert verify(tmp_path) == []
    info = Store(tmp_path).info()["rgb"]
    assert (info["clips"], info["failures"], info["segments"]) == (5, 1, 0)
    assert (info["duplicates"], info["packed"]) == (0, True)


def test_packed_features_are_one_contiguous_aligned_dataset_in_order_of_clip_ids(tmp_path: Path) -> None:
    numbers = list(np.random.default_rng(0).permutation(150))
    write_rows(tmp_path, numbers[:70])
    write_rows(tmp_path, numbers[70:])
    pack(tmp_path)
    (path,) = packed_files(tmp_path)
    with h5py.File(path) as file:
        features = file["rows/features"]
        ids = [make_row(number).clip_id for number in range(150)]
        rows = {make_row(number).clip_id: make_row(number).features for number in range(150)}
        assert features.chunks is None
        assert features.id.get_offset() % 4096 == 0
        assert np.array_equal(features[()], np.stack([rows[clip_id] for clip_id in sorted(ids)]))


def test_later_segments_join_and_a_second_pack_merges_them(tmp_path: Path) -> None:
    write_rows(tmp_path, [1, 2], take=1)
    pack(tmp_path)
    write_rows(tmp_path, [0, 2, 3], take=2)
    merged = sorted(expected([1, 2], take=1) + expected([0, 3], take=2))
    stream = Store(tmp_path).read("rgb")
    assert contents(stream) == merged
    assert not isinstance(stream.features, np.memmap)
    pack(tmp_path)
    assert len(packed_files(tmp_path)) == 1
    stream = Store(tmp_path).read("rgb")
    assert contents(stream) == merged
    assert isinstance(stream.features, np.memmap)


def test_later_segments_that_bring_only_duplicates_or_failures_leave_the_map(tmp_path: Path) -> None:
    write_rows(tmp_path, [1, 2], take=1)
    pack(tmp_path)
    write_rows(tmp_path, [2], take=2)
    assert isinstance(Store(tmp_path).read("rgb").features, np.memmap)
    assert read(tmp_path) == expected([1, 2], take=1)


def test_packing_a_packed_stream_again_changes_nothing(tmp_path: Path) -> None:
    write_rows(tmp_path, range(3))
    pack(tmp_path)
    before = packed_files(tmp_path)
    pack(tmp_path)
    assert packed_files(tmp_path) == before


def test_every_stream_is_packed_and_empty_ones_too(tmp_path: Path) -> None:
    write_rows(tmp_path, range(3))
    StreamWriter(tmp_path, replace(SPEC, modality="empty")).close()
    with StreamWriter(tmp_path, replace(SPEC, modality="failed")) as writer:
        writer.add_failure(make_failure(0))
    pack(tmp_path)
    store = Store(tmp_path)
    assert [info["packed"] for info in store.info().values()] == [False, True, True]
    assert store.read("failed").features.shape == (0, 1, 2, 3)
    assert store.failures("failed") == [make_failure(0)]
    assert verify(tmp_path) == []


def test_an_open_reader_keeps_its_view(tmp_path: Path) -> None:
    write_rows(tmp_path, range(3))
    pack(tmp_path)
    stream = Store(tmp_path).read("rgb")
    write_rows(tmp_path, range(3, 6))
    pack(tmp_path)
    assert contents(stream) == expected(range(3))
    assert read(tmp_path) == expected(range(6))


def test_leftovers_of_an_interrupted_pack_are_merged(tmp_path: Path) -> None:
    path = write_rows(tmp_path, range(3))
    saved = [(file, file.read_bytes(), file.stat().st_mtime_ns) for file in (path.with_suffix(".json"), path)]
    pack(tmp_path)
    for file, data, mtime_ns in saved:
        file.write_bytes(data)
        os.utime(file, ns=(mtime_ns, mtime_ns))
    assert isinstance(Store(tmp_path).read("rgb").features, np.memmap)
    assert read(tmp_path) == expected(range(3))
    assert Store(tmp_path).info()["rgb"]["duplicates"] == 3
    pack(tmp_path)
    assert (segment_files(tmp_path), len(packed_files(tmp_path))) == ([], 1)
    assert read(tmp_path) == expected(range(3))


def test_two_packs_lose_nothing_when_each_merged_what_the_other_did_not(tmp_path: Path) -> None:
    first = write_rows(tmp_path, range(3))
    aside = tmp_path / "aside"
    aside.mkdir()
    for file in (first, first.with_suffix(".json")):
        file.rename(aside / file.name)
    write_rows(tmp_path, range(2, 6))
    pack(tmp_path)
    other = packed_files(tmp_path)[0]
    for file in (other, other.with_suffix(".json")):
        file.rename(aside / file.name)
    for name in (first.with_suffix(".json").name, first.name):
        (aside / name).rename(first.parent / name)
    pack(tmp_path)
    for name in (other.with_suffix(".json").name, other.name):
        (aside / name).rename(other.parent / name)
    assert len(packed_files(tmp_path)) == 2
    assert read(tmp_path) == expected(range(6))
    pack(tmp_path)
    assert read(tmp_path) == expected(range(6))
    assert len(packed_files(tmp_path)) == 1


def test_packs_writers_and_readers_run_at_once(tmp_path: Path) -> None:
    StreamWriter(tmp_path, SPEC).close()
    write = (
        "with StreamWriter(Path(args[0]), SPEC, max_rows=3) as writer:\n"
        "    for number in range(150): writer.add(make_row(number))\n"
    )
    packing = "from amfir.cache import pack\nfor _ in range(40): pack(Path(args[0]))\n"
    children = [start_child(code, tmp_path) for code in (write, packing, packing)]
    last = 0
    while any(child.poll() is None for child in children):
        stream = Store(tmp_path).read("rgb")
        stream.check()
        assert contents(stream) == expected(range(len(stream.clip_ids)))
        assert len(stream.clip_ids) >= last
        last = len(stream.clip_ids)
    assert [child.communicate()[1] for child in children] == ["", "", ""]
    pack(tmp_path)
    assert read(tmp_path) == expected(range(150))
    assert verify(tmp_path) == []


def test_a_pack_between_any_two_steps_of_a_reader_is_not_noticed(tmp_path: Path) -> None:
    code = (
        "import itertools\n"
        "from amfir.cache import pack\n"
        "steps = None\n"
        "def hook(event, _):\n"
        "    global steps\n"
        "    if steps is not None and event in ('open', 'os.listdir'):\n"
        "        steps -= 1\n"
        "        if steps == 0:\n"
        "            steps = None\n"
        "            pack(root)\n"
        "sys.addaudithook(hook)\n"
        "for number in itertools.count(1):\n"
        "    root = Path(args[0]) / str(number)\n"
        "    write_rows(root, range(3))\n"
        "    pack(root)\n"
        "    write_rows(root, range(3, 6))\n"
        "    steps = number\n"
        "    assert read(root) == expected(range(6)), number\n"
        "    if steps: break\n"
        "print(number)\n"
    )
    output, errors = start_child(code, tmp_path).communicate()
    assert errors == ""
    assert int(output) > 5


def test_a_file_that_goes_while_hdf5_opens_it_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = write_rows(tmp_path, [0]), write_rows(tmp_path, [1])

    def open_too_late(path: Path, *args: object, **kwargs: object) -> None:
        monkeypatch.undo()
        pack(tmp_path)
        assert not first.exists()
        raise OSError("Unable to synchronously open file (can't retrieve stat info for file)")  # HDF5's words

    monkeypatch.setattr("h5py.File", open_too_late)
    assert read(tmp_path) == expected([0, 1])


def test_a_damaged_segment_is_not_packed(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    path = write_rows(tmp_path, [1])
    data = path.read_bytes()
    features = make_row(1).features.tobytes()
    stat = path.stat()
    path.write_bytes(data.replace(features, bytes(len(features))))
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match="does not match its checksum"):
        pack(tmp_path)
    assert len(segment_files(tmp_path)) == 2
    assert os.listdir(tmp_path / "rgb" / "packed") == []


def test_packing_needs_little_memory(tmp_path: Path) -> None:
    spec = StreamSpec("rgb", frames=8, views=4, dim=16384, settings={})  # 1 MiB a row
    code = (
        "import resource\n"
        "from amfir.cache import pack\n"
        "spec = StreamSpec('rgb', frames=8, views=4, dim=16384, settings={})\n"
        "with StreamWriter(Path(args[0]), spec, max_rows=8) as writer:\n"
        "    for number in range(256):\n"
        "        features = np.full((4, 8, 16384), number, np.float16)\n"
        "        writer.add(Row(str(number), '', features, np.zeros((4, 8)), 0, 0))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "pack(Path(args[0]))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    output, errors = start_child(code, tmp_path).communicate()
    assert errors == ""
    assert int(output) < 100  # MiB, of 256
    assert Store(tmp_path).read("rgb").features.shape == (256, spec.views, spec.frames, spec.dim)


def test_reading_gives_up_when_files_never_stop_vanishing(tmp_path: Path) -> None:
    def vanish() -> None:
        raise VanishedError(tmp_path)

    with pytest.raises(MachineError, match="vanish again and again"):
        settled(tmp_path, vanish)
