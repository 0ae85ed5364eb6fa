import os
import tracemalloc
from array import array
from pathlib import Path

import pytest

from amfir.cache.errors import UserError
from amfir.extract.clips import Checked, Clip
from amfir.pipeline.datasets import csv_split, list_clips, open_source
from amfir.pipeline.repeats import first_repeat


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def write_csv(folder: Path, *lines: str) -> Path:
    path = folder / "clips.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        list_clips(source)
    return str(caught.value)


def test_a_folder_gives_clips_sorted_by_id_with_the_first_level_as_label(tmp_path: Path) -> None:
    touch(tmp_path, "walk/b.avi", "run/a.mp4", "walk/person 1/b.avi", "run/B.mp4")
    clips = list_clips(tmp_path)
    assert [(clip.id, clip.label) for clip in clips] == [
        ("run/B.mp4", "run"),
        ("run/a.mp4", "run"),
        ("walk/b.avi", "walk"),
        ("walk/person 1/b.avi", "walk"),
    ]
    assert [clip.path for clip in clips] == [tmp_path / clip.id for clip in clips]


def test_paths_are_absolute_even_from_a_relative_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "clips/run/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert list_clips(Path("clips"))[0].path == tmp_path / "clips/run/a.mp4"


def test_side_files_and_hidden_files_are_passed_over_but_odd_names_are_not(tmp_path: Path) -> None:
    touch(
        tmp_path, "README", "notes.txt", "split.toml", "run/labels.csv", "run/a.srt", "run/.hidden.mp4", ".git/x/y.mp4"
    )
    touch(tmp_path, "run/noext", "run/odd.name.xyz", "run/UPPER.TXT", "run/still.jpg")
    assert [clip.id for clip in list_clips(tmp_path)] == ["run/noext", "run/odd.name.xyz", "run/still.jpg"]


def test_names_with_newlines_quotes_unicode_and_broken_utf8_survive(tmp_path: Path) -> None:
    names = ["two\nlines.mp4", "quo\"te's.mp4", "-dash %d.mp4", "Bär走る.mp4", os.fsdecode(b"latin-\xe9.mp4")]
    touch(tmp_path, *(f"class\n1/{name}" for name in names))
    clips = list_clips(tmp_path)
    assert sorted(clip.id for clip in clips) == sorted(f"class\n1/{name}" for name in names)
    assert all(Path(clip.path).read_bytes() == b"x" and clip.label == "class\n1" for clip in clips)


def test_links_are_followed_dangling_ones_are_kept_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/jump/c.mp4", "data/run/a.mp4")
    (tmp_path / "data/jump").symlink_to(tmp_path / "elsewhere/jump")
    (tmp_path / "data/run/again").symlink_to(tmp_path / "data")
    (tmp_path / "data/run/dangling.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert [clip.id for clip in list_clips(tmp_path / "data")] == ["jump/c.mp4", "run/a.mp4", "run/dangling.mp4"]


def test_a_link_to_itself_stays_a_candidate_so_that_it_is_reported(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4")
    (tmp_path / "run/circle.mp4").symlink_to("circle.mp4")
    assert [clip.id for clip in list_clips(tmp_path)] == ["run/a.mp4", "run/circle.mp4"]


def test_a_pipe_stays_a_candidate_so_that_it_is_reported(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4")
    os.mkfifo(tmp_path / "run/pipe.mp4")
    assert [clip.id for clip in list_clips(tmp_path)] == ["run/a.mp4", "run/pipe.mp4"]


def test_folders_without_clips_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith("no clips;")
    (tmp_path / "run").mkdir()
    assert "one folder a class" in refusal(tmp_path)


def test_clips_outside_a_class_folder_are_refused_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    assert refusal(tmp_path).startswith("1 file lies in no class folder (a.mp4)")
    touch(tmp_path, "run/x.mp4", *(f"{i}.mp4" for i in range(8)))
    message = refusal(tmp_path)
    assert message.startswith("9 files lie in no class folder (0.mp4, 1.mp4, 2.mp4, 3.mp4, 4.mp4, ...)")
    assert "put clips into one folder a class" in message


def test_sources_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "gone").startswith("no such data set")
    touch(tmp_path, "a.mp4")
    assert "neither a folder nor a .csv" in refusal(tmp_path / "a.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_an_unreadable_folder_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4")
    (tmp_path / "run").chmod(0)
    assert "cannot list the folder" in refusal(tmp_path)


def test_a_csv_gives_normalised_ids_relative_to_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "v/b.mp4", "v/a,1.mp4", "far/c.mp4")
    far = tmp_path / "far/c.mp4"
    source = write_csv(tmp_path, "path,label", "./v//b.mp4, run ", '"v/a,1.mp4",walk', "", f"{far},run")
    clips = {clip.id: clip for clip in list_clips(source)}
    assert list(clips) == sorted(clips) == [str(far), "v/a,1.mp4", "v/b.mp4"]
    assert {clip.id: clip.label for clip in clips.values()} == {str(far): "run", "v/a,1.mp4": "walk", "v/b.mp4": "run"}
    assert all(Path(clip.path).read_bytes() == b"x" for clip in clips.values())


def test_a_csv_may_have_a_byte_order_mark_other_columns_and_broken_utf8_names(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    touch(tmp_path, name)
    source = tmp_path / "clips.CSV"
    source.write_bytes(b"\xef\xbb\xbfseconds, Path,LABEL\r\n3.5,caf\xe9.mp4,eat\r\n")
    assert [(clip.id, clip.label) for clip in list_clips(source)] == [(name, "eat")]


def test_a_csv_name_may_hold_a_newline_and_lines_are_still_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a\nb.mp4")
    source = write_csv(tmp_path, "path,label", '"a\nb.mp4",run', "gone.mp4,run")
    assert "1 of 2 files are missing (line 4: 'gone.mp4')" in refusal(source)


def test_missing_files_are_counted_and_the_first_few_named(tmp_path: Path) -> None:
    touch(tmp_path, "here.mp4")
    source = write_csv(tmp_path, "path,label", "here.mp4,run", *(f"gone{i}.mp4,run" for i in range(5)))
    message = refusal(source)
    assert "5 of 6 files are missing (line 3: 'gone0.mp4', line 4: 'gone1.mp4', line 5: 'gone2.mp4', ...)" in message
    assert "mend the paths" in message
    source = write_csv(tmp_path, "path,label", "a\0b.mp4,run")
    assert "1 of 1 files are missing" in refusal(source)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["path,label", "a.mp4,run", "b/../a.mp4,walk"], "'a.mp4' is listed twice; lines 2 and 3"),
        (["path,label", "a.mp4,  "], "empty label; line 2"),
        (["path,label", ",run"], "empty path; line 2"),
        (["path,label", "a.mp4"], "1 cells where the header has 2; line 2"),
        (["path,label", "a,1.mp4,run"], "3 cells where the header has 2; line 2"),
        (["a.mp4,run"], "has 0 columns called 'path'; line 1"),
        (["path,label,label", "a.mp4,run,run"], "has 2 columns called 'label'; line 1"),
        (["path,label"], "no clips;"),
        (["path,label", 'a.mp4,"run'], "not a readable CSV"),
    ],
)
def test_bad_rows_are_refused_with_their_line(tmp_path: Path, lines: list[str], expected: str) -> None:
    touch(tmp_path, "a.mp4")
    message = refusal(write_csv(tmp_path, *lines))
    assert expected in message
    assert "clips.csv" in message


def test_the_split_column_divides_classes(tmp_path: Path) -> None:
    lines = ["path,label,split", "a,run,train", "b,run, train", "c,jump,train", "d,walk,test", "e,sit,"]
    assert csv_split(write_csv(tmp_path, *lines)) == {"train": ["jump", "run"], "test": ["walk"]}
    assert csv_split(write_csv(tmp_path, "path,label", "a,run")) is None


def test_a_split_column_that_divides_a_class_or_names_another_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class 'run' is in 'train' and in 'test'; line 3 of .*"):
        csv_split(write_csv(tmp_path, "path,label,split", "a,run,train", "b,run,test"))
    with pytest.raises(UserError, match=r"unknown split 'dev'; line 2 of .*; write train, val or test"):
        csv_split(write_csv(tmp_path, "path,label,split", "a,run,dev"))


def test_a_folder_is_listed_in_the_order_of_the_ids_without_sorting_them(tmp_path: Path) -> None:
    names = ["a/b/x.mp4", "a/b.mp4", "a/b-c/x.mp4", "a.b/x.mp4", "a-b/x.mp4", "a/b0/x.mp4", "Z/\u00e9.mp4", "Z/e.mp4"]
    touch(tmp_path, *names)
    assert [clip.id for clip in open_source(tmp_path)] == sorted(names)


def test_a_source_can_be_iterated_again_and_sees_each_folder_as_it_is_then(tmp_path: Path) -> None:
    touch(tmp_path, "run/a.mp4", "walk/b.mp4")
    source = open_source(str(tmp_path))
    assert list(source) == list(source)
    first = iter(source)
    assert next(first).id == "run/a.mp4"
    touch(tmp_path, "walk/c.mp4")  # not read yet: one folder is listed at a time
    assert [clip.id for clip in first] == ["walk/b.mp4", "walk/c.mp4"]


def test_a_csv_is_read_row_by_row_in_its_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.mp4")
    source = open_source(write_csv(tmp_path, "path,label", "b.mp4,run", "a.mp4,walk", "bad"))
    clips = iter(source)
    assert [next(clips).id, next(clips).id] == ["b.mp4", "a.mp4"]
    with pytest.raises(UserError, match="line 4"):
        next(clips)


def test_a_csv_requires_the_files_that_are_asked_for(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "c.mp4")
    source = open_source(write_csv(tmp_path, "path,label", "a.mp4,run", "b.mp4,run", "memory://b.mp4,run", "c.mp4,run"))
    assert isinstance(source, Checked)
    first, missing, remote, last = source
    source.require([first, remote, last])
    with pytest.raises(UserError, match=r"1 of 2 files are missing \(line 3: 'b.mp4'\)"):
        source.require([missing, last])


def test_a_long_csv_takes_eight_bytes_a_row(tmp_path: Path) -> None:
    source = open_source(write_csv(tmp_path, "path,label", *(f"memory://{i}.mp4,run" for i in range(40_000))))
    next(iter(source))
    tracemalloc.start()
    assert sum(1 for _ in source) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 0.32 MB of hashes, twice while they are sorted, and while the array grows; as a list of ids it were 4 MB.
    assert peak < 1_500_000


def test_ids_that_share_a_hash_by_chance_are_not_refused() -> None:
    hashes = array("q", [hash("a"), hash("b"), hash("b")])
    assert first_repeat(hashes, lambda: [("a", 1), ("b", 2), ("c", 3)]) is None
    assert first_repeat(hashes, lambda: [("a", 1), ("b", 2), ("a", 3), ("b", 4)]) == ("b", 2, 4)


def test_local_names_that_look_like_urls_stay_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "odd:/run/a.mp4", "clips/b.mp4")
    monkeypatch.chdir(tmp_path)
    assert [clip.path for clip in open_source("odd://")] == [tmp_path / "odd:/run/a.mp4"]
    assert [clip.path for clip in open_source(f"file://{tmp_path}/odd:")] == [tmp_path / "odd:/run/a.mp4"]
    source = write_csv(tmp_path, "path,label", f"file://{tmp_path}/clips/b.mp4,run", "odd://run/a.mp4,run")
    assert list_clips(source) == [
        Clip(f"{tmp_path}/clips/b.mp4", f"{tmp_path}/clips/b.mp4", "run"),
        Clip("odd:/run/a.mp4", f"{tmp_path}/odd:/run/a.mp4", "run"),
    ]


def test_a_scheme_that_nothing_opens_is_named() -> None:
    with pytest.raises(UserError, match=r"no such data set: 's4://b/v', and s4:// is no scheme .*; name a folder"):
        open_source("s4://b/v")
