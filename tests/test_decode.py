"""Decoding of good clips: the right frames, whole, upright, in little memory."""

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from amfir.extract import decode as decoding
from amfir.extract.decode import DecodeError, Sampled, Want, decode_clip
from amfir.extract.sampling import Sampling, frame_positions, successors
from amfir.extract.scan import PacketIndex, scan_packets

MakeClip = Callable[..., Path]
SAMPLING = Sampling(frames=8, views=3)


def decode(path: Path, sampling: Sampling = SAMPLING, colour: int | None = 48, grey: int | None = None) -> Sampled:
    wants = {"rgb": colour and Want(colour), "flow": grey and Want(grey, pairs=True)}
    return decode_clip(path, sampling, {name: want for name, want in wants.items() if want}, clip_id="x")


def all_frames(path: Path) -> list[tuple[NDArray[np.uint8], float | None]]:
    """Decode the whole clip plainly."""
    with av.open(path) as container:
        return [(rgb(frame), frame.time) for frame in container.decode(video=0)]


def rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    return np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which of the two ways of decoding were taken."""
    taken: list[str] = []
    for name in ("_collect_by_seeking", "_collect_in_sequence"):
        original = getattr(decoding, name)

        def recorded(*args: object, original: Callable[..., object] = original, name: str = name) -> object:
            taken.append(name.rpartition("_")[2])
            return original(*args)

        monkeypatch.setattr(decoding, name, recorded)
    return taken


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("gop", [1, 12, 250])
@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", {}),
        ("mkv", "libx264", {}),
        ("mp4", "libx264", {"x264-params": "open-gop=1"}),
        ("mkv", "libx264", {"x264-params": "open-gop=1"}),
        ("mp4", "mpeg4", {}),
    ],
)
def test_seeking_gives_the_frames_of_full_decoding(
    make_clip: MakeClip, tmp_path: Path, passes: list[str], suffix: str, codec: str, options: dict[str, str],
    gop: int, b_frames: int,
) -> None:  # fmt: skip
    path = make_clip(tmp_path / f"a.{suffix}", num_frames=300, gop=gop, b_frames=b_frames, codec=codec, options=options)
    check_against_full_decoding(path, 300)
    assert passes == ["seeking"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.avi", {"codec": "mpeg4"}),
        ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
        ("a.ts", {"b_frames": 2}),
        ("a.mpg", {"codec": "mpeg2video"}),
        ("a.flv", {}),
        ("a.webm", {"codec": "libvpx"}),
        ("a.h264", {"container_format": "h264", "b_frames": 2}),
        ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
    ],
)
def test_containers_without_an_exact_index_are_decoded_in_sequence(
    make_clip: MakeClip, tmp_path: Path, passes: list[str], name: str, options: dict[str, str]
) -> None:
    path = make_clip(tmp_path / name, num_frames=60, **options)
    check_against_full_decoding(path, 60)
    assert passes[0] == "sequence"


def check_against_full_decoding(path: Path, num_frames: int) -> None:
    frames = all_frames(path)
    assert len(frames) == num_frames
    sampled = decode(path, grey=48)
    positions = frame_positions(num_frames, SAMPLING, "x")
    assert sampled.num_frames == num_frames
    assert sampled.arrays["rgb"].shape == (3, 8, 48, 64, 3)
    assert sampled.arrays["flow"].shape == (3, 8, 2, 48, 64)
    firsts, seconds = successors(positions, num_frames)
    for at in np.ndindex(positions.shape):
        assert np.array_equal(sampled.arrays["rgb"][at], frames[positions[at]][0])
        for grey, position in zip(sampled.arrays["flow"][at], (firsts[at], seconds[at]), strict=True):
            assert np.array_equal(grey, cv2.cvtColor(frames[position][0], cv2.COLOR_RGB2GRAY))
        time = frames[positions[at]][1]
        assert sampled.times["rgb"][at] == pytest.approx(positions[at] / 25 if time is None else time)


def test_seeking_decodes_few_frames(make_clip: MakeClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=300, gop=12)
    sought = decoding._sought_frames
    decoded = 0

    class Counting:
        """A container that counts the frames it decodes."""

        def __init__(self, container: av.container.InputContainer) -> None:
            self.inner = container

        def seek(self, offset: int, *, stream: av.VideoStream) -> None:
            self.inner.seek(offset, stream=stream)

        def decode(self, stream: av.VideoStream) -> object:
            nonlocal decoded
            for frame in self.inner.decode(stream):
                decoded += 1
                yield frame

    monkeypatch.setattr(
        decoding,
        "_sought_frames",
        lambda container, *rest: sought(Counting(container), *rest),  # type: ignore[arg-type]
    )
    decode(path, Sampling(frames=8))
    assert 8 <= decoded <= 8 * 12


def test_wrong_time_stamps_fall_back_to_full_decoding(
    make_clip: MakeClip, tmp_path: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=60)

    def shifted(container: av.container.InputContainer, stream: av.VideoStream) -> PacketIndex:
        index = scan_packets(container, stream)
        index.pts[30:] += 7
        return index

    monkeypatch.setattr(decoding, "scan_packets", shifted)
    check_against_full_decoding(path, 60)
    assert passes == ["seeking", "sequence"]


def test_positions_come_from_the_frames_that_decode(make_clip: MakeClip, tmp_path: Path, passes: list[str]) -> None:
    # A stream that starts in the middle of a group: the packets before its first key frame give no picture.
    whole = make_clip(tmp_path / "whole.ts", num_frames=60, gop=20)
    with av.open(whole) as source, av.open(tmp_path / "cut.ts", "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size][10:]
        for packet in packets:
            packet.stream = stream
            target.mux(packet)
    frames = all_frames(tmp_path / "cut.ts")
    assert (len(packets), len(frames)) == (50, 40)
    sampled = decode(tmp_path / "cut.ts", Sampling(frames=8))
    assert sampled.num_frames == 40
    expected = [frames[position][0] for position in frame_positions(40, Sampling(frames=8), "x")[0]]
    assert np.array_equal(sampled.arrays["rgb"][0], expected)
    assert passes == ["sequence", "sequence"]


def test_time_stamps_are_those_of_a_variable_rate(make_clip: MakeClip, tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.5, 0.9, 1.0, 2.0, 2.04]
    path = make_clip(tmp_path / "a.mp4", num_frames=8, times=times)
    assert decode(path, Sampling(frames=8)).times["rgb"][0] == pytest.approx(times, abs=1e-4)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_rotation_is_applied_as_opencv_does(make_clip: MakeClip, tmp_path: Path, rotation: int, suffix: str) -> None:
    path = make_clip(tmp_path / f"a.{suffix}", num_frames=1, rotation=rotation)
    sampled = decode(path, Sampling(frames=1))
    capture = cv2.VideoCapture(str(path))
    _, expected = capture.read()
    capture.release()
    image = sampled.arrays["rgb"][0, 0]
    assert image.shape == ((48, 64, 3) if rotation % 180 == 0 else (64, 48, 3))
    assert np.abs(image - expected[..., ::-1].astype(float)).mean() < 3


@pytest.mark.parametrize(
    ("pix_fmt", "codec", "suffix", "width", "height"),
    [
        ("yuv420p10le", "libx264", "mp4", 64, 48),
        ("yuv444p", "libx264", "mp4", 64, 48),
        ("yuv444p", "libx264", "mp4", 63, 47),
        ("gray", "libx264", "mp4", 64, 48),
        ("yuvj420p", "mjpeg", "avi", 61, 45),
        ("rgba", "png", "mov", 64, 48),
    ],
)
def test_odd_pixel_formats_and_sizes_show_the_picture(
    make_clip: MakeClip, tmp_path: Path, pix_fmt: str, codec: str, suffix: str, width: int, height: int
) -> None:
    step = np.full((height, width, 3), 60, np.uint8)
    step[:, width // 2 :] = 180
    path = make_clip(
        tmp_path / f"a.{suffix}", frames=[step] * 4, width=width, height=height, codec=codec, pix_fmt=pix_fmt
    )
    sampled = decode(path, Sampling(frames=2), colour=height, grey=height)
    # Within 11 levels: grey clips do not say which range of levels they use.
    assert np.median(np.abs(sampled.arrays["rgb"][0, 0].astype(int) - step)) <= 11
    assert np.median(np.abs(sampled.arrays["flow"][0, 0, 1].astype(int) - step[..., 0])) <= 11


def test_frames_are_reduced_by_area(make_clip: MakeClip, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", width=128, height=96)
    sampled = decode(path, Sampling(frames=4), colour=48, grey=24)
    full = all_frames(path)[frame_positions(12, Sampling(frames=4), "x")[0, 1]][0]
    block = full.reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(sampled.arrays["rgb"][0, 1] - block).max() <= 0.5
    small = cv2.resize(full, (32, 24), interpolation=cv2.INTER_AREA)
    assert np.array_equal(sampled.arrays["flow"][0, 1, 0], cv2.cvtColor(small, cv2.COLOR_RGB2GRAY))


def test_a_change_of_resolution_keeps_the_first_size(make_clip: MakeClip, tmp_path: Path) -> None:
    small = make_clip(tmp_path / "1.h264", container_format="h264", num_frames=10, width=64, height=48)
    large = make_clip(tmp_path / "2.h264", container_format="h264", num_frames=10, width=160, height=160)
    path = tmp_path / "a.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    assert {image.shape for image, _ in all_frames(path)} == {(48, 64, 3), (160, 160, 3)}
    sampled = decode(path, Sampling(frames=4), grey=24)
    assert sampled.arrays["rgb"].shape == (1, 4, 48, 64, 3)
    assert sampled.arrays["flow"].shape == (1, 4, 2, 24, 32)


def test_extreme_aspects_stay_small(make_clip: MakeClip, tmp_path: Path) -> None:
    sampled = decode(make_clip(tmp_path / "a.mp4", width=2048, height=2), Sampling(frames=2), colour=100)
    assert sampled.arrays["rgb"].shape == (1, 2, 100, 400, 3)


def test_a_short_clip_repeats_frames(make_clip: MakeClip, tmp_path: Path) -> None:
    sampled = decode(make_clip(tmp_path / "a.mp4", num_frames=2), Sampling(frames=8), grey=48)
    assert sampled.num_frames == 2
    assert np.array_equal(sampled.arrays["rgb"][0, 0], sampled.arrays["rgb"][0, 3])
    assert not np.array_equal(sampled.arrays["rgb"][0, 0], sampled.arrays["rgb"][0, 7])
    assert np.array_equal(sampled.arrays["flow"][0, 0], sampled.arrays["flow"][0, 7])


def test_one_frame_gives_images_and_no_pairs(make_clip: MakeClip, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=1)
    sampled = decode(path, Sampling(frames=8), grey=48)
    assert sampled.arrays["rgb"].shape == (1, 8, 48, 64, 3)
    assert "flow" not in sampled.arrays
    with pytest.raises(DecodeError) as caught:
        decode(path, Sampling(frames=8), colour=None, grey=48)
    assert caught.value.reason == "single-frame"


def test_only_what_is_asked_for_is_made(make_clip: MakeClip, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    assert set(decode(path, grey=None).arrays) == {"rgb"}
    assert set(decode(path, colour=None, grey=24).arrays) == {"flow"}


def test_other_streams_are_left_alone(make_clip: MakeClip, tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mkv", num_frames=30)
    with av.open(path) as source, av.open(tmp_path / "b.mkv", "w") as target:
        sound = target.add_stream("pcm_s16le", rate=8000)
        video = target.add_stream_from_template(source.streams.video[0])
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), format="s16", layout="mono")
        silence.sample_rate = 8000
        target.mux(sound.encode(silence))
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                target.mux(packet)
    check_against_full_decoding(tmp_path / "b.mkv", 30)


@pytest.mark.parametrize("name", ["long.mp4", "long.avi"])
def test_memory_does_not_grow_with_the_clip(make_clip: MakeClip, tmp_path: Path, name: str) -> None:
    texture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    path = make_clip(tmp_path / name, frames=(texture for _ in range(3000)), gop=250, codec="mpeg4")
    decode(path)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        decode(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    gc.collect()
    assert peak < 2_000_000  # all frames would be 27,648,000 bytes
    assert abs(len(gc.get_objects()) - objects) < 200


def test_files_are_closed(make_clip: MakeClip, tmp_path: Path) -> None:
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    path = make_clip(tmp_path / "a.mp4")
    (tmp_path / "bad.mp4").write_bytes(path.read_bytes()[:1000])
    before = len(list(descriptors.iterdir()))
    for _ in range(5):
        decode(path)
        with pytest.raises(DecodeError):
            decode(tmp_path / "bad.mp4")
    assert len(list(descriptors.iterdir())) == before
