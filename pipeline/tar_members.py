"""The regular files in an uncompressed tar: their names and where their bytes lie.

Python's tarfile makes an object of 20 attributes for every member. Plain archives, which is nearly all of them, are
read here a few times faster; at the first header that is anything else, tarfile reads the archive.
"""

import re
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..cache.errors import UserError

BLOCK = 512
READ_BYTES = 4096
"""Enough for the headers of a label, of the next video, and what lies between; more would be read in vain."""

_PAX_RECORD = re.compile(rb"(\d+) ([^=]+)=")
_ODD_PAX_KEYS = (b"size", b"GNU.sparse")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A member of a tar."""

    name: str
    """Its name, as written; bytes that are not UTF-8 are kept as Python does in file names."""
    offset: int
    """Where its bytes begin in the archive."""
    size: int
    """How many they are; the archive may end before them."""
    kind: str = ""
    """Empty for a regular file; else what it is ("hard link"), and no bytes lie at `offset`."""


def tar_members(path: Path, file: BinaryIO) -> Iterator[Member]:
    """Yield the members of a tar in the order of the archive, without its directories.

    A member that the archive is cut off within is the last one; that is for the reader of its bytes to notice.

    Args:
        path: The tar's name, for errors.
        file: The tar; it may be read elsewhere between two members.

    Raises:
        UserError: If the file is no uncompressed tar, or damaged so that members cannot be named.
    """
    listed = 0
    try:
        for member in _plain_members(file):
            listed += 1
            yield member
    except _NotPlainError:
        yield from islice(_any_members(path, file), listed, None)


class _NotPlainError(Exception):
    """A header that is left to tarfile."""


def _plain_members(file: BinaryIO) -> Iterator[Member]:
    """Yield the members of an archive of regular files with short, GNU or pax names.

    Raises:
        _NotPlainError: At the first header that is anything else, a damaged one included.
    """
    long_name = None
    position = 0
    while (header := file.read(BLOCK)) and (header[0] or header.count(0) < BLOCK):
        # The checksum would take longer than all the rest; garbage has no "ustar" and no octal number in its places.
        if len(header) < BLOCK or header[257:262] != b"ustar":
            raise _NotPlainError
        size, kind = _size(header), header[156:157]
        position += BLOCK
        if kind == b"0":
            yield Member(_name(header) if long_name is None else long_name, position, size)
            long_name = None
        elif kind == b"5" and size == 0:
            long_name = None
        elif kind in b"xL" and long_name is None:
            data = file.read(size)
            long_name = _pax_name(data) if kind == b"x" else _text(data)
        else:
            raise _NotPlainError
        position += -(-size // BLOCK) * BLOCK
        file.seek(position)
    if long_name is not None:
        raise _NotPlainError


def _size(header: bytes) -> int:
    try:
        return int(header[124:136].rstrip(b" \0"), 8)
    except ValueError:
        raise _NotPlainError from None


def _name(header: bytes) -> str:
    """Return the name in a header."""
    if header[345]:
        if header[257:265] != b"ustar\00000":
            raise _NotPlainError
        return f"{_text(header[345:500])}/{_text(header[:100])}"
    return _text(header[:100])


def _pax_name(data: bytes) -> str | None:
    """Return the name in a pax header, None if it has none."""
    name = None
    position = 0
    while match := _PAX_RECORD.match(data, position):
        length, key = int(match[1]), match[2]
        if length < len(match[0]) or key.startswith(_ODD_PAX_KEYS):
            raise _NotPlainError
        if key == b"path":
            name = data[match.end() : position + length - 1].decode("utf-8", "surrogateescape").rstrip("/")
        position += length
    return name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _any_members(path: Path, file: BinaryIO) -> Iterator[Member]:
    """Yield the members of any archive that tarfile reads."""
    size = file.seek(0, 2)
    end = 0
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # or it keeps them all
                end = member.offset_data + member.size * (member.isreg() and not member.issparse())
                if not member.isdir():
                    yield Member(member.name, member.offset_data, member.size, _kind(member))
            file.seek(tar.offset)
            rest = file.read(BLOCK)
    except tarfile.TarError as error:
        if end > size:  # cut off within the last member
            return
        raise UserError(_damage(path, file, str(error))) from error
    # To tarfile, a damaged header is the end of the archive.
    if rest.count(0) < len(rest):
        raise UserError(_damage(path, file, f"damaged or cut off at byte {tar.offset}"))


def _kind(member: tarfile.TarInfo) -> str:
    """Name what is not a regular file whose bytes lie in one piece."""
    kinds = {
        "sparse file": member.issparse(),
        "hard link": member.islnk(),
        "symbolic link": member.issym(),
        "special file": not member.isreg(),
    }
    return next((name for name, holds in kinds.items() if holds), "")


def _damage(path: Path, file: BinaryIO, cause: str) -> str:
    file.seek(0)
    head = file.read(8)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            return f"compressed with {name}; shard {str(path)!r}; unpack it to a plain .tar, videos get no smaller"
    return f"not a whole tar ({cause}); shard {str(path)!r}; copy it again, or leave it out by a pattern"
