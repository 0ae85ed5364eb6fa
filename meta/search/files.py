"""A prototype index on disk: a manifest in JSON, the matrix as .npy and, of an approximate backend, its faiss file.

The manifest names the other files and holds their sizes and SHA-256; renaming it is what makes all of them current.
The matrix is read once to check it, and memory-mapped from then on.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...cache.errors import UserError
from ...cache.files import file_errors
from .backends import APPROXIMATE, Backend, load_backend, save_backend
from .space import Floats

FORMAT = 1
"""Version of the manifest and of what the matrix holds."""

MANIFEST = "index.json"

MATRIX, BACKEND = "prototypes", "backend"
"""What the names of the matrix's and of the backend's file begin with."""

HASHED_AT_ONCE = 2**22
"""Bytes."""


def write_index(
    folder: Path, fingerprint: Mapping[str, Any], space: Mapping[str, Any], matrix: Floats, backend: Backend
) -> None:
    """Write an index; a killed run leaves the old one or none.

    Args:
        folder: Made if it is not there.
        fingerprint: JSON-able: what the prototypes come from.
        space: JSON-able: `Space.to_json`.
        matrix: The prototypes.
        backend: Of the matrix.

    Raises:
        UserError: If this user cannot write there.
        MachineError: If the disk is full or fails.
    """
    with file_errors(folder, what="the prototype index"):
        _write(folder, fingerprint, space, matrix, backend)


def _write(
    folder: Path, fingerprint: Mapping[str, Any], space: Mapping[str, Any], matrix: Floats, backend: Backend
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = {MATRIX: _put(folder, MATRIX, ".npy", lambda path: _save_matrix(path, matrix))}
    if backend.name in APPROXIMATE:
        files[BACKEND] = _put(folder, BACKEND, ".faiss", lambda path: save_backend(backend, path))
    data = {
        "format": FORMAT,
        "fingerprint": dict(fingerprint),
        "space": dict(space),
        "shape": list(matrix.shape),
        "backend": backend.name,
        "files": files,
    }
    with _partial(folder / MANIFEST) as partial:
        partial.write_bytes(_pack(data))
        _sync(partial)
        partial.replace(folder / MANIFEST)
    current = {file["name"] for file in files.values()}
    for old in [*folder.glob(f"{MATRIX}-*.npy"), *folder.glob(f"{BACKEND}-*.faiss")]:
        if old.name not in current:
            old.unlink(missing_ok=True)


def read_index(folder: Path, fingerprint: Mapping[str, Any]) -> tuple[dict[str, Any], Floats, Backend]:
    """Return what `write_index` was given: the space, the matrix (memory-mapped) and the backend.

    Raises:
        UserError: If there is no index, it is damaged, of another fingerprint or another format, or its backend is not
            installed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"no prototype index in {folder}; build it first")
    with _damage_is_one_line(folder):
        data = _unpack(path.read_bytes())
        if data["format"] != FORMAT:
            raise UserError(
                f"the prototype index in {folder} has format {data['format']!r}, not {FORMAT}; build it again"
            )
        _check_fingerprint(folder, data["fingerprint"], fingerprint)
        paths = {kind: _whole(folder, file) for kind, file in data["files"].items()}
        # Pages that are written to become this process's own; torch takes no read-only memory.
        matrix: Floats = np.load(paths[MATRIX], mmap_mode="c", allow_pickle=False)
        if list(matrix.shape) != data["shape"] or matrix.dtype != np.float32:
            raise ValueError(f"{paths[MATRIX].name} holds {matrix.dtype} {list(matrix.shape)}, not {data['shape']}")
        backend = load_backend(data["backend"], paths.get(BACKEND, folder), matrix)
    return data["space"], matrix, backend


def _save_matrix(path: Path, matrix: Floats) -> None:
    # np.save would not notice that the disk is full where all of the matrix fits into the C library's buffer.
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(matrix))
        file.write(np.ascontiguousarray(matrix).data)


def _put(folder: Path, kind: str, suffix: str, write: Callable[[Path], None]) -> dict[str, Any]:
    """Write a file under a name that its content gives, and return what the manifest says of it."""
    with _partial(folder / f"{kind}{suffix}") as partial:
        write(partial)
        _sync(partial)
        digest = _digest(partial)
        file = {"name": f"{kind}-{digest[:32]}{suffix}", "bytes": partial.stat().st_size, "sha256": digest}
        partial.replace(folder / str(file["name"]))
    return file


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A file that this process alone writes, gone at the end unless it was renamed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(HASHED_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def _pack(data: Mapping[str, Any]) -> bytes:
    """The manifest, with its own hash."""
    digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()
    return (json.dumps({**data, "sha256": digest}) + "\n").encode()


def _unpack(content: bytes) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(content)
    del data["sha256"]
    # Not even a blank may differ.
    if _pack(data) != content:
        raise ValueError(f"{MANIFEST} changed since it was written")
    return data


def _whole(folder: Path, file: Mapping[str, Any]) -> Path:
    path = folder / Path(file["name"]).name
    if path.stat().st_size != file["bytes"]:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {file['bytes']}")
    if _digest(path) != file["sha256"]:
        raise ValueError(f"{path.name} changed since it was written")
    return path


def _check_fingerprint(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    then, asked = _flat(before), _flat(json.loads(json.dumps(now)))
    absent = "nothing"
    for name in {**asked, **then}:
        if then.get(name, absent) != asked.get(name, absent):
            raise UserError(
                f"the prototype index in {folder} was made with {name} = {then.get(name, absent)}, "
                f"not {asked.get(name, absent)}; build it again, or name its own folder"
            )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested JSON on one level: {"run": {"seed": 0}} -> {"run.seed": 0}."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _flat(part, f"{name}.{key}" if name else key).items()}


@contextlib.contextmanager
def _damage_is_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        text = error.strerror or "" if isinstance(error, OSError) else str(error)
        reason = text.splitlines()[0] if text else type(error).__name__
        if isinstance(error, OSError) and error.filename:
            reason = f"{Path(error.filename).name}: {reason}"
        raise UserError(f"the prototype index in {folder} is damaged ({reason}); build it again") from error
