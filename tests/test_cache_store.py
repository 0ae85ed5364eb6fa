"""Writing and reading a cache, also at the same time."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amfir.cache import Failure, Row, Store, StreamSpec, StreamWriter, UserError, pack
from amfir.cache.files import new_name

from .cacherows import (
    SPEC,
    contents,
    expected,
    make_failure,
    make_row,
    read,
    segment_files,
    start_child,
    write_rows,
)

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=12) | st.sampled_from(
    ['a\nb "c" d', "caf\udce9.avi", "x\0y", "", "é/日本.mp4"]
)
int64 = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(any_text, any_text, int64, int64), unique_by=lambda row: row[0], max_size=5), st.data())
def test_any_ids_labels_and_numbers_come_back(rows: list[tuple[str, str, int, int]], data: st.DataObject) -> None:
    spec = StreamSpec("flow", frames=3, views=2, dim=5, settings={})
    num_rows = data.draw(st.integers(0, len(rows)))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # Every bit pattern of a float16 may appear, NaN payloads and infinities included.
        bits = np.random.default_rng(0).integers(0, 2**16, (len(rows), 2, 3, 5), np.uint16)
        times = np.random.default_rng(1).normal(size=(len(rows), 2, 3))
        with StreamWriter(root, spec) as writer:
            for number, (clip_id, label, size, mtime) in enumerate(rows[:num_rows]):
                writer.add(Row(clip_id, label, bits[number].view(np.float16), times[number], size, mtime))
            for clip_id, label, size, mtime in rows[num_rows:]:
                writer.add_failure(Failure(clip_id, label, label, clip_id, size, mtime))
        for _ in range(2):  # as segments, then packed
            store = Store(root)
            stream = store.read("flow")
            order = sorted(range(num_rows), key=lambda number: rows[number][0])
            assert stream.clip_ids == [rows[number][0] for number in order]
            assert stream.labels == [rows[number][1] for number in order]
            assert np.array_equal(stream.features.view(np.uint16), bits[order])
            assert np.array_equal(stream.times, times[order])
            assert store.done("flow") == {clip_id: (size, mtime) for clip_id, _, size, mtime in rows[:num_rows]}
            failures = [Failure(clip_id, label, label, clip_id, *source) for clip_id, label, *source in rows[num_rows:]]
            assert store.failures("flow") == sorted(failures, key=lambda failure: failure.clip_id)
            stream.check()
            pack(root)


def test_checksums_depend_on_every_field_and_on_where_texts_end() -> None:
    row, failure = make_row(1), make_failure(1)
    rows = [
        row,
        replace(row, clip_id=row.clip_id + row.label[:1], label=row.label[1:]),
        replace(row, features=row.features.reshape(2, 1, 3)),
        replace(row, features=-row.features),
        replace(row, times=-row.times),
        replace(row, source_size=2),
        replace(row, source_mtime_ns=2),
        replace(row, source_size=row.source_mtime_ns, source_mtime_ns=row.source_size),
    ]
    failures = [failure, replace(failure, reason="no", message="-frames" + failure.message)]
    checksums = [item.checksum() for item in rows] + [item.checksum() for item in failures]
    assert len(set(checksums)) == len(rows) + len(failures)


def test_features_have_the_written_types_and_shape(tmp_path: Path) -> None:
    write_rows(tmp_path, range(4))
    stream = Store(tmp_path).read("rgb")
    assert (stream.features.dtype.name, stream.features.shape) == ("float16", (4, 1, 2, 3))
    assert (stream.times.dtype.name, stream.times.shape) == ("float64", (4, 1, 2))
    assert (stream.name, stream.spec) == ("rgb", SPEC)


def test_a_clip_written_twice_is_read_from_the_first_segment(tmp_path: Path) -> None:
    write_rows(tmp_path, [1, 2], take=1)
    write_rows(tmp_path, [0, 2, 3], take=2)
    assert read(tmp_path) == sorted(expected([1, 2], take=1) + expected([0, 3], take=2))
    assert Store(tmp_path).info()["rgb"]["duplicates"] == 1


def test_a_clip_written_twice_in_one_segment_is_read_once(tmp_path: Path) -> None:
    with StreamWriter(tmp_path, SPEC) as writer:
        writer.add(make_row(0, take=1))
        writer.add(make_row(0, take=2))
    assert read(tmp_path) == expected([0], take=1)


def test_a_good_row_beats_failures_and_the_newest_failure_counts(tmp_path: Path) -> None:
    for message in ("first", "second"):
        with StreamWriter(tmp_path, SPEC) as writer:
            writer.add_failure(make_failure(2, message))
            writer.add_failure(make_failure(1))
    assert [failure.message for failure in Store(tmp_path).failures("rgb")] == ["no frames", "second"]
    write_rows(tmp_path, [1])
    assert Store(tmp_path).failures("rgb") == [make_failure(2, "second")]
    with StreamWriter(tmp_path, SPEC) as writer:
        writer.add_failure(make_failure(1, "too late"))
    assert Store(tmp_path).failures("rgb") == [make_failure(2, "second")]
    assert list(Store(tmp_path).done("rgb")) == [make_row(1).clip_id]


def test_segments_are_written_when_enough_rows_are_there(tmp_path: Path) -> None:
    with StreamWriter(tmp_path, SPEC, max_rows=3) as writer:
        for number in range(7):
            writer.add(make_row(number)) if number % 2 else writer.add_failure(make_failure(number))
        assert len(segment_files(tmp_path)) == 2
    assert len(segment_files(tmp_path)) == 3
    assert len(Store(tmp_path).done("rgb")) == 3


def test_segments_are_written_when_enough_time_has_passed(tmp_path: Path) -> None:
    with StreamWriter(tmp_path, SPEC, max_seconds=1e9) as writer:
        writer.add(make_row(0))
        writer.flush_if_due()
        assert segment_files(tmp_path) == []
        writer._max_seconds = 0.0
        writer.flush_if_due()
        assert len(segment_files(tmp_path)) == 1
        writer.flush_if_due()
        assert len(segment_files(tmp_path)) == 1


def test_names_sort_by_time_and_never_repeat() -> None:
    names = [new_name("00000000", sequence) for sequence in range(100)]
    assert names == sorted(set(names))
    assert new_name("00000000", 0) != new_name("00000001", 0)


def test_rows_are_copied_when_added(tmp_path: Path) -> None:
    row = make_row(0)
    with StreamWriter(tmp_path, SPEC) as writer:
        writer.add(row)
        row.features[:] = 0
        row.times[:] = 0
    assert read(tmp_path) == expected([0])


def test_rows_of_other_shapes_or_types_are_refused(tmp_path: Path) -> None:
    row = make_row(0)
    with StreamWriter(tmp_path, SPEC) as writer:
        with pytest.raises(ValueError, match="expected float16"):
            writer.add(replace(row, features=row.features[:, :1]))
        with pytest.raises(ValueError, match="float32"):
            writer.add(replace(row, features=row.features.astype(np.float32)))
        with pytest.raises(ValueError, match="expected float64"):
            writer.add(replace(row, times=row.times[0]))


def test_an_error_keeps_what_is_complete(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path, SPEC)
    writer.add(make_row(0))
    with pytest.raises(KeyboardInterrupt), writer:
        raise KeyboardInterrupt
    assert read(tmp_path) == expected([0])


def test_readers_see_whole_segments_while_others_write(tmp_path: Path) -> None:
    code = (
        "with StreamWriter(Path(args[0]), SPEC, max_rows=5) as writer:\n"
        "    for number in range(300): writer.add(make_row(number))\n"
    )
    StreamWriter(tmp_path, SPEC).close()
    child = start_child(code, tmp_path)
    seen = [0]
    while child.poll() is None:
        clips = read(tmp_path)
        assert len(clips) % 5 == 0
        assert clips == expected(range(len(clips))) or len(clips) == 0
        seen.append(len(clips))
    assert child.communicate()[1] == ""
    assert seen == sorted(seen)
    assert len(set(seen)) > 2
    assert read(tmp_path) == expected(range(300))


def test_two_processes_write_one_new_cache(tmp_path: Path) -> None:
    root = tmp_path / "new" / "cache"
    code = (
        "with StreamWriter(Path(args[0]), SPEC, max_rows=4) as writer:\n"
        "    for number in range(int(args[1]), 100, 2): writer.add(make_row(number))\n"
        "    for number in range(100, 120): writer.add(make_row(number))\n"
    )
    children = [start_child(code, root, first) for first in (0, 1)]
    assert [(child.communicate()[1], child.returncode) for child in children] == [("", 0), ("", 0)]
    assert read(root) == expected(range(120))
    assert Store(root).info()["rgb"]["duplicates"] == 20
    assert not list(root.rglob("*.tmp"))


def test_two_processes_with_two_specs_cannot_share_a_stream(tmp_path: Path) -> None:
    code = (
        "from dataclasses import replace\n"
        "StreamWriter(Path(args[0]), replace(SPEC, settings={'side': args[1]})).add(make_row(0))\n"
    )
    children = [start_child(code, tmp_path / "cache", side) for side in ("left", "right")]
    errors = [child.communicate()[1].strip() for child in children]
    assert sorted(bool(error) for error in errors) == [False, True]
    assert "settings.side: " in "".join(errors)


def test_done_does_not_read_features(tmp_path: Path) -> None:
    path = write_rows(tmp_path, range(3))
    stat = path.stat()
    data = path.read_bytes()
    features = make_row(1).features.tobytes()
    assert data.count(features) == 1
    path.write_bytes(data.replace(features, b"\0" * len(features)))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(Store(tmp_path).done("rgb")) == 3
    with pytest.raises(UserError, match=r"clip 'class 1/clip 0001\.mp4' does not match its checksum"):
        Store(tmp_path).read("rgb")


def test_info_describes_each_stream(tmp_path: Path) -> None:
    path = write_rows(tmp_path, range(4))
    with StreamWriter(tmp_path, SPEC) as writer:
        writer.add_failure(make_failure(9))
    num_bytes = sum(file.stat().st_size for file in segment_files(tmp_path))
    assert path.stat().st_size < num_bytes
    StreamWriter(tmp_path, replace(SPEC, modality="flow")).close()
    assert Store(tmp_path).streams() == ["flow", "rgb"]
    assert Store(tmp_path).info()["rgb"] == {
        "clips": 4,
        "failures": 1,
        "segments": 2,
        "bytes": num_bytes,
        "classes": 3,
        "duplicates": 0,
        "packed": False,
        "spec": SPEC.to_json(),
    }
    assert Store(tmp_path).info()["flow"]["clips"] == 0
    assert Store(tmp_path).read("flow").features.shape == (0, 1, 2, 3)


def test_a_directory_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no amfir cache"):
        Store(tmp_path)
    with pytest.raises(UserError, match="no amfir cache"):
        Store(tmp_path / "missing")


@pytest.mark.parametrize(("text", "words"), [("{", "unreadable"), ('{"format": 2}', "format {'format': 2}")])
def test_a_cache_of_another_format_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "cache.json").write_text(text)
    with pytest.raises(UserError, match=words):
        Store(tmp_path)
    with pytest.raises(UserError, match=words):
        StreamWriter(tmp_path, SPEC)


def test_a_missing_stream_is_refused_and_the_others_named(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    with pytest.raises(UserError, match=r"no stream 'flow'; in .* \(streams: rgb\); run `amfir extract`"):
        Store(tmp_path).read("flow")


def test_a_segment_of_another_stream_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "one", [0])
    StreamWriter(tmp_path / "two", replace(SPEC, settings={})).close()
    for source in (path, path.with_suffix(".json")):
        shutil.copy2(source, tmp_path / "two" / "rgb" / "segments")
    with pytest.raises(UserError, match="made by another spec"):
        contents(Store(tmp_path / "two").read("rgb"))
