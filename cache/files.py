"""Immutable files that are whole or not there, whoever is killed when.

Nothing is ever locked, changed in place or given a name that was used before.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import MachineError, UserError
from .sidecar import Sidecar, file_is_lost, hash_file, mark_path, sidecar_path, temporary_path, write_sidecar

DEBRIS_SECONDS = 3600.0
_USER_ERRORS = {
    getattr(errno, name)
    for name in ("EACCES", "EPERM", "EROFS", "ENOTDIR", "EISDIR", "EEXIST", "ENOENT", "ENAMETOOLONG", "ELOOP", "EINVAL")
}


def new_name(job: str, sequence: int) -> str:
    """Return a file name that sorts by time: Unix milliseconds, the job's random id, the job's own count."""
    return f"{time.time_ns() // 1_000_000:015d}-{job}-{sequence:06d}"


def list_files(folder: Path) -> list[Path]:
    """Return the .h5 files of a folder in the order of their names, lost ones (see `check_file`) included."""
    try:
        names = set(os.listdir(folder))
    except FileNotFoundError:
        return []
    present = {name for name in names if name.endswith(".h5") and not name.startswith(".")}
    promised = {f"{name[:-5]}.h5" for name in names if name.endswith(".json")} - present
    lost = {name for name in promised if file_is_lost(folder / name)}
    return [folder / name for name in sorted(present | lost)]


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; when the block ends well, `path` appears whole, on disk, with its sidecar.

    Args:
        path: A name never used before, ending in .h5, in a folder that exists.

    Raises:
        MachineError: If the disk is full or fails.
        UserError: If the folder cannot be written.
    """
    temporary = temporary_path(path)
    try:
        with file_errors(path.parent):
            yield temporary
            _commit(temporary, path)
    except BaseException:  # whatever ends it, Ctrl-C too, leaves no half-written file
        with suppress(OSError):
            if not path.exists():
                sidecar_path(path).unlink(missing_ok=True)
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary file to write; when the block ends well, it takes the place of `path`.

    For results that the same command makes again: nothing waits for the disk, as `new_file` does.
    """
    temporary = path.with_name(f".{path.name[:32]}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def file_errors(path: Path, verb: str = "write", what: str = "the cache") -> Iterator[None]:
    """Turn an operating system's error at `path` into one line.

    Args:
        path: What the error names.
        verb: What was being done: "write" or "read".
        what: To what.

    Raises:
        MachineError: If the disk is full or fails.
        UserError: If this user cannot write or read in this place.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _USER_ERRORS:
            mend = "mend the permissions or name another directory"
            raise UserError(f"cannot {verb} {what} ({reason}); in {path}; {mend}") from error
        mend = "nothing is damaged: make room or mend the disk, then run the same command again"
        raise MachineError(f"cannot {verb} {what} ({reason}); in {path}; {mend}") from error


def remove_file(path: Path) -> None:
    """Remove a file and what lies beside it; killed half way, it leaves what readers take for an unfinished file."""
    with suppress(FileNotFoundError):
        os.rename(path, temporary_path(path))
    for leftover in (sidecar_path(path), mark_path(path), temporary_path(path)):
        leftover.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed jobs left. Segments are flushed every few seconds, so nothing an hour old is in use."""
    oldest = time.time() - DEBRIS_SECONDS
    with suppress(FileNotFoundError):
        for debris in folder.glob("*.tmp"):
            with suppress(FileNotFoundError):
                if debris.stat().st_mtime < oldest:
                    _sweep_one(debris)


def _commit(temporary: Path, path: Path) -> None:
    descriptor = os.open(temporary, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        stat = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    write_sidecar(path, Sidecar(hash_file(temporary), stat.st_size, stat.st_mtime_ns))
    # The sidecar's name must be on disk before the file's, or a power cut could keep the file alone.
    _fsync_folder(path.parent)
    os.rename(temporary, path)
    _fsync_folder(path.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep_one(debris: Path) -> None:
    whole = debris.with_suffix("")
    # The sidecar goes first: without its .h5.tmp it would pass for the sidecar of a lost file.
    if whole.suffix == ".h5" and not whole.exists():
        sidecar_path(whole).unlink(missing_ok=True)
    debris.unlink(missing_ok=True)
