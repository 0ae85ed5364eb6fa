"""Files that are whole or not there, and arrays that need not be computed again."""

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...cache.files import file_errors, whole_file


def kept_array(path: Path, length: int, make: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    """The integers of a file [length], made and written where it is not there or damaged.

    Args:
        path: Named after all that they depend on.
        length: How many there are.
        make: Computes them.

    Raises:
        UserError: If the folder cannot be written.
        MachineError: If the disk is full or fails.
    """
    with suppress(OSError, ValueError, EOFError):
        found: NDArray[np.int64] = np.load(path, allow_pickle=False)
        if found.shape == (length,) and found.dtype == np.int64:
            return found
    made = make()
    data = io.BytesIO()
    np.save(data, made)
    with file_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data.getvalue())
    return made


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is whole or not there."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)
