"""What lies beside each .h5 file and shows damage before HDF5, which may crash on damaged metadata, opens it.

- NAME.json is the sidecar: SHA-256, size and mtime. It is there before NAME.h5 is, and gone after it.
- NAME.h5.tmp is the file while it is written, and while it is removed.
- NAME.damaged is an empty mark left by `verify`: whatever size and mtime say, do not open the file.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import UserError

_SHA256 = re.compile("[0-9a-f]{64}")


class DamageError(UserError):
    """A file of the cache is not what was written."""

    def __init__(self, path: Path, what: str) -> None:
        root = next((folder for folder in path.parents if (folder / "cache.json").exists()), path.parent)
        super().__init__(
            f"damaged cache: {what}; in {path}; run `amfir cache verify {root}` to list all damage, "
            "then `amfir extract` again to make these clips anew"
        )
        self.path = path
        self.what = what


class VanishedError(Exception):
    """A listed file is gone because another process packed or discarded it; list again."""


@dataclass(frozen=True)
class Sidecar:
    """What a whole file looked like when it was written."""

    sha256: str
    """Hash of the whole file, hex."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Modification time in nanoseconds since 1970."""


def check_file(path: Path) -> Sidecar:
    """Compare a file with its sidecar, cheaply: size and mtime; its hash only if nothing but the mtime differs.

    HDF5 may crash on damaged metadata, so nothing opens a file before this.

    Returns:
        The sidecar.

    Raises:
        DamageError: If the file is not what was written.
        VanishedError: If the file was removed in good order.
    """
    sidecar = read_sidecar(path)
    if mark_path(path).exists():
        raise DamageError(path, "`amfir cache verify` found this file damaged")
    stat = _stat(path, sidecar)
    if stat.st_mtime_ns != sidecar.mtime_ns and hash_file(path) != sidecar.sha256:
        raise DamageError(path, "the file's bytes changed since it was written")
    return sidecar


def verify_file(path: Path) -> None:
    """Compare a whole file with its sidecar's hash.

    A mtime that differs (the cache was copied) is put right in the sidecar, so that readers need not hash again.

    Raises:
        DamageError: If the file is not what was written.
        VanishedError: If the file was removed in good order.
    """
    sidecar = read_sidecar(path)
    stat = _stat(path, sidecar)
    if hash_file(path) != sidecar.sha256:
        raise DamageError(path, "the file's bytes changed since it was written")
    if stat.st_mtime_ns != sidecar.mtime_ns:
        with suppress(OSError):  # a cache on a read-only disk can be verified too
            write_sidecar(path, Sidecar(sidecar.sha256, sidecar.size, stat.st_mtime_ns))
            if not os.path.lexists(path):  # a pack removed both meanwhile
                sidecar_path(path).unlink(missing_ok=True)


def mark_damaged(path: Path) -> None:
    """Make readers refuse a file, and the next extraction replace it, even if its size and mtime look right."""
    with suppress(OSError):  # on a read-only disk the list that `verify` returns has to do
        mark_path(path).touch()


def unmark_damaged(path: Path) -> None:
    """Take the mark of an earlier `verify` away."""
    with suppress(OSError):
        mark_path(path).unlink(missing_ok=True)


def read_sidecar(path: Path) -> Sidecar:
    """Return the sidecar of an .h5 file.

    Raises:
        DamageError: If the file is there and its sidecar is missing or unreadable.
        VanishedError: If both are gone.
    """
    try:
        data = json.loads(sidecar_path(path).read_bytes())
    except FileNotFoundError:
        # The sidecar outlives its file, so a file that is still there has really lost its sidecar.
        if os.path.lexists(path):
            raise DamageError(path, f"{sidecar_path(path).name}, the file's hash, is missing") from None
        raise VanishedError(path) from None
    except ValueError:
        raise DamageError(path, f"{sidecar_path(path).name}, the file's hash, is unreadable") from None
    if not _is_sidecar(data):
        raise DamageError(path, f"{sidecar_path(path).name}, the file's hash, is unreadable")
    return Sidecar(**data)


def write_sidecar(path: Path, sidecar: Sidecar) -> None:
    """Write or replace the sidecar of an .h5 file."""
    write_json(sidecar_path(path), asdict(sidecar))


def hash_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file.

    Raises:
        VanishedError: If the file is gone.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise VanishedError(path) from None


def write_json(path: Path, data: object) -> None:
    """Write a small file that appears at once and whole."""
    replace_file(path, [json.dumps(data, indent=1).encode()])


def replace_file(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file from pieces of bytes; it appears at once and whole, in the place of what was there."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:  # whatever ends it, Ctrl-C too, leaves no half-written file
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def file_is_lost(path: Path) -> bool:
    """Tell whether a sidecar's file is really lost, and not just about to appear or to be removed.

    A file in good order is NAME.h5.tmp or NAME.h5 as long as NAME.json is there. It may be renamed between two of our
    looks, but no .tmp, then no .h5, then no .tmp again means that its removal has ended: its sidecar went before.
    """
    return (
        not temporary_path(path).exists()
        and not os.path.lexists(path)
        and not temporary_path(path).exists()
        and sidecar_path(path).exists()
    )


def _stat(path: Path, sidecar: Sidecar) -> os.stat_result:
    try:
        stat = path.stat()
    except FileNotFoundError:
        if os.path.lexists(path) or file_is_lost(path):
            raise DamageError(path, "the file is missing") from None
        raise VanishedError(path) from None
    if stat.st_size != sidecar.size:
        raise DamageError(path, f"the file has {stat.st_size} bytes, {sidecar.size} were written")
    return stat


def _is_sidecar(data: Any) -> bool:
    return (
        isinstance(data, dict)
        and data.keys() == {"sha256", "size", "mtime_ns"}
        and isinstance(data["sha256"], str)
        and _SHA256.fullmatch(data["sha256"]) is not None
        and type(data["size"]) is int
        and type(data["mtime_ns"]) is int
    )


def sidecar_path(path: Path) -> Path:
    """Return NAME.json of NAME.h5."""
    return path.with_suffix(".json")


def mark_path(path: Path) -> Path:
    """Return NAME.damaged of NAME.h5."""
    return path.with_suffix(".damaged")


def temporary_path(path: Path) -> Path:
    """Return NAME.h5.tmp of NAME.h5."""
    return path.with_name(f"{path.name}.tmp")
