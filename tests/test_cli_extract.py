"""`amfir extract` and `amfir cache` on real small clips, from the command line."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from amfir.cache import Store
from amfir.pipeline.cli import cli
from amfir.pipeline.synth import generate

from .clipmaker import make_clip

PROGRAM = [sys.executable, "-c", "from amfir.pipeline.cli import main; main()"]
SMALL = ("--streams", "rgb", "--frames", "2", "--size", "64", "--workers", "1", "--device", "cpu")
LATIN = os.fsdecode(b"caf\xe9\n1.mp4")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four good clips of two classes, and three files that are none."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("run/a.mp4", "run/b.mp4", "jump/a.mp4", f"jump/{LATIN}"):
        (folder / name).parent.mkdir(exist_ok=True)
        make_clip(folder / name, num_frames=3, seed=len(name))
    (folder / "run/empty.mp4").touch()
    (folder / "run/playlist.mp4").write_text(f"ffconcat version 1.0\nfile '{folder}/run/a.mp4'\n")
    (folder / "jump/dangling.mp4").symlink_to(folder / "nowhere.mp4")
    return folder


@pytest.fixture(scope="module")
def extracted(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A cache of these videos, and what the command said that made it."""
    cache = tmp_path_factory.mktemp("extracted") / "cache"
    return cache, run("extract", videos, "--cache", cache, *SMALL, "--json")


@pytest.fixture
def store(extracted: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of the cache, to be changed."""
    return Path(shutil.copytree(extracted[0], tmp_path / "cache"))


def segments(cache: Path) -> list[Path]:
    return sorted(cache.glob("rgb/segments/*.h5"))


def flip_a_byte(path: Path) -> None:
    times = path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times, times))


def test_good_clips_are_extracted_and_bad_ones_listed_with_reasons(extracted: tuple[Path, Result]) -> None:
    cache, result = extracted
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    assert list(report) == ["clips", "done", "skipped", "failed", "changed", "seconds", "clips_per_second"]
    assert [report[key] for key in ("clips", "done", "skipped", "failed")] == [7, 4, 0, 3]
    assert report["clips_per_second"] == pytest.approx(4 / report["seconds"])
    for line in ("run/empty.mp4  empty-file:", "run/playlist.mp4  forbidden-format:", "jump/dangling.mp4  missing:"):
        assert line in result.stderr
    assert "The file has no bytes; copy or download it again." in result.stderr
    assert f"3 of 7 clips failed; amfir cache failures {cache} lists all" in result.stderr
    stream = Store(cache).read("rgb")
    assert list(stream.clip_ids) == sorted(["run/a.mp4", "run/b.mp4", "jump/a.mp4", f"jump/{LATIN}"])
    assert set(stream.labels) == {"run", "jump"}


def test_the_same_command_again_skips_what_is_there(videos: Path, store: Path) -> None:
    before = segments(store)
    result = run("extract", videos, "--cache", store, *SMALL)
    assert result.exit_code == 3
    assert result.stdout.startswith("7 clips: 0 done, 4 skipped (in the cache before), 3 failed; ")
    assert segments(store) == before


def test_failures_are_tried_again_on_request(videos: Path, store: Path, tmp_path: Path) -> None:
    mended = Path(shutil.copytree(videos, tmp_path / "videos", symlinks=True))
    shutil.copy2(videos / "run/a.mp4", mended / "run/empty.mp4")
    assert json.loads(run("extract", mended, "--cache", store, *SMALL, "--json").stdout)["done"] == 0
    report = json.loads(run("extract", mended, "--cache", store, *SMALL, "--json", "--retry-failed").stdout)
    assert (report["done"], report["failed"]) == (1, 2)


def test_changed_videos_are_mentioned(videos: Path, store: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(videos, tmp_path / "videos", symlinks=True))
    os.utime(changed / "run/a.mp4", ns=(1, 1))
    assert "1 clips have changed since" in run("extract", changed, "--cache", store, *SMALL).stderr


def test_another_spec_is_refused_with_both_sides(videos: Path, store: Path) -> None:
    result = run("extract", videos, "--cache", store, *SMALL, "--frames", "3")
    assert result.exit_code == 2
    assert "frames: 2 in the cache, 3 asked" in result.stderr.splitlines()[-1]
    assert result.stdout == ""


def test_damage_is_found_refused_and_made_anew(videos: Path, store: Path, extracted: tuple[Path, Result]) -> None:
    damaged = segments(store)[0]
    flip_a_byte(damaged)
    result = run("cache", "verify", store)
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith(f"{damaged}: the file's bytes changed")
    refused = run("cache", "failures", store)
    assert refused.exit_code == 2
    assert damaged.name in refused.stderr
    assert refused.stderr.count("\n") == 1
    report = json.loads(run("extract", videos, "--cache", store, *SMALL, "--json").stdout)
    assert report["done"] == 4
    assert run("cache", "verify", store).exit_code == 0
    assert np.array_equal(Store(store).read("rgb").features, Store(extracted[0]).read("rgb").features)


def test_verify_says_the_same_in_json(store: Path) -> None:
    assert json.loads(run("cache", "verify", store, "--json").stdout) == {"damaged": []}
    assert run("cache", "verify", store).stdout == f"{store}: all files and rows are whole\n"
    flip_a_byte(segments(store)[0])
    result = run("cache", "verify", store, "--json")
    assert result.exit_code == 3
    assert [Path(damage["path"]) for damage in json.loads(result.stdout)["damaged"]] == [segments(store)[0]]


def test_info_describes_streams_and_specs(store: Path) -> None:
    about = json.loads(run("cache", "info", store, "--json").stdout)
    fingerprint = Store(store).spec("rgb").fingerprint
    assert list(about) == ["rgb"]
    assert [about["rgb"][key] for key in ("clips", "classes", "failures", "packed")] == [4, 2, 3, False]
    assert about["rgb"]["fingerprint"] == fingerprint
    assert about["rgb"]["spec"]["settings"]["backbone"]["name"] == "efficientnet-lite0"
    text = run("cache", "info", store).stdout
    header, row, *_ = text.splitlines()
    assert header.split()[:4] == ["stream", "clips", "classes", "failures"]
    assert row.split()[:4] == ["rgb", "4", "2", "3"]
    assert row.endswith(fingerprint[:12])
    assert "  settings.backbone.name: efficientnet-lite0\n" in text


def test_failures_are_listed_with_what_to_do(store: Path) -> None:
    listed = json.loads(run("cache", "failures", store, "--json").stdout)["failures"]
    assert {(item["id"], item["reason"], item["label"], item["stream"]) for item in listed} == {
        ("jump/dangling.mp4", "missing", "jump", "rgb"),
        ("run/empty.mp4", "empty-file", "run", "rgb"),
        ("run/playlist.mp4", "forbidden-format", "run", "rgb"),
    }
    assert all(item["message"] and item["what_to_do"] for item in listed)
    result = run("cache", "failures", store)
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 3)
    assert "forbidden-format: The container is not on the list" in result.stderr


def test_pack_merges_segments_and_keeps_the_features(store: Path) -> None:
    before = np.array(Store(store).read("rgb").features)
    packed = json.loads(run("cache", "pack", store, "--json").stdout)
    assert packed["rgb"]["after"]["packed"]
    assert segments(store) == []
    assert np.array_equal(Store(store).read("rgb").features, before)
    assert run("cache", "pack", store).stdout.startswith("rgb: 4 clips, 0 segments merged, ")


def test_a_csv_is_extracted_under_its_own_names(videos: Path, tmp_path: Path) -> None:
    source = tmp_path / "clips.csv"
    source.write_text(f"path,label\n{videos}/run/a.mp4,running\n")
    result = run("extract", source, "--cache", tmp_path / "cache", *SMALL)
    assert result.exit_code == 0, result.stderr
    stream = Store(tmp_path / "cache").read("rgb")
    assert (list(stream.clip_ids), list(stream.labels)) == ([f"{videos}/run/a.mp4"], ["running"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--rgb", "efficientnet-lite1"), "unknown backbone 'efficientnet-lite1'; did you mean 'efficientnet-lite0'?"),
        (("--streams", "rgb,flwo"), "unknown stream 'flwo'; did you mean 'flow'?"),
        (("--streams", ""), "streams are none"),
        (("--frames", "0"), "frames is 0"),
        (("--views", "-1"), "views is -1"),
        (("--workers", "0"), "workers is 0"),
        (("--batch-size", "-4"), "batch_size is -4"),
        (("--size", "0"), "size is 0"),
        (("--timeout", "0"), "timeout_seconds is 0"),
        (("--frames", "many"), "'many' is not a valid integer"),
        (("--fit", "stretch"), "'stretch' is not one of"),
        (("--rgb-weights", "gone.pth"), "'gone.pth' does not exist"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_bad_options_are_one_line(videos: Path, tmp_path: Path, options: tuple[str, ...], expected: str) -> None:
    result = run("extract", videos, "--cache", tmp_path / "cache", *SMALL, *options)
    assert result.exit_code == 2
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert result.stderr.endswith(errors[0] + "\n")
    assert expected in errors[0]


def test_a_cache_among_the_videos_is_refused(videos: Path) -> None:
    for cache in (videos, videos / "cache"):
        result = run("extract", videos, "--cache", cache)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: the cache would lie among the videos")


def test_empty_and_missing_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "clips.csv").write_text("path,label\ngone.mp4,run\n")
    for source, expected in (("empty", "no clips"), ("gone", "no such data set"), ("clips.csv", "1 of 1 files are")):
        result = run("extract", tmp_path / source, "--cache", tmp_path / "cache")
        assert result.exit_code == 2
        assert expected in result.stderr
        assert not (tmp_path / "cache").exists()


def test_a_folder_that_is_no_cache_is_refused(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/dear.txt").touch()
    result = run("extract", videos, "--cache", tmp_path / "letters", *SMALL)
    assert result.exit_code == 2
    assert "holds other files and no cache" in result.stderr


def test_the_first_failures_are_listed_and_the_rest_counted(tmp_path: Path) -> None:
    (tmp_path / "videos/run").mkdir(parents=True)
    for number in range(25):
        (tmp_path / f"videos/run/{number:02d}.mp4").touch()
    result = run("extract", tmp_path / "videos", "--cache", tmp_path / "cache", *SMALL)
    assert result.exit_code == 3
    assert sum("  empty-file: " in line for line in result.stderr.splitlines()) == 20
    assert "25 of 25 clips failed" in result.stderr


def test_ctrl_c_keeps_what_is_done_and_prints_the_command_that_resumes(tmp_path: Path) -> None:
    clips = generate(tmp_path / "my videos", classes=2, clips_per_class=20, size=32, num_frames=4)
    command = ["extract", str(tmp_path / "my videos"), "--cache", str(tmp_path / "cache")]
    command += ["--streams", "rgb", "--frames", "4", "--device", "cpu"]
    # A session of its own, so that the signal reaches the decoder processes too, as it does from a terminal.
    process = subprocess.Popen([*PROGRAM, *command], stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for_the_stream(tmp_path / "cache/rgb", process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"Resume with: amfir extract '{tmp_path}/my videos' --cache {tmp_path}/cache --streams rgb" in errors
    kept = len(Store(tmp_path / "cache").done("rgb"))
    report = json.loads(run(*command, "--json").stdout)
    assert report["done"] + report["skipped"] == len(clips)
    assert report["skipped"] == kept < len(clips)


def wait_for_the_stream(stream: Path, process: "subprocess.Popen[str]") -> None:
    """Return when the job has made its stream, so that it is at work."""
    while not (stream / "spec.json").exists():
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
