"""Cells one after another here, or several at once in processes of their own."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait

from ..cache.errors import MachineError, UserError
from .compare_cells import Cell
from .compare_run import Runner
from .compare_store import Measured

REFRESH_SECONDS = 0.5

Outcome = tuple[Cell, Measured | str]
"""A cell and what it came to, or the line of the error that ended it."""


def run_cells(
    todo: Sequence[Cell],
    finished: Sequence[Cell],
    make_runner: Callable[[], Runner],
    jobs: int,
    tick: Callable[[Cell | None, float], None],
) -> Iterator[Outcome]:
    """Run cells, each after its parts; one that fails takes those with it that need it, and no others.

    Args:
        todo: The cells, in the order wanted.
        finished: Cells that need not be run.
        make_runner: Makes what runs a cell; called once in each process, so it must be one that travels there (a
            function of a module, or a `partial` of one) if there is more than one job.
        jobs: Processes; with 1 all is done in this one.
        tick: Told a cell and the finished share of its training, or None now and then while there is nothing to tell.

    Yields:
        Outcomes, as they come.

    Raises:
        MachineError: If a process was killed.
    """
    queue = _Queue(todo, finished)
    return _here(queue, make_runner(), tick) if jobs == 1 else _spawned(queue, make_runner, jobs, tick)


class _Queue:
    """Cells that wait, and those that wait for them."""

    def __init__(self, todo: Sequence[Cell], finished: Sequence[Cell]) -> None:
        self._waiting = list(todo)
        self._finished = set(finished)
        self._failed: dict[Cell, str] = {}

    def take(self) -> Cell | None:
        """The next cell whose parts are finished; None if there is none now."""
        cell = next((cell for cell in self._waiting if self._finished.issuperset(cell.parts)), None)
        if cell is not None:
            self._waiting.remove(cell)
        return cell

    def settle(self, outcome: Outcome) -> Iterator[Outcome]:
        """Note an outcome, and yield it and those that follow from it."""
        cell, result = outcome
        yield outcome
        if not isinstance(result, str):
            self._finished.add(cell)
            return
        for other in [other for other in self._waiting if cell in other.parts]:
            self._waiting.remove(other)
            yield other, f"{cell.label} failed: {result}"


def _here(queue: _Queue, runner: Runner, tick: Callable[[Cell | None, float], None]) -> Iterator[Outcome]:
    while (cell := queue.take()) is not None:
        yield from queue.settle((cell, _attempt(runner, cell, partial(tick, cell))))


def _attempt(runner: Runner, cell: Cell, tick: Callable[[float], None]) -> Measured | str:
    try:
        return runner(cell, tick)
    except UserError as error:
        return str(error)


def _spawned(
    queue: _Queue, make_runner: Callable[[], Runner], jobs: int, tick: Callable[[Cell | None, float], None]
) -> Iterator[Outcome]:
    workers: list[_Worker] = []
    try:
        while True:
            _hand_out(queue, workers, make_runner, jobs)
            busy = {worker.connection: worker for worker in workers if worker.cell is not None}
            if not busy:
                return
            tick(None, 0.0)
            for connection in wait(list(busy), REFRESH_SECONDS):
                yield from _listen(busy[connection], queue, tick)  # type: ignore[index]
    finally:
        for worker in workers:
            worker.end()


def _hand_out(queue: _Queue, workers: list["_Worker"], make_runner: Callable[[], Runner], jobs: int) -> None:
    """Give cells to idle processes, and start more of them while there are cells."""
    idle = [worker for worker in workers if worker.cell is None]
    while (idle or len(workers) < jobs) and (cell := queue.take()) is not None:
        if not idle:
            workers.append(_Worker(make_runner))
        (idle.pop() if idle else workers[-1]).give(cell)


def _listen(worker: "_Worker", queue: _Queue, tick: Callable[[Cell | None, float], None]) -> Iterator[Outcome]:
    """Take a message of a process."""
    message, cell = worker.receive(), worker.cell
    assert cell is not None
    if isinstance(message, float):
        tick(cell, message)
    else:
        worker.cell = None
        yield from queue.settle((cell, message))


class _Worker:
    """A process that runs cells, as this one sees it."""

    def __init__(self, make_runner: Callable[[], Runner]) -> None:
        # Spawned, never forked: torch's threads do not survive a fork.
        context = get_context("spawn")
        self.cell: Cell | None = None
        self.connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, make_runner), daemon=True)
        # Started along with the first process otherwise, and then it unblocks the signal.
        resource_tracker.ensure_running()
        # Ctrl-C reaches all processes of a terminal; the parent alone decides. Blocked, since a handler set in the
        # child would come too late for its imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        child.close()

    def give(self, cell: Cell) -> None:
        """Hand over a cell."""
        self.cell = cell
        with suppress(OSError):  # if the process has died, that shows when it is listened to
            self.connection.send(cell)

    def receive(self) -> float | Measured | str:
        """The next message: the finished share of a training, or an outcome.

        Raises:
            MachineError: If the process is gone.
            Exception: Whatever ended it that is no `UserError`.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise MachineError(
                f"a process ended with exit code {self._process.exitcode} (out of memory, if it was killed); "
                f"while it ran {self.cell.label if self.cell else 'nothing'}; run the same command with fewer --jobs"
            ) from None
        if isinstance(message, BaseException):
            raise message
        assert isinstance(message, (float, Measured, str))
        return message

    def end(self) -> None:
        """End the process at once: what its cell had trained is saved."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        self._process.close()


def _serve(connection: Connection, make_runner: Callable[[], Runner]) -> None:
    """Run cells until the parent has no more."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    try:
        runner = make_runner()
        while True:
            connection.send(_attempt(runner, connection.recv(), connection.send))
    except EOFError:
        return
    except Exception as error:
        connection.send(error)


def _die_with_parent() -> None:
    """End this process as soon as its parent is gone, however long its cell has still to go."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
