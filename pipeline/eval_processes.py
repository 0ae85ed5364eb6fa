"""Blocks of an evaluation in several processes: `amfir eval --workers`.

The job, with all clips encoded, is written once into a temporary file that the processes map into memory: however many
they are, the embeddings are there once. They are spawned, never forked, since torch's threads do not survive a fork.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from ..cache.errors import MachineError, UserError
from ..cache.files import file_errors
from ..meta.evaluate import Engine, here

Part = TypeVar("Part")

AHEAD = 2
"""Blocks that are handed out for each process: one it works on, one that waits."""


def in_processes(workers: int) -> Engine:
    """An engine of so many processes; of one, this one.

    Raises:
        UserError: If the number is no number of processes.
    """
    require_workers(workers)
    if workers == 1:
        return here

    def run(job: Callable[[int], Part], num_blocks: int, take: Callable[[Part], None]) -> None:
        with TemporaryDirectory(prefix="amfir-eval-") as folder:
            path = Path(folder) / "job"
            write_job(path, job)
            _run(path, min(workers, num_blocks), num_blocks, take)

    return run


def require_workers(workers: int) -> None:
    """Refuse what is no number of processes.

    Raises:
        UserError: Naming it.
    """
    if workers < 1:
        raise UserError(f"workers is {workers}; an evaluation needs at least 1 process; raise --workers")


def write_job(path: Path, job: Callable[[int], Any]) -> None:
    """Write a job so that `read_job` can map its tensors.

    Raises:
        MachineError: If there is no room for it.
    """
    import torch

    with file_errors(path.parent):
        torch.save(job, path)


def read_job(path: Path) -> Callable[[int], Any]:
    """The job that `write_job` wrote; its tensors stay in the file, shared by all who read it."""
    import torch

    # Unpickled, and safe for that: this program wrote it into a folder that only its user can open.
    job: Callable[[int], Any] = torch.load(path, mmap=True, weights_only=False)
    return job


def _run(path: Path, workers: int, num_blocks: int, take: Callable[[Part], None]) -> None:
    with _pool(path, workers) as pool:
        left = iter(range(num_blocks))
        waiting: deque[Future[Any]] = deque()
        try:
            for block in left:
                with _interrupts_blocked():
                    waiting.append(pool.submit(_count, block))
                if len(waiting) >= AHEAD * workers:
                    take(waiting.popleft().result())
            while waiting:
                take(waiting.popleft().result())
        except BrokenProcessPool:
            raise MachineError(
                "a process of the evaluation was killed (out of memory, perhaps); --workers; run it with fewer"
            ) from None


@contextmanager
def _pool(path: Path, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block: on their own if all went well, at once if it did not."""
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start, (path,))
    try:
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Let processes start with Ctrl-C blocked: it reaches all of a terminal's, and the first one alone decides."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_job: Callable[[int], Any] | None = None
"""Of a process that counts blocks."""


def _start(path: Path) -> None:
    global _job
    die_with_parent()
    import torch

    torch.set_num_threads(1)
    _job = read_job(path)


def _count(block: int) -> Any:
    assert _job is not None
    return _job(block)


def die_with_parent() -> None:
    """Let this process end as soon as its parent is gone, whatever it works on."""
    threading.Thread(target=_wait_for_the_parent, daemon=True).start()


def _wait_for_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
