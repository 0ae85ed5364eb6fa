"""The index of a stream: always what reading all files says, whatever is left of the merged index."""

import hashlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from amfir.cache import Row, Store, StreamWriter, Table, UserError, digests, discard_damaged, pack, verify
from amfir.cache.index import load_failures, load_index
from amfir.cache.indexfile import read_merged
from amfir.cache.rows import Contents
from amfir.cache.segment import read_contents, write_segment
from amfir.cache.view import load_view

from .cacherows import SPEC, make_failure, make_row, segment_files, write_rows


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a merged index be written when two files are missing from it."""
    with monkeypatch.context() as patch:
        patch.setattr("amfir.cache.index._MISSING_FILES", 1)
        yield


def key(clip_id: str) -> bytes:
    return hashlib.blake2b(clip_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def as_dict(table: Table) -> dict[bytes, tuple[int, int]]:
    pairs = [tuple(digest) for digest in table.digests.tolist()]
    assert pairs == sorted(set(pairs))
    assert len(table) == len(pairs) == len(table.sources)
    return {
        digest.tobytes(): (size, mtime)
        for digest, (size, mtime) in zip(table.digests, table.sources.tolist(), strict=True)
    }


def check_index(root: Path, key: Callable[[str], bytes] = key) -> None:
    """Compare index and failures with what all files say together."""
    view = load_view(root, SPEC)
    rows = view.merged(SPEC)
    index = load_index(root, SPEC)
    assert as_dict(index.done) == {
        key(clip_id): tuple(source) for clip_id, source in zip(rows.clip_ids, rows.sources.tolist(), strict=True)
    }
    assert as_dict(index.failed) == {
        key(failure.clip_id): (failure.source_size, failure.source_mtime_ns) for failure in view.failures
    }
    assert load_failures(root, SPEC) == view.failures


def write_failures(root: Path, *numbers: int, message: str = "no frames") -> None:
    with StreamWriter(root, SPEC) as writer:
        for number in numbers:
            writer.add_failure(replace(make_failure(number, message), source_size=len(message)))


def covered(root: Path) -> int:
    return len(read_merged(root / "rgb" / "index.bin", SPEC.fingerprint).files)


@pytest.mark.usefixtures("small_steps")
def test_a_stream_without_files_has_an_empty_index(tmp_path: Path) -> None:
    StreamWriter(tmp_path, SPEC).close()
    index = Store(tmp_path).index("rgb")
    assert (len(index.done), len(index.failed)) == (0, 0)
    assert index.done.find(digests(["a"])).tolist() == [-1]
    check_index(tmp_path)
    with pytest.raises(UserError, match="no stream 'flow'"):
        Store(tmp_path).index("flow")


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("with_merged_index", [False, True])
def test_the_first_row_counts_and_else_the_last_failure(tmp_path: Path, with_merged_index: bool) -> None:
    write_rows(tmp_path, [3])
    write_failures(tmp_path, 1, 2, 3, message="first")
    write_failures(tmp_path, 1, 2, message="the second")
    with StreamWriter(tmp_path, SPEC) as writer:
        for size in (7, 8):
            writer.add(replace(make_row(2), source_size=size))
    if with_merged_index:
        Store(tmp_path).index("rgb")
    index = Store(tmp_path).index("rgb")
    assert as_dict(index.done) == {
        key(make_row(2).clip_id): (7, 10**18 + 2),
        key(make_row(3).clip_id): (3, 10**18 + 3),
    }
    assert as_dict(index.failed) == {key(make_row(1).clip_id): (len("the second"), 10**18 + 1)}
    check_index(tmp_path)


def test_a_merged_index_spares_reading_the_files_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    StreamWriter(tmp_path, SPEC).close()
    for number in range(66):
        write_segment(tmp_path / "rgb" / "segments" / f"{number:03d}.h5", SPEC, [make_row(number)], [])
        if number == 63:
            check_index(tmp_path)
            assert covered(tmp_path) == 0
    check_index(tmp_path)
    assert covered(tmp_path) == 66
    added = write_rows(tmp_path, [5, 99])
    read = set()

    def note(path: Path) -> Contents:
        read.add(path)
        return read_contents(path)

    monkeypatch.setattr("amfir.cache.index.read_contents", note)
    check_index(tmp_path)
    assert read == {added}
    assert covered(tmp_path) == 66


def test_one_large_new_file_joins_the_merged_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amfir.cache.index._MISSING_ROWS", 8)
    write_rows(tmp_path, range(8))
    check_index(tmp_path)
    assert covered(tmp_path) == 0
    write_rows(tmp_path, range(8, 20))
    pack(tmp_path)
    check_index(tmp_path)
    assert covered(tmp_path) == 1


@pytest.mark.usefixtures("small_steps")
def test_a_damaged_merged_index_is_made_anew(tmp_path: Path) -> None:
    for numbers in ([0, 1], [1, 2], [3]):
        write_rows(tmp_path, numbers)
    write_failures(tmp_path, 3, 4)
    check_index(tmp_path)
    path = tmp_path / "rgb" / "index.bin"
    whole = path.read_bytes()
    assert len(whole) > 400
    rng = random.Random(0)
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << rng.randrange(8)
        for data in (bytes(flipped), whole[:position], whole[position + 1 :]):
            path.write_bytes(data)
            index = load_index(tmp_path, SPEC)
            assert (len(index.done), len(index.failed)) == (4, 1)
            assert path.read_bytes() == whole
    path.unlink()
    check_index(tmp_path)
    assert path.read_bytes() == whole


@pytest.mark.usefixtures("small_steps")
def test_the_merged_index_of_another_stream_is_not_believed(tmp_path: Path) -> None:
    for number in range(3):
        write_rows(tmp_path / "here", [number])
    (tmp_path / "here" / "rgb" / "index.bin").unlink()
    check_index(tmp_path / "here")
    assert covered(tmp_path / "here") == 3
    other = replace(SPEC, modality="flow")
    StreamWriter(tmp_path / "here", other).close()
    shutil.copy(tmp_path / "here" / "rgb" / "index.bin", tmp_path / "here" / "flow")
    assert len(Store(tmp_path / "here").index("flow").done) == 0
    shutil.copytree(tmp_path / "here" / "rgb" / "segments", tmp_path / "here" / "flow" / "segments", dirs_exist_ok=True)
    with pytest.raises(UserError, match="made by another spec than stream 'flow'"):
        Store(tmp_path / "here").index("flow")
    # The same names with other contents, in a stream of the same spec.
    for path in segment_files(tmp_path / "here"):
        number = len(segment_files(tmp_path / "there"))
        StreamWriter(tmp_path / "there", SPEC).close()
        write_segment(tmp_path / "there" / "rgb" / "segments" / path.name, SPEC, [make_row(10 + number)], [])
    shutil.copy(tmp_path / "here" / "rgb" / "index.bin", tmp_path / "there" / "rgb")
    check_index(tmp_path / "there")


@pytest.mark.usefixtures("small_steps")
def test_a_copied_cache_brings_its_merged_index(tmp_path: Path) -> None:
    for number in range(3):
        write_rows(tmp_path / "here", [number])
    (tmp_path / "here" / "rgb" / "index.bin").unlink()
    check_index(tmp_path / "here")
    before = (tmp_path / "here" / "rgb" / "index.bin").stat()
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    os.utime(tmp_path / "there" / "rgb" / "index.bin", ns=(0, before.st_mtime_ns))
    check_index(tmp_path / "there")
    assert covered(tmp_path / "there") == 3
    assert (tmp_path / "there" / "rgb" / "index.bin").stat().st_mtime_ns == before.st_mtime_ns


actions = st.lists(
    st.tuples(
        st.sampled_from(["rows", "failures", "pack", "discard", "recreate", "index", "lose index"]), st.integers(0, 5)
    ),
    max_size=10,
)


def colliding_key(clip_id: str) -> bytes:
    """Return a digest that shares its first word with that of every other clip."""
    return bytes(8) + clip_id[-8:-4].encode() + bytes(4)


def colliding_digests(encoded: Iterable[bytes]) -> NDArray[np.uint64]:
    joined = b"".join(colliding_key(text.decode()) for text in encoded)
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


@pytest.mark.parametrize("collide", [False, True])
@settings(max_examples=25, deadline=None)
@given(steps=actions)
def test_a_stale_merged_index_never_changes_the_answer(collide: bool, steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("amfir.cache.index._MISSING_FILES", 1)
        if collide:
            patch.setattr("amfir.cache.index._digests", colliding_digests)
        root = Path(folder)
        StreamWriter(root, SPEC).close()
        for number, (action, value) in enumerate(steps):
            act(root, action, value, number)
            check_index(root, colliding_key if collide else key)


def act(root: Path, action: str, value: int, number: int) -> None:
    files = [path for folder in ("segments", "packed") for path in sorted((root / "rgb" / folder).glob("*.h5"))]
    path = files[value % len(files)] if files else None
    if action == "rows":
        with StreamWriter(root, SPEC) as writer:
            for clip in (value, value + 1):
                writer.add(replace(make_row(clip), source_size=number))
    elif action == "failures":
        write_failures(root, value, value + 2, message="x" * number)
    elif action == "pack":
        pack(root)
    elif action == "index":
        load_index(root, SPEC)
    elif action == "lose index":
        (root / "rgb" / "index.bin").unlink(missing_ok=True)
    elif path is not None:
        os.truncate(path, 3)
        assert discard_damaged(root, "rgb") == [path.name]
        if action == "recreate":
            write_segment(path, SPEC, [replace(make_row(value), source_size=number)], [make_failure(value + 2)])


@pytest.mark.usefixtures("small_steps")
def test_a_file_made_anew_under_its_old_name_keeps_its_place(tmp_path: Path) -> None:
    first = write_rows(tmp_path, [0])
    write_rows(tmp_path, [0, 1])
    check_index(tmp_path)
    assert covered(tmp_path) == 2
    first.unlink()
    assert discard_damaged(tmp_path, "rgb") == [first.name]
    write_segment(first, SPEC, [replace(make_row(0), source_size=77)], [])
    check_index(tmp_path)
    assert as_dict(load_index(tmp_path, SPEC).done)[key(make_row(0).clip_id)] == (77, 10**18)


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("damage", ["truncated", "touched", "lost", "no sidecar", "marked"])
def test_damage_of_a_file_in_the_merged_index_shows(tmp_path: Path, damage: str) -> None:
    write_rows(tmp_path, [0, 1])
    path = write_rows(tmp_path, [2])
    check_index(tmp_path)
    assert covered(tmp_path) == 2
    if damage == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    elif damage == "touched":
        with path.open("r+b") as file:
            file.write(b"\0")
        os.utime(path, (0, 0))
    elif damage == "lost":
        path.unlink()
    elif damage == "no sidecar":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".damaged").touch()
    for read in (Store(tmp_path).index, Store(tmp_path).failures):
        with pytest.raises(UserError, match="damaged cache: "):
            read("rgb")
    assert discard_damaged(tmp_path, "rgb") == [path.name]
    check_index(tmp_path)
    assert verify(tmp_path) == []


@pytest.mark.usefixtures("small_steps")
def test_a_file_of_another_spec_shows(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    other = replace(SPEC, settings={})
    write_segment(tmp_path / "rgb" / "segments" / "9.h5", other, [make_row(1)], [])
    with pytest.raises(UserError, match="made by another spec than stream 'rgb'"):
        Store(tmp_path).index("rgb")


@pytest.mark.usefixtures("small_steps")
def test_a_cache_that_cannot_keep_a_merged_index_works_without(tmp_path: Path) -> None:
    StreamWriter(tmp_path, SPEC).close()
    path = tmp_path / "rgb" / "index.bin"
    path.mkdir()
    (path / "mine").touch()
    for number in range(3):
        write_rows(tmp_path, [number])
    check_index(tmp_path)
    assert os.listdir(path) == ["mine"]
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.usefixtures("small_steps")
def test_a_read_only_cache_works_without_a_merged_index(tmp_path: Path) -> None:
    for number in range(3):
        write_rows(tmp_path, [number])
    (tmp_path / "rgb").chmod(0o555)
    check_index(tmp_path)
    assert covered(tmp_path) == 0


@pytest.mark.usefixtures("small_steps")
def test_a_writer_brings_the_merged_index_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amfir.cache.writer._TIDY_SEGMENTS", 4)
    with StreamWriter(tmp_path, SPEC, max_rows=1) as writer:
        for number in range(6):
            writer.add(make_row(number))
        assert covered(tmp_path) == 4
    assert covered(tmp_path) == 6
    check_index(tmp_path)


@pytest.mark.usefixtures("small_steps")
def test_a_writer_closes_although_the_merged_index_cannot_be_made(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    os.truncate(segment_files(tmp_path)[0], 5)
    write_rows(tmp_path, [1])
    write_rows(tmp_path, [2])
    assert covered(tmp_path) == 0
    discard_damaged(tmp_path, "rgb")
    write_rows(tmp_path, [3])
    assert covered(tmp_path) == 3


@pytest.mark.usefixtures("small_steps")
def test_a_writer_sweeps_what_a_killed_one_left_of_a_merged_index(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    debris = tmp_path / "rgb" / "index.bin.0123abcd.tmp"
    debris.touch()
    StreamWriter(tmp_path, SPEC).close()
    assert debris.exists()
    os.utime(debris, (0, time.time() - 7200))
    StreamWriter(tmp_path, SPEC).close()
    assert not debris.exists()


def test_ids_and_sources_of_any_kind_are_found(tmp_path: Path) -> None:
    sources = {"caf\udce9.avi": (0, -(2**63)), "": (2**63 - 1, 0), "x\0y": (1, 2)}
    with StreamWriter(tmp_path, SPEC) as writer:
        for clip_id, (size, mtime) in sources.items():
            writer.add(Row(clip_id, "", make_row(0).features, make_row(0).times, size, mtime))
    index = Store(tmp_path).index("rgb")
    rows = index.done.find(digests(list(sources)))
    assert [tuple(source) for source in index.done.sources[rows].tolist()] == list(sources.values())
