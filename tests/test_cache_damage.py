"""Damaged files are named, refused and made anew.

Damage always changes the mtime here (or is marked), so that nothing damaged ever reaches HDF5, which may crash on it.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from amfir.cache import Store, StreamSpec, StreamWriter, UserError, discard_damaged, pack, verify
from amfir.cache.files import list_files
from amfir.cache.segment import write_segment
from amfir.cache.sidecar import DamageError, verify_file

from .cacherows import SPEC, expected, make_failure, make_row, read, segment_files, write_rows


def write(path: Path, data: bytes, mtime_ns: int) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(mtime_ns, mtime_ns))


def write_byte(path: Path, position: int, byte: int, mtime_ns: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([byte]))
    os.utime(path, ns=(mtime_ns, mtime_ns))


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def damage_with_old_mtime(path: Path) -> None:
    """Flip a byte of the features, which HDF5 does not interpret."""
    data, stat = path.read_bytes(), path.stat()
    write(path, flipped(data, data.index(make_row(1).features.tobytes())), stat.st_mtime_ns)


def test_every_flipped_byte_is_found_and_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [1])
    data = path.read_bytes()
    store = Store(tmp_path)
    stat = path.stat()
    for position, byte in enumerate(data):
        write_byte(path, position, byte ^ (1 << position % 8), stat.st_mtime_ns + 1_000_000_000)
        with pytest.raises(DamageError, match="bytes changed"):
            verify_file(path)
        with pytest.raises(UserError, match="bytes changed") as error:
            store.read("rgb")
        assert "\n" not in str(error.value)
        write_byte(path, position, byte, stat.st_mtime_ns)
    assert read(tmp_path) == expected([1])


def test_every_truncation_is_found_and_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [1])
    data = path.read_bytes()
    store = Store(tmp_path)
    for length in reversed(range(len(data))):
        os.truncate(path, length)
        what = f"the file has {length} bytes, {len(data)} were written"
        with pytest.raises(DamageError, match=what):
            verify_file(path)
        with pytest.raises(UserError, match=what):
            store.read("rgb")


@pytest.mark.parametrize("position", [0, 8, 100, 1000, -1])
def test_damage_is_named_with_the_way_out_and_made_anew(tmp_path: Path, position: int) -> None:
    write_rows(tmp_path, [0, 1])
    path = write_rows(tmp_path, [2, 3])
    write(path, flipped(path.read_bytes(), position % path.stat().st_size), 0)
    with pytest.raises(UserError) as error:
        Store(tmp_path).done("rgb")
    assert str(error.value) == (
        f"damaged cache: the file's bytes changed since it was written; in {path}; run `amfir cache verify {tmp_path}` "
        "to list all damage, then `amfir extract` again to make these clips anew"
    )
    assert [damage.path for damage in verify(tmp_path)] == [path]
    assert discard_damaged(tmp_path, "rgb") == [path.name]
    assert list(Store(tmp_path).done("rgb")) == [make_row(0).clip_id, make_row(1).clip_id]
    write_rows(tmp_path, [2, 3])
    assert read(tmp_path) == expected(range(4))
    assert verify(tmp_path) == []
    assert not list(tmp_path.rglob("*.damaged"))


def test_verify_marks_damage_that_the_cheap_check_misses(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [0, 1])
    damage_with_old_mtime(path)
    assert discard_damaged(tmp_path, "rgb") == []
    assert len(Store(tmp_path).done("rgb")) == 2
    (damage,) = verify(tmp_path)
    assert (damage.path, damage.what) == (path, "the file's bytes changed since it was written")
    with pytest.raises(UserError, match="`amfir cache verify` found this file damaged"):
        Store(tmp_path).done("rgb")
    assert verify(tmp_path) == [damage]
    assert discard_damaged(tmp_path, "rgb") == [path.name]
    assert os.listdir(path.parent) == []


def test_a_file_restored_from_elsewhere_is_no_longer_damaged(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [0, 1])
    shutil.copy2(path, tmp_path / "safe")
    damage_with_old_mtime(path)
    assert len(verify(tmp_path)) == 1
    shutil.copy2(tmp_path / "safe", path)
    assert verify(tmp_path) == []
    assert read(tmp_path) == expected([0, 1])


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "\udcff",
        '{"sha256": "00", "size": 1, "mtime_ns": 1}',
        f'{{"sha256": "{"0" * 64}", "size": 1, "mtime_ns": true}}',
        f'{{"sha256": "{"0" * 64}", "size": 1, "mtime_ns": 1, "more": 1}}',
    ],
)
def test_a_broken_or_missing_sidecar_is_damage(tmp_path: Path, text: str | None) -> None:
    path = write_rows(tmp_path, [0])
    sidecar = path.with_suffix(".json")
    sidecar.unlink() if text is None else sidecar.write_bytes(text.encode("utf-8", "surrogateescape"))
    what = f"{sidecar.name}, the file's hash, is {'missing' if text is None else 'unreadable'}"
    with pytest.raises(UserError, match=what):
        Store(tmp_path).read("rgb")
    assert [(damage.path, damage.what) for damage in verify(tmp_path)] == [(path, what)]
    assert discard_damaged(tmp_path, "rgb") == [path.name]
    assert read(tmp_path) == []
    assert os.listdir(path.parent) == []


def test_another_hash_in_the_sidecar_is_found_by_verify(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [0])
    sidecar = path.with_suffix(".json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"sha256": "0" * 64}))
    assert [damage.path for damage in verify(tmp_path)] == [path]


def test_a_lost_segment_is_damage(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    path = write_rows(tmp_path, [1])
    path.unlink()
    with pytest.raises(UserError, match="the file is missing"):
        Store(tmp_path).read("rgb")
    assert [(damage.path, damage.what) for damage in verify(tmp_path)] == [(path, "the file is missing")]
    assert discard_damaged(tmp_path, "rgb") == [path.name]
    assert read(tmp_path) == expected([0])


def test_a_segment_that_is_a_broken_link_is_damage(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [1])
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(UserError, match="the file is missing"):
        Store(tmp_path).read("rgb")


def test_a_segment_that_is_about_to_be_whole_is_left_alone(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    path = write_rows(tmp_path, [1])
    path.rename(f"{path}.tmp")
    assert read(tmp_path) == expected([0])
    assert verify(tmp_path) == []
    assert discard_damaged(tmp_path, "rgb") == []
    StreamWriter(tmp_path, SPEC).close()
    Path(f"{path}.tmp").rename(path)
    assert read(tmp_path) == expected([0, 1])


def test_a_writer_removes_debris_older_than_an_hour(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    path = write_rows(tmp_path, [1])
    path.rename(f"{path}.tmp")
    root_debris = [tmp_path / "cache.json.0123abcd.tmp", tmp_path / ".rgb.0123abcd.tmp", tmp_path / "mine.tmp"]
    root_debris[0].touch()
    root_debris[1].mkdir()
    root_debris[2].touch()
    for debris in [Path(f"{path}.tmp"), *root_debris]:
        os.utime(debris, (0, 0))
    StreamWriter(tmp_path, SPEC).close()
    assert not Path(f"{path}.tmp").exists()
    assert not path.with_suffix(".json").exists()
    assert [debris.exists() for debris in root_debris] == [False, False, True]
    assert read(tmp_path) == expected([0])


def test_a_copy_with_other_mtimes_still_reads_and_verify_adopts_them(tmp_path: Path) -> None:
    write_rows(tmp_path / "here", range(5))
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    (path,) = segment_files(tmp_path / "there")
    os.utime(path, (1, 1))
    assert read(tmp_path / "there") == expected(range(5))
    assert discard_damaged(tmp_path / "there", "rgb") == []
    assert verify(tmp_path / "there") == []
    assert json.loads(path.with_suffix(".json").read_text())["mtime_ns"] == 1_000_000_000
    assert read(tmp_path / "there") == expected(range(5))


def test_a_row_that_was_written_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path, [0])
    folder = tmp_path / "rgb" / "segments"
    with monkeypatch.context() as patch:
        patch.setattr("amfir.cache.rows.Row.checksum", lambda row: b"0123456789abcdef")
        write_segment(folder / "1.h5", SPEC, [make_row(1)], [])
    with monkeypatch.context() as patch:
        patch.setattr("amfir.cache.rows.Failure.checksum", lambda row: b"0123456789abcdef")
        write_segment(folder / "2.h5", SPEC, [], [make_failure(2)])
    assert [(damage.path.name, damage.what) for damage in verify(tmp_path)] == [
        ("1.h5", "the row of clip 'class 1/clip 0001.mp4' does not match its checksum"),
        ("2.h5", "the failure of clip 'class 2/clip 0002.mp4' does not match its checksum"),
    ]


def test_a_whole_file_that_is_no_segment_is_damage(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [0])
    path.write_bytes(b"something else")
    sidecar = path.with_suffix(".json")
    stat = path.stat()
    digest = hashlib.sha256(b"something else").hexdigest()
    sidecar.write_text(json.dumps({"sha256": digest, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}))
    with pytest.raises(UserError, match="HDF5 cannot read the file") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_verify_names_an_edited_spec_and_still_checks_the_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path, [0])
    spec = tmp_path / "rgb" / "spec.json"
    spec.write_text(spec.read_text().replace("15", "16"))
    assert [damage.path for damage in verify(tmp_path)] == [spec]
    write(path, flipped(path.read_bytes(), 50), 0)
    assert [damage.path for damage in verify(tmp_path)] == [spec, path]


def test_a_lost_spec_is_named_and_not_replaced(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    (tmp_path / "rgb" / "spec.json").unlink()
    assert [damage.path for damage in verify(tmp_path)] == [tmp_path / "rgb" / "spec.json"]
    with pytest.raises(UserError, match="spec of stream 'rgb' is missing"):
        StreamWriter(tmp_path, SPEC)


def test_segments_of_another_spec_are_found(tmp_path: Path) -> None:
    write_rows(tmp_path, [0])
    other = StreamSpec("rgb", 2, 1, 3, {})
    write_segment(tmp_path / "rgb" / "segments" / "9.h5", other, [make_row(1)], [])
    assert [damage.what for damage in verify(tmp_path)] == ["the file was made by another spec than stream 'rgb'"]


def test_damage_to_a_packed_file_is_found_refused_and_made_anew(tmp_path: Path) -> None:
    write_rows(tmp_path, range(3))
    pack(tmp_path)
    (path,) = list_files(tmp_path / "rgb" / "packed")
    damage_with_old_mtime(path)
    stream = Store(tmp_path).read("rgb")
    stream.check([0, 2])
    with pytest.raises(UserError, match=r"row of clip 'class 1/clip 0001\.mp4' does not match its checksum"):
        stream.check()
    assert [damage.path for damage in verify(tmp_path)] == [path]
    with pytest.raises(UserError, match="found this file damaged"):
        Store(tmp_path).read("rgb")
    assert discard_damaged(tmp_path, "rgb") == [path.name]
    write_rows(tmp_path, range(3))
    assert read(tmp_path) == expected(range(3))


def test_discarding_from_a_cache_that_does_not_exist_yet_does_nothing(tmp_path: Path) -> None:
    assert discard_damaged(tmp_path / "missing", "rgb") == []


def test_verify_refuses_what_is_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no amfir cache"):
        verify(tmp_path)
