"""Reading a file in another process, for formats whose packages crash on damaged files."""

import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from .eval_processes import die_with_parent
from .feature_files import ArrayError, read_array


class ReadingProcess:
    """Reads one file after the other; started at the first, and again after a file that it died of."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def read(self, path: Path, key: str | None) -> NDArray[Any]:
        """Read the array of a file, as `read_array` does.

        Raises:
            ArrayError: If there is no such array, nothing readable, or the file crashes its reader.
            UserError: If the format's package is not installed.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_start)
        try:
            return self._pool.submit(read_array, path, key).result()
        except BrokenProcessPool as error:
            self._pool = None
            raise ArrayError("bad-array", "the process that read it crashed") from error


def _start() -> None:
    die_with_parent()
    # Interrupts are the parent's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
