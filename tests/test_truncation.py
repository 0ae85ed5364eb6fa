"""The size that a file's own container structure promises."""

import struct
from pathlib import Path

import pytest

from amfir.extract.truncation import declared_size

from .clipmaker import make_clip


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"container_options": {"movflags": "faststart"}}),
        ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("a.mkv", {}),
        ("a.webm", {"codec": "libvpx-vp9"}),
    ],
)
def test_the_declared_size_of_a_whole_file_is_its_size(name: str, options: dict[str, object], tmp_path: Path) -> None:
    path = make_clip(tmp_path / name, **options)  # type: ignore[arg-type]
    with path.open("rb") as file:
        assert declared_size(file) == path.stat().st_size


def box(kind: bytes, size: int, *, wide: bool = False) -> bytes:
    head = struct.pack(">I4sQ", 1, kind, size) if wide else struct.pack(">I4s", size, kind)
    return head.ljust(size, b"\0")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"RIFF" + struct.pack("<I", 500) + b"AVI ", 500),
        (b"RIFF" + struct.pack("<I", 0) + b"AVI ", 0),
        (b"RIFF" + b"\xff" * 4 + b"AVI ", 0),
        (b"RIFF" + struct.pack("<I", 500) + b"WAVE", 0),
        (box(b"ftyp", 24) + box(b"mdat", 40, wide=True), 64),
        (box(b"ftyp", 24) + struct.pack(">I4sQ", 1, b"mdat", 1 << 40), 24 + (1 << 40)),
        (box(b"ftyp", 24) + struct.pack(">I4s", 0, b"mdat") + bytes(50), 24),
        (box(b"ftyp", 24) + struct.pack(">I4s", 3, b"mdat") + bytes(50), 24),
        (bytes.fromhex("1a45dfa3 82 0000 18538067 84 00000000"), 16),
        (bytes.fromhex("1a45dfa3 82 0000 18538067 4100 00000000"), 7 + 6 + 256),
        (bytes.fromhex("1a45dfa3 82 0000 18538067 01ffffffffffffff"), 0),
        (bytes.fromhex("1a45dfa3 82 0000 00"), 0),
        (bytes.fromhex("1a45dfa3 82 0000 18538067"), 0),
        (b"GIF89a", 0),
        (b"", 0),
    ],
)
def test_the_declared_size_is_read_from_the_outermost_elements(data: bytes, expected: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with path.open("rb") as file:
        assert declared_size(file) == expected
