"""Clips in tar shards: which there are, where their bytes lie, and what their labels are."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from amfir.cache.errors import UserError
from amfir.extract.clips import Clip
from amfir.extract.source import open_clip
from amfir.pipeline import tar_members as reading
from amfir.pipeline.datasets import list_clips, open_source
from amfir.pipeline.tar_members import Member, tar_members

VIDEO = b"video bytes"


def write_tar(path: Path, files: dict[str, bytes], format: int = tarfile.PAX_FORMAT, **fields: object) -> Path:
    with tarfile.open(path, "w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))
    return path


def members_of(path: Path) -> list[Member]:
    with path.open("rb") as file:
        return list(tar_members(path, file))


def truth(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path, encoding="utf-8", errors="surrogateescape") as tar:
        return [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]


def content(clip: Clip) -> bytes:
    with open_clip(clip.path, clip.span) as file:
        return file.read()


def refusal(source: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        list(open_source(source))
    assert "\n" not in str(caught.value)
    return str(caught.value)


ODD_NAMES = [
    "run/two\nlines.mp4",
    "run/Bär走る.mp4",
    "run/" + os.fsdecode(b"latin-\xe9.mp4"),
    "run/" + "long" * 30 + ".mp4",
    "d" * 90 + "/" + "e" * 60 + "/x.mp4",
    "d" * 160 + "/x.mp4",
    "-dash %d 'quo\"te.mp4",
]


@pytest.fixture
def no_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("tarfile was asked")

    monkeypatch.setattr(reading, "_any_members", refuse)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.usefixtures("no_fallback")
def test_plain_archives_are_read_as_tarfile_reads_them(format: int, tmp_path: Path) -> None:
    files = {name: bytes(size) for name, size in zip(ODD_NAMES, (0, 1, 511, 512, 513, 5000, 40_000), strict=True)}
    path = write_tar(tmp_path / "a.tar", files, format, mtime=1.5)
    assert [member[:3] for member in members_of(path)] == truth(path)
    assert [member.name for member in members_of(path)] == ODD_NAMES


@pytest.mark.usefixtures("no_fallback")
def test_ustar_prefixes_and_folders_are_read_without_tarfile(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    folder = tmp_path / "src"
    for name in ("run/x.mp4", "d" * 90 + "/" + "e" * 60 + "/x.mp4"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(VIDEO)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(folder, ".")
    assert [member[:3] for member in members_of(path)] == truth(path)


def sparse(path: Path) -> None:
    write_tar(path, {"a/x.mp4": VIDEO, "a/y.mp4": VIDEO}, pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"})


def old_format(path: Path) -> None:
    write_tar(path, {"a/x.mp4": VIDEO, "a/y.mp4": VIDEO * 99}, tarfile.USTAR_FORMAT)
    data = bytearray(path.read_bytes())
    for start in (0, 1024):
        data[start + 257 : start + 265] = bytes(8)
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    path.write_bytes(data)


def large_numbers(path: Path) -> None:
    # GNU's and star's binary numbers, as in files of 8 GiB and more.
    write_tar(path, {"a/x.mp4": VIDEO, "a/y.mp4": VIDEO * 99}, tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + len(VIDEO).to_bytes(11)
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)


def pax_sizes(path: Path) -> None:
    write_tar(path, {"a/x.mp4": VIDEO * 99, "a/y.mp4": VIDEO}, pax_headers={"size": str(len(VIDEO) * 99)})


def global_header(path: Path) -> None:
    with tarfile.open(path, "w", pax_headers={"comment": "by hand"}) as tar:
        for name in ("a/x.mp4", "a/y.mp4"):
            member = tarfile.TarInfo(name)
            member.size = len(VIDEO)
            tar.addfile(member, io.BytesIO(VIDEO))


@pytest.mark.parametrize("write", [old_format, large_numbers, pax_sizes, global_header])
def test_other_archives_are_read_by_tarfile(write: object, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write(path)  # type: ignore[operator]
    members = members_of(path)
    assert [member.name for member in members] == ["a/x.mp4", "a/y.mp4"]
    if write is not pax_sizes:  # there, tarfile's own writer gives every member that size
        assert [member[:3] for member in members] == truth(path)


def test_after_plain_members_tarfile_goes_on_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, kind in (("a/1.mp4", tarfile.REGTYPE), ("a/2.mp4", tarfile.LNKTYPE), ("a/3.mp4", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "a/1.mp4"
            member.size = len(VIDEO) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(VIDEO))
    members = members_of(path)
    assert [(member.name, member.kind) for member in members] == [
        ("a/1.mp4", ""),
        ("a/2.mp4", "hard link"),
        ("a/3.mp4", ""),
    ]
    assert [member[:3] for member in members if not member.kind] == truth(path)
    assert "'a/2.mp4' is a hard link; in shard" in refusal(path)


def test_a_sparse_video_is_refused(tmp_path: Path) -> None:
    sparse(tmp_path / "a.tar")
    assert "'a/x.mp4' is a sparse file; in shard" in refusal(tmp_path / "a.tar")


def test_clips_have_the_shard_in_their_id_and_their_bytes_in_their_span(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-1.tar", {"./run/a.mp4": b"one", "._b.mp4": b"", "walk/b.notes": b"", "walk/b.AVI": b"two"})
    write_tar(tmp_path / "s-0.tar", {name: name.encode(errors="surrogateescape") for name in ODD_NAMES[:-1]})
    clips = list(open_source(tmp_path))
    assert [clip.id for clip in clips] == [
        *(f"s-0.tar/{name}" for name in ODD_NAMES[:-1]),
        "s-1.tar/run/a.mp4",
        "s-1.tar/walk/b.AVI",
    ]
    assert [clip.label for clip in clips] == ["run"] * 4 + ["d" * 90, "d" * 160, "run", "walk"]
    contents = [name.encode(errors="surrogateescape") for name in ODD_NAMES[:-1]]
    assert [content(clip) for clip in clips] == [*contents, b"one", b"two"]
    assert all(clip.path == tmp_path / clip.id.partition("/")[0] for clip in clips)


@pytest.mark.parametrize(
    ("beside", "label"),
    [
        ({"k/1.cls": b" 17\n"}, "17"),
        ({"k/1.txt": "gehen 走".encode()}, "gehen 走"),
        ({"k/1.json": b'{"label": "jump", "class": 3}'}, "jump"),
        ({"k/1.json": b'{"class": 3}'}, "3"),
        ({"k/1.json": b'{"fps": 25}'}, "k"),
        ({"k/1.json": b"[1]"}, "k"),
        ({"k/1.json": b'{"label": ["a"]}'}, "k"),
        ({"k/1.json": b'{"label": "jump"}', "k/1.txt": b"a man jumps", "k/1.CLS": b"run"}, "run"),
        ({"k/1.cls": b" ", "k/1.txt": b"run"}, "run"),
        ({"k/1.flow.cls": b"other"}, "k"),
        ({"k/2.cls": b"other"}, "k"),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_labels_lie_beside_the_video(beside: dict[str, bytes], label: str, before: bool, tmp_path: Path) -> None:
    videos = {"k/1.mp4": VIDEO, "k/1.depth.mkv": VIDEO}
    path = write_tar(tmp_path / "s.tar", beside | videos if before else videos | beside)
    assert {(clip.id, clip.label) for clip in open_source(path)} == {
        ("s.tar/k/1.mp4", label),
        ("s.tar/k/1.depth.mkv", label),
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"1.mp4": VIDEO}, "no label; for '1' in shard"),
        ({"k/1.mp4": VIDEO, "k/1.json": b"{"}, "not JSON"),
        ({"k/1.mp4": VIDEO, "k/1.cls": bytes(1 << 21)}, "no label in a file so large; 'k/1.cls' in shard"),
        ({"k/1.doc": VIDEO}, "no clips; in 1 tar shards"),
        ({}, "no clips; in 1 tar shards"),
        ({"k/1.mp4": VIDEO, "k/2.mp4": VIDEO, "./k/1.mp4": VIDEO}, "'s.tar/k/1.mp4' occurs twice"),
    ],
)
def test_shards_that_cannot_be_used_are_refused(files: dict[str, bytes], expected: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", files)
    message = refusal(path)
    assert expected in message
    assert str(path) in message


def test_a_source_of_shards_gives_the_same_again(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "s.tar", {"a/1.mp4": VIDEO, "a/2.mp4": VIDEO}))
    assert list(source) == list(source)


def test_two_shards_with_one_name_collide(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "s.tar", {"a/1.mp4": VIDEO})
    message = refusal(f"{tmp_path}/?/s.tar")
    assert f"'s.tar/a/1.mp4' occurs twice; in {tmp_path}/x/s.tar and {tmp_path}/y/s.tar" in message


def test_patterns_name_shards_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("t-08.tar", "t-09.tar", "t-10.tar", "v-1.tar", "brace{1,2}.tar"):
        write_tar(tmp_path / name, {"a/1.mp4": VIDEO})
    monkeypatch.chdir(tmp_path)

    def shards(pattern: str) -> list[str]:
        return [clip.id.partition("/")[0] for clip in open_source(pattern)]

    assert shards("t-{08..10}.tar") == ["t-08.tar", "t-09.tar", "t-10.tar"]
    assert shards("t-{10..10}.tar") == ["t-10.tar"]
    assert shards("{v-1,t-08}.tar") == ["v-1.tar", "t-08.tar"]
    assert shards("t-0{8..9}.tar") == ["t-08.tar", "t-09.tar"]
    assert shards("t-[01]?.tar") == ["t-08.tar", "t-09.tar", "t-10.tar"]
    assert shards("brace{1,2}.tar") == ["brace{1,2}.tar"]
    assert "2 of 4 shards are missing ('t-11.tar', ...)" in refusal("t-{09..12}.tar")
    assert "nothing matches 'w*.tar'" in refusal("w*.tar")


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz"):
        pass
    assert "is compressed" in refusal(tmp_path / "s.tar.gz")
    assert "1 shards are compressed ('s.tar.gz', ...)" in refusal(tmp_path)
    (tmp_path / "s.tar.gz").rename(tmp_path / "s.tar")
    assert "compressed with gzip; shard" in refusal(tmp_path)


def test_tars_beside_class_folders_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/a.mp4").write_bytes(VIDEO)
    write_tar(tmp_path / "backup.tar", {"a/1.mp4": VIDEO})
    assert [clip.id for clip in list_clips(tmp_path)] == ["run/a.mp4"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_of_a_shard_that_is_cut_off_the_last_clip_is_listed_and_damaged(format: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a/1.mp4": bytes(3000), "a/2.mp4": bytes(3000)}, format, mtime=0.5)
    start = members_of(path)[1].offset
    os.truncate(path, start + 2999)
    clips = list(open_source(path))
    assert [clip.id for clip in clips] == ["s.tar/a/1.mp4", "s.tar/a/2.mp4"]
    with pytest.raises(Exception, match=r"^damaged: the tar is cut off within this member: \d+ bytes of at least"):
        content(clips[1])
    os.truncate(path, start + 3000)  # only the padding is gone
    assert [len(content(clip)) for clip in open_source(path)] == [3000, 3000]


def test_of_an_odd_shard_that_is_cut_off_the_last_clip_is_listed(tmp_path: Path) -> None:
    old_format(tmp_path / "s.tar")
    os.truncate(tmp_path / "s.tar", 1024 + 512 + 100)
    assert [clip.id for clip in open_source(tmp_path)] == ["s.tar/a/x.mp4", "s.tar/a/y.mp4"]


def test_a_long_name_without_its_file_is_damage(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a/1.mp4": VIDEO, "a/" + "long" * 30 + ".mp4": VIDEO})
    start = members_of(path)[1].offset
    os.truncate(path, start - 512)
    assert "not a whole tar" in refusal(path)


def test_a_prefix_where_gnu_keeps_times_is_left_to_tarfile(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a/1.mp4": VIDEO}, tarfile.GNU_FORMAT)
    data = bytearray(path.read_bytes())
    data[345:356] = b"14512345670"
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    path.write_bytes(data)
    assert [member[:3] for member in members_of(path)] == truth(path)


@pytest.mark.parametrize("odd", [False, True])
def test_what_cannot_be_named_is_refused(odd: bool, tmp_path: Path) -> None:
    files = {"a/1.mp4": bytes(600), "a/2.mp4": bytes(600), "a/2.cls": b"run"}
    path = write_tar(tmp_path / "s.tar", files, tarfile.USTAR_FORMAT)
    if odd:
        old_format(path)
        path.write_bytes(path.read_bytes()[:4096] + b"run".ljust(512, b"\0"))
    whole = path.read_bytes()
    second = members_of(path)[1].offset
    path.write_bytes(whole[: second - 100])
    assert f"damaged or cut off at byte {second - 512}" in refusal(path)
    path.write_bytes(whole[: second - 512] + b"x" * 512 + whole[second:])
    assert f"damaged or cut off at byte {second - 512}" in refusal(path)
    path.write_bytes(b"x" * 512 + whole[512:])
    assert "not a whole tar" in refusal(path)
    if not odd:
        label = members_of(write_tar(path, files))[2].offset
        path.write_bytes(path.read_bytes()[: label + 2])
        assert "the tar is cut off; within 'a/2.cls' in shard" in refusal(path)


def test_an_archive_without_its_end_mark_is_whole(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a/1.mp4": bytes(512)})
    os.truncate(path, 1024)
    assert [content(clip) for clip in open_source(path)] == [bytes(512)]
