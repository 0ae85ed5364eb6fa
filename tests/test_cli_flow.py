"""`amfir flow`: a clip's flow beside its frames."""

import json
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from amfir.extract.flow import FarnebackParameters, OpenCVFarneback
from amfir.extract.flow.wheel import colour
from amfir.pipeline.cli import cli
from amfir.pipeline.flow_video import FlowLook, render_flow

from .clipmaker import moving_texture

Maker = Callable[..., Path]
SPEED = 5**0.5
"""Displacement of the texture in the clips that the tests make, (2, 1) pixels a frame."""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["flow", *map(str, arguments)])


def video_frames(path: Path) -> NDArray[np.uint8]:
    with av.open(path) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def picture(path: Path) -> NDArray[np.uint8]:
    image = cv2.imread(str(path))
    assert image is not None
    return image[..., ::-1].astype(np.uint8)


@pytest.fixture
def clip(make_clip: Maker, tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", num_frames=10, width=96, height=64, fps=12)


def test_a_video_shows_every_frame_beside_its_flow(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "flow.mp4"
    result = run(clip, "--out", out, "--size", 64, "--max-flow", 3, "--json")
    assert result.exit_code == 0, result.output
    about = json.loads(result.stdout)
    assert (about["out"], about["frames"], about["full_pixels"]) == (str(out), 10, 3.0)
    assert about["mean_pixels"] == pytest.approx(SPEED, abs=0.3)
    assert about["max_pixels"] >= about["mean_pixels"]
    assert "10/10" in result.stderr
    shown = video_frames(out)
    assert shown.shape == (10, 64, 192, 3)
    # The encoder loses little: left the clip's own frames, right the colour of (2, 1) away from the wheel.
    assert np.abs(shown[:, :, :96].astype(int) - video_frames(clip)).mean() < 6
    expected = colour(np.array([[[2.0, 1.0]]]), 3.0)[0, 0]
    assert np.abs(shown[:, 40:56, 110:150].astype(int) - expected).mean() < 12
    with av.open(out) as container:
        assert container.streams.video[0].average_rate == 12


def test_the_last_frame_has_the_flow_of_its_predecessor(clip: Path, tmp_path: Path) -> None:
    calls = 0

    def growing(pairs: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal calls
        calls += 1
        return np.full((1, *pairs.shape[2:], 2), (calls, 0), np.float32)

    summary = render_flow(clip, tmp_path / "flow.mp4", growing, FlowLook(64, full_pixels=10.0))
    assert calls == 9
    assert summary.frames == 10
    assert summary.max_pixels == 9
    assert summary.mean_pixels == pytest.approx((sum(range(1, 10)) + 9) / 10)
    green = video_frames(tmp_path / "flow.mp4")[:, 40:60, 110:150, 1].mean(axis=(1, 2))
    assert np.all(np.diff(green[:9]) < -10)
    assert abs(green[9] - green[8]) < 3


def test_flow_points_from_a_frame_to_its_successor(clip: Path, tmp_path: Path) -> None:
    pairs: list[NDArray[np.uint8]] = []

    def keep(pair: NDArray[np.uint8]) -> NDArray[np.float32]:
        pairs.append(pair)
        return np.zeros((1, *pair.shape[2:], 2), np.float32)

    render_flow(clip, tmp_path / "flow.mp4", keep, FlowLook(64, full_pixels=1.0))
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in video_frames(clip)]
    for number, pair in enumerate(pairs):
        np.testing.assert_array_equal(pair[0], np.stack([greys[number], greys[number + 1]]))


def test_a_sheet_shows_frames_over_their_flow(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "flow.PNG"
    result = run(clip, "--out", out, "--size", 64, "--max-flow", 3, "--frames", 5)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out}: 5 frames; motion 2.")
    assert "5/5" in result.stderr
    sheet = picture(out)
    frames = video_frames(clip)
    places = []
    for position in (1, 3, 5, 7, 9):
        found = cv2.matchTemplate(sheet, frames[position], cv2.TM_SQDIFF)
        assert found.min() < 64 * 96 * 3
        _, _, (left, top), _ = cv2.minMaxLoc(found)
        places.append((top, left))
        middle = sheet[top + 64 + 20 : top + 128 - 20, left + 20 : left + 76]
        assert np.abs(middle.astype(int) - colour(np.array([[[2.0, 1.0]]]), 3.0)[0, 0]).mean() < 12
    assert places == sorted(places)
    assert len(set(places)) == 5
    assert 0.8 < sheet.shape[1] / sheet.shape[0] < 2.2


def test_a_clip_shorter_than_the_sheet_is_shown_once(make_clip: Maker, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "short.mp4", num_frames=3)
    result = run(clip, "--out", tmp_path / "flow.png", "--size", 48, "--json")
    assert json.loads(result.stdout)["frames"] == 3


@pytest.mark.parametrize("suffix", [".mp4", ".png"])
def test_the_full_colour_is_what_most_of_the_clip_stays_under(clip: Path, tmp_path: Path, suffix: str) -> None:
    about = json.loads(run(clip, "--out", tmp_path / f"flow{suffix}", "--size", 64, "--json").stdout)
    assert about["mean_pixels"] < about["full_pixels"] < about["max_pixels"]
    assert about["full_pixels"] < 1.5 * SPEED


def test_a_still_clip_stays_white_but_for_the_wheel_and_its_maximum(make_clip: Maker, tmp_path: Path) -> None:
    still = [moving_texture(1, 64, 48)[0]] * 6
    clip = make_clip(tmp_path / "still.mkv", frames=still, codec="ffv1")
    about = json.loads(run(clip, "--out", tmp_path / "flow.mp4", "--size", 144, "--json").stdout)
    assert about["full_pixels"] == 1.0
    flow = video_frames(tmp_path / "flow.mp4")[:, :, 192:].astype(int)
    assert flow[:, :, 16:130].min() > 220
    assert flow[:, 70:, 16:].min() > 220
    wheel, text = flow[0, 8:36, -36:-8], flow[0, 38:56, -60:]
    assert (wheel.max(axis=-1) - wheel.min(axis=-1)).max() > 150
    assert text.min() < 120
    assert (text.max(axis=-1) - text.min(axis=-1)).max() < 60


def test_odd_and_turned_frames_become_even_and_upright(make_clip: Maker, tmp_path: Path) -> None:
    odd = make_clip(tmp_path / "odd.mkv", num_frames=3, width=51, height=45, codec="ffv1")
    assert run(odd, "--out", tmp_path / "odd.mp4", "--size", 45).exit_code == 0
    assert video_frames(tmp_path / "odd.mp4").shape == (3, 46, 102, 3)
    plain = make_clip(tmp_path / "plain.mp4", num_frames=3, width=64, height=48)
    turned = make_clip(tmp_path / "turned.mp4", num_frames=3, width=64, height=48, rotation=90)
    assert run(turned, "--out", tmp_path / "flow.mp4", "--size", 48).exit_code == 0
    shown = video_frames(tmp_path / "flow.mp4")
    assert shown.shape == (3, 64, 96, 3)
    upright = np.rot90(video_frames(plain)[1])
    assert np.abs(shown[1, :, :48].astype(int) - upright).mean() < 6


def test_a_clip_that_changes_its_resolution_keeps_the_first_one(make_clip: Maker, tmp_path: Path) -> None:
    wide = make_clip(tmp_path / "a.h264", num_frames=5, width=96, height=64, container_format="h264")
    narrow = make_clip(tmp_path / "b.h264", num_frames=5, width=48, height=64, container_format="h264")
    clip = tmp_path / "both.h264"
    clip.write_bytes(wide.read_bytes() + narrow.read_bytes())
    result = run(clip, "--out", tmp_path / "flow.mp4", "--size", 64, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["frames"] == 10
    assert video_frames(tmp_path / "flow.mp4").shape == (10, 64, 192, 3)


def test_torch_computes_the_same_flow(clip: Path, tmp_path: Path, one_thread: None) -> None:
    options = ("--size", 64, "--frames", 2, "--json")
    by_torch = json.loads(run(clip, "--out", tmp_path / "a.png", "--flow-backend", "torch", *options).stdout)
    by_opencv = json.loads(run(clip, "--out", tmp_path / "b.png", *options).stdout)
    assert by_torch["mean_pixels"] == pytest.approx(by_opencv["mean_pixels"], abs=1e-3)


def refused(clip: Path, out: Path, expected: str) -> None:
    """The command ends with one line, and leaves the folder as it was."""
    before = {path: path.read_bytes() for path in clip.parent.iterdir() if path.is_file()}
    result = run(clip, "--out", out, "--size", 48)
    assert result.exit_code == 2, result.output
    *bar, line = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert expected in line
    assert all("frame/s" in text or not text for text in bar)
    assert result.stdout == ""
    assert {path: path.read_bytes() for path in clip.parent.iterdir() if path.is_file()} == before


def test_clips_that_cannot_be_read_are_one_line_with_advice(make_clip: Maker, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    whole = make_clip(tmp_path / "whole.mp4", num_frames=30).read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    for suffix in (".mp4", ".png"):
        out = tmp_path / f"flow{suffix}"
        refused(tmp_path / "gone.mp4", out, "missing: ")
        refused(text, out, "copy or download it again")
        refused(cut, out, str(cut))
        single = make_clip(tmp_path / "single.mp4", num_frames=1)
        refused(single, out, "single-frame: the clip has one frame, flow needs two")


def test_a_frame_that_is_broken_where_none_was_sampled_leaves_no_half_file(make_clip: Maker, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", num_frames=120, gop=1, width=96, height=64)
    with av.open(clip) as container:
        packet = list(container.demux(video=0))[3]  # the samples take frames 1 and 2, then 5 and 6
        place, size = packet.pos, packet.size
    assert place is not None
    content = bytearray(clip.read_bytes())
    content[place : place + size] = b"\xff" * size
    clip.write_bytes(content)
    out = tmp_path / "flow.mp4"
    out.write_bytes(b"an older one")
    refused(clip, out, "damaged: decoding failed")


def test_a_bad_place_for_the_output_is_one_line(clip: Path, tmp_path: Path) -> None:
    refused(clip, tmp_path / "flow.gif", "let its name end in .mp4 or .png")
    refused(clip, tmp_path / "gone" / "flow.mp4", "there is no folder")
    refused(clip, clip, "the output would replace the clip itself")
    link = tmp_path / "link.mp4"
    link.symlink_to(clip)
    refused(clip, link, "the output would replace the clip itself")
    folder = tmp_path / "folder.mp4"
    folder.mkdir()
    refused(clip, folder, "is a folder")


def test_an_interrupt_leaves_what_was_there(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "flow.mp4"
    out.write_bytes(b"an older one")

    def interrupt(ready: int, total: int) -> None:
        if ready == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_flow(clip, out, OpenCVFarneback(FarnebackParameters()), FlowLook(64), interrupt)
    assert out.read_bytes() == b"an older one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "flow.mp4"]


@pytest.mark.parametrize(("option", "value"), [("--size", 8), ("--max-flow", 0), ("--frames", 0)])
def test_impossible_sizes_are_refused(clip: Path, tmp_path: Path, option: str, value: int) -> None:
    result = run(clip, "--out", tmp_path / "flow.mp4", option, value)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: Invalid value for '{option}'")
    assert not (tmp_path / "flow.mp4").exists()


def test_a_url_is_refused_as_it_was_given(tmp_path: Path) -> None:
    result = run("s3://bucket/clip.mp4", "--out", tmp_path / "flow.png")
    assert result.exit_code == 2
    assert "'s3://bucket/clip.mp4' is a URL" in result.stderr
