"""Download of one file over HTTP: it goes on where it stopped, is checked, and appears whole or not at all.

While NAME is on its way, NAME.partial holds what has arrived, and NAME.partial.version the server's mark of the version
that this is a part of. A lock on NAME.partial lets one process write at a time; it ends with the process.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

from ..cache.errors import MachineError, UserError
from .transfer import Progress, Transfer

_SIZE_TOLERANCE = 0.01
_NO_PLACE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG}


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size_bytes: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Fetch a file, or what is missing of it; nothing happens if another process has fetched it meanwhile.

    Args:
        url: Address, http or https.
        target: The file; its folder is made.
        sha256: Hash of the file, or its first hex digits.
        size_bytes: Its size, which may be wrong by 1 %.
        progress: Called after each piece.

    Raises:
        UserError: If the server cannot be reached or has another file, or the folder cannot be written.
        MachineError: If the disk is full or fails.
    """
    partial = target.with_name(f"{target.name}.partial")
    version = target.with_name(f"{partial.name}.version")
    with _disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial) as file:
            try:
                if not target.is_file():
                    Transfer(url, target, file, version, sha256 is not None, progress).run()
                    _refuse_mismatch(url, file, partial, sha256, size_bytes)
                    os.fsync(file.fileno())
                    os.replace(partial, target)
                    _fsync_folder(target.parent)
            finally:
                _remove_leftovers(file, partial, target, version)


def mismatch(path: Path, sha256: str | None, size_bytes: int | None) -> str | None:
    """Compare a file with what is known of it.

    Args:
        path: The file.
        sha256: Hash, or its first hex digits, or None.
        size_bytes: Size, which may be wrong by 1 %, or None.

    Returns:
        What is wrong, or None.
    """
    size = path.stat().st_size
    if size_bytes is not None and abs(size - size_bytes) > _SIZE_TOLERANCE * size_bytes:
        return f"it has {size} bytes, about {size_bytes} were expected"
    if sha256 is not None and not (found := file_sha256(path)).startswith(sha256):
        return f"its SHA-256 is {found}, {sha256}{'' if len(sha256) == 64 else '...'} was expected"
    return None


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_mismatch(url: str, file: FileIO, partial: Path, sha256: str | None, size_bytes: int | None) -> None:
    """Throw away what has arrived, and raise, if it is not the file."""
    if problem := mismatch(partial, sha256, size_bytes):
        file.truncate(0)
        raise UserError(
            f"what was fetched is not the file: {problem}; {url}; it is removed: try again, "
            "or fetch it on another machine and pass --rgb-weights or --flow-weights FILE"
        )


def _remove_leftovers(file: FileIO, partial: Path, target: Path, version: Path) -> None:
    """Leave nothing beside the file when it is here, nor where nothing has arrived."""
    if target.is_file() or os.fstat(file.fileno()).st_size == 0:
        partial.unlink(missing_ok=True)
        version.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[FileIO]:
    """Open a file to append to it, as the only process that does so; wait for another one."""
    while True:
        with path.open("ab", buffering=0) as file:
            # A file system without locks is used without: the hash and the size have the last word.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            # Who had the lock before may have renamed or removed the file that this process has open.
            if _is_at(file, path):
                yield file
                return


def _is_at(file: FileIO, path: Path) -> bool:
    """Tell whether an open file is the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the file system into one line; those of the network do not come this far."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _NO_PLACE:
            raise UserError(
                f"cannot write there ({reason}); {folder}; mend the permissions, or set TORCH_HOME to another folder"
            ) from error
        raise MachineError(
            f"cannot write ({reason}); {folder}; make room or mend the disk, then run the same command again: it goes "
            "on where it stopped"
        ) from error


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
