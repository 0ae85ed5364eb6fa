"""The bytes of a clip: a local file, a member of a tar, or a remote file; in each case a file object without a name.

The decoder gets this file object and never the name. So any name is legal (`a:b.mp4`, a line break, bytes that are not
UTF-8), none is taken for a protocol, a pattern or an option, and the content alone decides the format.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from ..cache.errors import UserError
from .clips import Clip
from .reasons import DecodeError
from .remote import cause_of, file_system, is_missing, stamp_of

MISSING_ERRORS = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}

WHOLE_BYTES = 1 << 26
"""Remote files up to this size are fetched in one request. Counting the frames reads all of a file anyway."""


@contextmanager
def open_clip(path: Path | str, span: tuple[int, int] | None = None) -> Iterator[BinaryIO]:
    """Open the bytes of a clip, which are never none.

    Args:
        path: A regular local file; as a `str`, a URL that fsspec opens.
        span: Offset and length in bytes of the part that is the clip; nothing outside of it can be read. None for all.

    Yields:
        A seekable binary file.

    Raises:
        DecodeError: "missing", "not-a-file", "unreadable", "empty-file", or "damaged" if the span is not all there.
    """
    with _open_remote(path, span) if isinstance(path, str) else _open_local(path, span) as file:
        yield file


def source_of(clip: Clip) -> tuple[int, int]:
    """Return size and mtime_ns of a clip; zeros if it cannot be looked at or its file system does not tell.

    A member of a tar has the tar's time. For a URL, the time may be another number that changes with the content.
    """
    try:
        size, stamp = _remote_source(clip.path) if isinstance(clip.path, str) else _local_source(clip.path)
    except Exception:  # file systems raise errors of their own kinds; what cannot be looked at has no source
        return (0, 0)
    return (clip.span[1] if clip.span else size, stamp)


def _local_source(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _remote_source(url: str) -> tuple[int, int]:
    files, name = file_system(url)
    info = files.info(name)
    return int(info.get("size") or 0), stamp_of(info)


@contextmanager
def _open_local(path: Path, span: tuple[int, int] | None) -> Iterator[BinaryIO]:
    try:
        # Before opening: opening a pipe would wait for a writer for ever.
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError("not-a-file", f"{_kind(status.st_mode)}, not a regular file")
        _check_span(span, status.st_size)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except ValueError as error:  # a NUL in the name
        raise DecodeError("missing", str(error)) from error
    except OSError as error:
        reason = "missing" if error.errno in MISSING_ERRORS else "unreadable"
        raise DecodeError(reason, error.strerror or str(error)) from error
    # Opened by its descriptor, the file object has no name that the decoder could look at.
    with open(descriptor, "rb", buffering=0) as file:
        yield cast(BinaryIO, Window(file, *span)) if span else file


@contextmanager
def _open_remote(url: str, span: tuple[int, int] | None) -> Iterator[BinaryIO]:
    try:
        files, name = file_system(url)
        info = files.info(name)
        if info.get("type") == "directory":
            raise DecodeError("not-a-file", "a directory, not a regular file")
        size = info.get("size")
        if size is not None:
            _check_span(span, size)
        file = _fetch(files, name, size, span)
    except (DecodeError, UserError) as error:
        raise error if isinstance(error, DecodeError) else DecodeError("unreadable", str(error)) from error
    except Exception as error:  # file systems raise errors of their own kinds, and none may end the job
        raise DecodeError("missing" if is_missing(error, url) else "unreadable", cause_of(error)) from error
    with file:
        yield file


def _fetch(files: Any, name: str, size: int | None, span: tuple[int, int] | None) -> BinaryIO:
    """Return a remote file, in memory if it is small, or if its end is not known beforehand (then it has to be)."""
    if size is None:
        return _fetch_stream(files, name)
    offset, length = span or (0, size)
    if length > WHOLE_BYTES:
        return cast(BinaryIO, Window(files.open(name, "rb"), offset, length))
    data = files.cat_file(name, offset, offset + length) if span else files.cat_file(name)
    if len(data) != length:
        raise DecodeError("unreadable", f"the server sent {len(data)} bytes of {length}")
    return io.BytesIO(data)


def _fetch_stream(files: Any, name: str) -> BinaryIO:
    data = bytearray()
    with files.open(name, "rb") as file:
        while len(data) <= WHOLE_BYTES and (piece := file.read(1 << 20)):
            data += piece
    if len(data) > WHOLE_BYTES:
        raise DecodeError("unreadable", f"the server does not tell the size, and it is above {WHOLE_BYTES} bytes")
    _check_span(None, len(data))
    return io.BytesIO(data)


def _check_span(span: tuple[int, int] | None, size: int) -> None:
    """Raise if a file of so many bytes has none for the clip, or not all of them."""
    if size == 0:
        raise DecodeError("empty-file", "the file has 0 bytes")
    if span is None:
        return
    if span[1] == 0:
        raise DecodeError("empty-file", "the member of the tar has 0 bytes")
    if sum(span) > size:
        raise DecodeError("damaged", f"the tar is cut off within this member: {size} bytes of at least {sum(span)}")


class Window(io.RawIOBase):
    """A part of a seekable file, as a file of its own: nothing outside of it can be read.

    Args:
        file: The whole file; closed with the window.
        offset: Where the part begins, in bytes.
        length: How many bytes it has.
    """

    def __init__(self, file: Any, offset: int, length: int) -> None:
        self._file = file
        self._offset = offset
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position within the part."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position within the part, or behind its end.

        Raises:
            OSError: If the position lies before the part.
        """
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the part goes, and return how many bytes those are.

        Raises:
            OSError: If the file cannot be read.
        """
        wanted = max(min(len(buffer), self._length - self._position), 0)
        try:
            self._file.seek(self._offset + self._position)
            data = self._file.read(wanted) if wanted else b""
        except OSError:
            raise
        except Exception as error:  # remote files raise errors of their own kinds
            raise OSError(cause_of(error)) from error
        # The decoder would write more bytes than it has asked for beyond its buffer.
        data = data[:wanted]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        """Close the whole file."""
        self._file.close()
        super().close()


def _kind(mode: int) -> str:
    """Name what is not a regular file."""
    kinds = [(stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket")]
    return next((name for test, name in kinds if test(mode)), "a device")
