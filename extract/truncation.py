"""Does a file end before the place that its own container structure names?

FFmpeg takes a cut-off AVI or Matroska file for a shorter one, without a word.
"""

import os
import struct
from typing import BinaryIO

MAX_BOXES = 4096
"""Top-level elements looked at; a whole file has few, but for a long fragmented MP4."""

EBML_HEADER, SEGMENT = 0x1A45DFA3, 0x18538067


def declared_size(file: BinaryIO) -> int:
    """Return how many bytes a file must have at least, by the sizes written in its outermost elements.

    Knows AVI (the RIFF chunk), Matroska and WebM (the segment) and MP4 (the boxes). Returns 0 where nothing is said:
    another format, or a size left open, as in recordings that were never finished properly.
    """
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        return _riff_end(head)
    if head[:4] == EBML_HEADER.to_bytes(4, "big"):
        return _segment_end(file)
    if head[4:8] in {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"}:
        return _last_box_end(file)
    return 0


def _riff_end(head: bytes) -> int:
    """Return the end of the first RIFF chunk."""
    size = int(struct.unpack("<I", head[4:8])[0])
    # 0 and all ones stand for "not known". Some writers count the 8 bytes of the chunk's own header too.
    return 0 if size in {0, 0xFFFFFFFF} else size


def _last_box_end(file: BinaryIO) -> int:
    """Walk over the top-level boxes of an MP4 and return where the last one ends."""
    end = file.seek(0, os.SEEK_END)
    position = 0
    for _ in range(MAX_BOXES):
        file.seek(position)
        head = file.read(16)
        if position >= end or len(head) < 8:
            break
        size = int.from_bytes(head[:4], "big")
        if size == 1 and len(head) == 16:
            size = int.from_bytes(head[8:], "big")
        if size < 8:  # 0: the box reaches to the end of the file; 1..7: no box at all
            break
        position += size
    return position


def _segment_end(file: BinaryIO) -> int:
    """Return the end of a Matroska file's first segment."""
    position = 0
    for _ in range(MAX_BOXES):
        file.seek(position)
        head = file.read(12)
        id_length = _vint_length(head)
        size_length = _vint_length(head[id_length:])
        if not id_length or not size_length or len(head) < id_length + size_length:
            break
        element = int.from_bytes(head[:id_length], "big")
        ones = (1 << 7 * size_length) - 1
        size = int.from_bytes(head[id_length : id_length + size_length], "big") & ones
        if size == ones:  # not known: a live recording
            break
        position += id_length + size_length + size
        if element == SEGMENT:
            return position
    return 0


def _vint_length(data: bytes) -> int:
    """Return the length in bytes of the EBML number at the start of the data; 0 if there is none."""
    return 9 - data[0].bit_length() if data and data[0] else 0
