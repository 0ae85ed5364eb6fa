"""The decoder processes: clips are handed out one by one, and a process that hangs or dies is replaced."""

import signal
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Self

from ..cache.errors import MachineError
from .source import source_of
from .worker import Decoded, DecodeSettings, Task, failed, serve

HEARTBEAT_SECONDS = 0.5
ATTEMPTS = 2
"""How often a clip is tried whose worker dies: it may have been killed for another's sake (memory)."""


MAX_FAILED_STARTS = 3
"""How many processes in a row may end before they are ready."""


class DecoderPool:
    """Worker processes that decode clips; a context manager that leaves none behind.

    At most one clip a worker is under way, and a finished one waits in its worker until the caller asks for it, so that
    memory is bounded and workers stand still while nobody takes their results.

    Args:
        workers: How many processes; they begin to start at once.
        timeout_seconds: Time for one clip.
    """

    def __init__(self, workers: int, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._deaths: Counter[str] = Counter()
        self._failed_starts = 0
        self._retries: deque[Task] = deque()
        self._workers: list[_Worker] = []
        try:
            for _ in range(workers):
                self._workers.append(_Worker())
        except BaseException:  # no worker may be left behind, whatever it is
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def results(self, tasks: Iterable[Task], settings: DecodeSettings) -> Iterator[Decoded | None]:
        """Decode clips.

        Args:
            tasks: Taken one by one as workers get free.
            settings: What is done with each.

        Yields:
            A result for every task, in the order of completion; None when there was none for a while.

        Raises:
            MachineError: If the worker processes cannot start.
        """
        waiting = iter(tasks)
        while True:
            self._hand_out(waiting, settings)
            if any(worker.ready for worker in self._workers) and not any(worker.task for worker in self._workers):
                return
            spoke = wait([worker.connection for worker in self._workers], HEARTBEAT_SECONDS)
            if not spoke:
                yield None
            for worker in [worker for worker in self._workers if worker.connection in spoke]:
                decoded = self._listen(worker)
                if decoded:
                    yield decoded
            for worker in [worker for worker in self._workers if worker.overdue()]:
                yield self._give_up(worker)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join()
        self._workers.clear()

    def _hand_out(self, waiting: Iterator[Task], settings: DecodeSettings) -> None:
        """Give every free worker a clip, as long as there are any."""
        for worker in self._workers:
            if worker.ready and not worker.task:
                task = self._retries.popleft() if self._retries else next(waiting, None)
                if task is None:
                    return
                worker.give(task, settings, self._timeout_seconds)

    def _listen(self, worker: "_Worker") -> Decoded | None:
        """Take what a worker sent, and return it if it is a result."""
        try:
            message = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if isinstance(message, Decoded):
            worker.task = None
            return message
        worker.ready = True
        self._failed_starts = 0
        return None

    def _bury(self, worker: "_Worker") -> Decoded | None:
        """Replace a worker that died; its clip gets a second try, then a reason code."""
        task = worker.task
        exit_code = self._replace(worker)
        if task is None:
            self._failed_starts += not worker.ready
            if self._failed_starts == MAX_FAILED_STARTS:
                raise MachineError(
                    f"the decoder processes do not start (exit code {exit_code}); extraction; "
                    "see their messages above, and start the job under `if __name__ == '__main__'`"
                )
            return None
        self._deaths[task.clip.id] += 1
        if self._deaths[task.clip.id] < ATTEMPTS:
            self._retries.append(task)
            return None
        message = f"the decoder process died {ATTEMPTS} times on this clip (exit code {exit_code})"
        return failed(task, "decoder-died", message, _source_of(task))

    def _give_up(self, worker: "_Worker") -> Decoded:
        """Replace a worker that takes too long; its clip gets a reason code."""
        task = worker.task
        assert task is not None
        self._replace(worker)
        message = f"decoding took more than {self._timeout_seconds:g} s"
        return failed(task, "timeout", message, _source_of(task))

    def _replace(self, worker: "_Worker") -> int | None:
        """Put a new worker in the place of another, and return the exit code of that one."""
        worker.kill()
        exit_code = worker.join()
        self._workers[self._workers.index(worker)] = _Worker()
        return exit_code


def _source_of(task: Task) -> tuple[int, int]:
    """Return size and mtime_ns of a clip's file; a server that made the decoder hang would hang the job too."""
    return (0, 0) if isinstance(task.clip.path, str) else source_of(task.clip)


class _Worker:
    """One decoder process, as the job sees it."""

    def __init__(self) -> None:
        # Spawned, never forked: FFmpeg's and torch's threads do not survive a fork.
        context = get_context("spawn")
        self.ready = False
        self.task: Task | None = None
        self._deadline = float("inf")
        self.connection, child = context.Pipe()
        self._process: SpawnProcess = context.Process(target=serve, args=(child,), daemon=True)
        _start_deaf_to_interrupts(self._process)
        child.close()

    def give(self, task: Task, settings: DecodeSettings, timeout_seconds: float) -> None:
        """Hand over a clip; its time runs from now."""
        self.task = task
        self._deadline = time.monotonic() + timeout_seconds
        with suppress(OSError):  # if the worker has died, that shows when it is listened to
            self.connection.send((task, settings))

    def overdue(self) -> bool:
        """Return whether the clip took too long, and there is still no result to be read."""
        return self.task is not None and time.monotonic() > self._deadline and not self.connection.poll()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def join(self) -> int | None:
        """Wait for the end of a killed process, and return its exit code."""
        self._process.join()
        exit_code = self._process.exitcode
        self.connection.close()
        self._process.close()
        return exit_code


def _start_deaf_to_interrupts(process: SpawnProcess) -> None:
    """Start a process that ignores Ctrl-C, which a terminal sends to all: this one alone decides what happens then.

    The blocked signal is inherited from the first instruction on; a handler would come too late for the imports.
    """
    # Started along with the first process otherwise, and then it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
