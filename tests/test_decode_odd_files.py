"""Broken and odd files: each has its expected outcome, none hangs, none makes the decoder open another file."""

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.stream import Disposition

from amfir.extract import container as containers
from amfir.extract import decode as decoding
from amfir.extract.decode import REASONS, DecodeError, Sampled, Want, decode_clip
from amfir.extract.sampling import Sampling

from .clipmaker import make_clip

Build = Callable[[Path], Path]


def decode(path: Path) -> Sampled:
    return decode_clip(path, Sampling(frames=4), {"rgb": Want(32), "flow": Want(32, pairs=True)}, clip_id="x")


def reason_of(path: Path) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(path)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def content(data: bytes) -> Build:
    def build(folder: Path) -> Path:
        path = folder / "x.mp4"
        path.write_bytes(data)
        return path

    return build


def cut(suffix: str, fraction: float, **options: object) -> Build:
    """Return a builder of a clip of which only the first part is there."""

    def build(folder: Path) -> Path:
        path = make_clip(folder / f"x.{suffix}", num_frames=40, width=160, height=120, **options)  # type: ignore[arg-type]
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * fraction)])
        return path

    return build


def overwritten(suffix: str, **options: object) -> Build:
    """Return a builder of a clip with 60 random bytes in its middle."""

    def build(folder: Path) -> Path:
        path = make_clip(folder / f"x.{suffix}", num_frames=40, width=160, height=120, **options)  # type: ignore[arg-type]
        data = bytearray(path.read_bytes())
        noise = np.random.default_rng(1).integers(0, 256, 60, dtype=np.uint8).tobytes()
        middle = len(data) // 2
        data[middle : middle + len(noise)] = noise
        path.write_bytes(data)
        return path

    return build


def clip(name: str, **options: object) -> Build:
    """Return a builder of a whole clip."""
    return lambda folder: make_clip(folder / name, **options)  # type: ignore[arg-type]


def header_only(folder: Path) -> Path:
    path = make_clip(folder / "x.mp4", container_options={"movflags": "faststart"})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") - 4])
    return path


def without_video_data(folder: Path) -> Path:
    """Return a whole MP4 whose header promises frames but lists none."""
    path = make_clip(folder / "x.mp4")
    data = bytearray(path.read_bytes())
    at = data.index(b"stsz") + 12  # version and flags, sample size, then the number of samples
    data[at : at + 4] = struct.pack(">I", 0)
    path.write_bytes(data)
    return path


def sound(folder: Path, name: str = "x.mp4", codec: str = "aac", cover: bool = False) -> Path:
    path = folder / name
    silence = av.AudioFrame.from_ndarray(np.zeros((2, 8192), np.float32), format="fltp", layout="stereo")
    silence.sample_rate = 44100
    with av.open(path, "w") as target:
        stream = cast(AudioStream, target.add_stream(codec, rate=44100))
        picture = target.add_stream("mjpeg", rate=1) if cover else None
        if picture:
            picture.width, picture.height, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = Disposition.attached_pic
            picture.metadata["comment"] = "Cover (front)"
        target.mux([*stream.encode(silence), *stream.encode(None)])
        if picture:
            image = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            target.mux([*picture.encode(image), *picture.encode(None)])
    return path


def mp3_with_cover(folder: Path) -> Path:
    return sound(folder, "x.mp3", "libmp3lame", cover=True)


def picture(suffix: str) -> Build:
    def build(folder: Path) -> Path:
        _, data = cv2.imencode(f".{suffix}", np.full((32, 48, 3), 90, np.uint8))
        return content(data.tobytes())(folder)

    return build


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.mp4")
    return folder / "x.mp4"


def directory(folder: Path) -> Path:
    (folder / "x.mp4").mkdir()
    return folder / "x.mp4"


def link(target: str) -> Build:
    def build(folder: Path) -> Path:
        (folder / "x.mp4").symlink_to(target)
        return folder / "x.mp4"

    return build


def named(name: bytes) -> Build:
    def build(folder: Path) -> Path:
        plain = make_clip(folder / "plain.mp4")
        path = folder / os.fsdecode(name)
        try:
            return plain.rename(path)
        except OSError:
            pytest.skip("this file system refuses the name")

    return build


def foreign_metadata(folder: Path) -> Path:
    path = make_clip(folder / "x.avi", codec="mpeg4", title="TITLE")
    data = path.read_bytes()
    assert b"TITLE" in data
    path.write_bytes(data.replace(b"TITLE", b"T\xff\xfeLE"))
    with pytest.raises(UnicodeDecodeError):
        av.open(path)
    return path


SESSION = b"""v=0
o=- 0 0 IN IP4 127.0.0.1
s=x
c=IN IP4 127.0.0.1
t=0 0
m=video 5004 RTP/AVP 96
a=rtpmap:96 H264/90000
"""

BAD: dict[str, tuple[Build, str]] = {
    "nothing there": (lambda folder: folder / "x.mp4", "missing"),
    "a file as folder": (lambda folder: content(b"x")(folder) / "x.mp4", "missing"),
    "a NUL in the name": (lambda folder: folder / "x\0.mp4", "missing"),
    "a name too long": (lambda folder: folder / ("x" * 300), "missing"),
    "zero bytes": (content(b""), "empty-file"),
    "one byte": (content(b"x"), "unknown-format"),
    "text": (content(b"This is not a video.\n" * 100), "unknown-format"),
    "zeros": (content(bytes(5000)), "unknown-format"),
    "random bytes": (content(np.random.default_rng(0).bytes(5000)), "unknown-format"),
    "mp4 without moov": (cut("mp4", 0.5), "unknown-format"),
    "mp4 header only": (header_only, "no-frames"),
    "mp4 without samples": (without_video_data, "no-frames"),
    "mp4 cut off": (cut("mp4", 0.6, container_options={"movflags": "faststart"}), "damaged"),
    "mp4 without its last bytes": (cut("mp4", 0.999, container_options={"movflags": "faststart"}), "damaged"),
    "fragmented mp4 cut off": (cut("mp4", 0.6, container_options={"movflags": "frag_keyframe+empty_moov"}), "damaged"),
    "avi cut off": (cut("avi", 0.8, codec="mpeg4"), "damaged"),
    "avi with B-frames cut off": (cut("avi", 0.8, codec="mpeg4", b_frames=2), "damaged"),
    "mkv cut off": (cut("mkv", 0.6), "damaged"),
    "webm cut off": (cut("webm", 0.6, codec="libvpx-vp9"), "damaged"),
    "flv cut off": (cut("flv", 0.6), "damaged"),
    "mp4 overwritten": (overwritten("mp4", gop=250), "damaged"),
    "avi overwritten": (overwritten("avi", codec="mpeg4"), "damaged"),
    "mkv overwritten": (overwritten("mkv", gop=250), "damaged"),
    "sound only": (sound, "no-video"),
    "mp3 with cover": (mp3_with_cover, "still-image"),
    "jpeg": (picture("jpg"), "still-image"),
    "png": (picture("png"), "still-image"),
    "bmp": (picture("bmp"), "still-image"),
    "sdp": (content(SESSION), "forbidden-format"),
    "pipe": (pipe, "not-a-file"),
    "directory": (directory, "not-a-file"),
    "link to a device": (link("/dev/zero"), "not-a-file"),
    "link to nowhere": (link("nowhere.mp4"), "missing"),
    "link to itself": (link("x.mp4"), "missing"),
}

GOOD: dict[str, tuple[Build, int]] = {
    "colon": (named(b"a:b.mp4"), 12),
    "protocol": (named(b"http:x.mp4"), 12),
    "line break": (named(b"a\nb.mp4"), 12),
    "not UTF-8": (named(b"a\xff\xfe.mp4"), 12),
    "leading dash": (named(b"-i.mp4"), 12),
    "pattern": (named(b"a%03d *?[].jpg"), 12),
    "quotes": (named('it\'s "ä" 例.mp4'.encode()), 12),
    "wrong suffix": (named(b"a.m3u8"), 12),
    "rotated": (clip("x.mp4", rotation=90), 12),
    "10 bits": (clip("x.mp4", pix_fmt="yuv420p10le"), 12),
    "4:4:4": (clip("x.mp4", pix_fmt="yuv444p"), 12),
    "odd size": (clip("x.mp4", pix_fmt="yuv444p", width=33, height=47), 12),
    "one pixel": (clip("x.avi", codec="mjpeg", pix_fmt="yuvj420p", width=1, height=1), 12),
    "one frame": (clip("x.mp4", num_frames=1), 1),
    "two frames": (clip("x.mp4", num_frames=2), 2),
    "foreign metadata": (foreign_metadata, 12),
    "animated gif": (clip("x.gif", codec="gif", pix_fmt="rgb8"), 12),
    "raw stream": (clip("x.h264", container_format="h264"), 12),
    "avi without its index": (cut("avi", 0.995, codec="mpeg4"), 40),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.timeout(20)
def test_a_bad_file_gives_its_reason(kind: str, tmp_path: Path) -> None:
    build, reason = BAD[kind]
    assert reason_of(build(tmp_path)) == reason


@pytest.mark.parametrize("kind", GOOD)
@pytest.mark.timeout(20)
def test_an_odd_but_whole_file_decodes(kind: str, tmp_path: Path) -> None:
    build, num_frames = GOOD[kind]
    sampled = decode(build(tmp_path))
    assert sampled.num_frames == num_frames
    assert set(sampled.arrays) == ({"rgb"} if num_frames == 1 else {"rgb", "flow"})
    assert np.isfinite(sampled.times["rgb"]).all()


def test_every_reason_says_what_to_do() -> None:
    assert {reason for _, reason in BAD.values()} < set(REASONS)
    for sentence in REASONS.values():
        assert sentence.endswith(".")
        assert ";" in sentence


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    path.chmod(0)
    assert reason_of(path) == "unreadable"


def test_a_system_that_refuses_to_open_is_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "a.mp4")

    def refuse(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert reason_of(path) == "unreadable"


def test_a_read_error_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reading the memory of one's own process at address 0 is an input/output error, on a file that opens.
    memory = Path("/proc/self/mem")
    if not memory.exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(decoding, "open_clip", lambda path, span: path.open("rb", buffering=0))
    assert reason_of(memory) == "unreadable"


def test_a_frame_that_the_decoder_refuses_is_damage(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.avi", codec="mjpeg", pix_fmt="yuvj420p")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\xff\xc0", b"\0\0"))
    assert reason_of(path) == "damaged"


def test_packets_without_a_key_frame_are_no_frames(tmp_path: Path) -> None:
    with av.open(make_clip(tmp_path / "whole.flv", gop=20)) as source, av.open(tmp_path / "cut.flv", "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in [packet for packet in source.demux(video=0) if packet.size][2:]:
            packet.stream = stream
            target.mux(packet)
    assert reason_of(tmp_path / "cut.flv") == "no-frames"


def test_a_frame_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "a.mp4", width=64, height=48)
    monkeypatch.setattr(containers, "MAX_PIXELS", 64 * 48)
    assert decode(path).num_frames == 12
    monkeypatch.setattr(containers, "MAX_PIXELS", 64 * 48 - 1)
    assert reason_of(path) == "too-large"


def test_a_frame_too_large_in_mid_stream_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = make_clip(tmp_path / "1.h264", container_format="h264", width=64, height=48)
    large = make_clip(tmp_path / "2.h264", container_format="h264", width=128, height=96)
    path = content(small.read_bytes() + large.read_bytes())(tmp_path)
    assert decode(path).num_frames == 24
    monkeypatch.setattr(containers, "MAX_PIXELS", 64 * 48)
    assert reason_of(path) == "damaged"


def test_a_stream_that_no_decoder_knows_is_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    assert reason_of(path) == "unknown-codec"


def concatenation(folder: Path, target: Path) -> Path:
    path = folder / "ffconcat.mp4"
    path.write_text(f"ffconcat version 1.0\nfile '{target}'\n")
    return path


def playlist(folder: Path, target: Path) -> Path:
    path = folder / "hls.m3u8"
    path.write_text(f"#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n{target}\n#EXT-X-ENDLIST\n")
    return path


def reference_movie(folder: Path, target: Path) -> Path:
    """Return an MP4 whose frames lie in another file, named by an alias record."""
    data = target.read_bytes()
    name = target.name.encode()
    assert len(name) % 2 == 0
    record = bytes(10) + b"\1" + b"v".ljust(27, b"\0") + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0")
    record += bytes(16) + struct.pack(">HH", 1, 1) + bytes(16)
    record += struct.pack(">HH", 2, len(name)) + name + struct.pack(">HH", 0xFFFF, 0)
    alias = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    at = data.index(b"url ", data.index(b"dref")) - 4
    movie = bytearray(data[:at] + alias + data[at + 12 :])
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        start = movie.index(box) - 4
        (size,) = struct.unpack(">I", movie[start : start + 4])
        movie[start : start + 4] = struct.pack(">I", size + len(alias) - 12)
    start = movie.index(b"mdat")
    (size,) = struct.unpack(">I", movie[start - 4 : start])
    movie[start + 4 : start - 4 + size] = bytes(size - 8)
    path = folder / "reference.mp4"
    path.write_bytes(movie)
    return path


REFERRING = {
    "concatenation": (concatenation, {"safe": "0"}, "forbidden-format"),
    "playlist": (playlist, {"allowed_extensions": "ALL"}, "unknown-format"),
    "reference movie": (reference_movie, {"enable_drefs": "1", "use_absolute_path": "1"}, "no-frames"),
}


@pytest.mark.parametrize("kind", REFERRING)
def test_no_other_file_is_opened(kind: str, tmp_path: Path) -> None:
    build, options, reason = REFERRING[kind]
    path = build(tmp_path, make_clip(tmp_path / "good.mp4"))
    # The trap is real: opened plainly, the frames of the other file come out.
    with av.open(path, options=options) as container:
        assert len(list(container.decode(video=0))) == 12
    assert reason_of(path) == reason


@pytest.mark.parametrize("kind", ["concatenation", "playlist"])
def test_no_other_file_is_opened_even_if_the_format_were_allowed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, _, _ = REFERRING[kind]
    monkeypatch.setattr(containers, "VIDEO_FORMATS", f"{containers.VIDEO_FORMATS},concat,hls")
    assert reason_of(build(tmp_path, make_clip(tmp_path / "good.mp4"))) in {"forbidden-format", "unknown-format"}


def test_the_hook_refuses_every_file() -> None:
    with pytest.raises(DecodeError, match=r"^forbidden-format: "):
        containers._refuse("/etc/passwd", 1, {})


def test_decoding_that_never_agrees_with_itself_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "a.avi", codec="mpeg4")
    counts = iter([11, 10])
    monkeypatch.setattr(decoding, "_collect_in_sequence", lambda *args: next(counts))
    assert reason_of(path) == "damaged"
