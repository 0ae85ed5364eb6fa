"""One device of a cluster: decoders, lanes and writers that run on from chunk to chunk."""

import queue
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import Failure, Row, StreamSpec, StreamWriter
from ..cache.errors import UserError
from .config import ExtractConfig, decode_settings
from .plan import Plan
from .pool import HEARTBEAT_SECONDS, DecoderPool
from .report import Tally
from .worker import Decoded, Task

if TYPE_CHECKING:  # the driver needs this class, and no torch
    from .networks import Network

LANES_ON_GPU = 2


class ClusterActor:
    """What Ray runs on a device; its methods are called on several threads at once.

    Args:
        cache: The cache's directory.
        config: Settings; the device is "cpu" or "cuda", which is the one that Ray gave to this actor.
        cpus: Cores that it may use.
        token: Name of a file that the driver has put into the cache's directory.
    """

    def __init__(self, cache: Path, config: ExtractConfig, cpus: int, token: str) -> None:
        self._cache = cache
        self._config = config
        self._cpus = cpus
        self._token = token
        self._feed = _Feed()
        self._ledger = _Ledger()
        self._stopped = threading.Event()
        self._line: threading.Thread | None = None

    def place(self) -> str:
        """Return the name of this machine, as a sign that Ray has found one."""
        return socket.gethostname()

    def start(self) -> dict[str, StreamSpec]:
        """Load the networks, open the streams, and return their specs.

        Raises:
            UserError: If this machine has another directory of the cache's name, or as `load_lanes`, `open_writers`.
        """
        from .networks import load_networks
        from .spec import settled_spec

        if not (self._cache / self._token).exists():
            raise UserError(
                f"the cache is not the one that the job was started with; {self._cache} on {socket.gethostname()}; "
                "name a directory that all machines share"
            )
        networks = load_networks(self._config)
        specs = {stream: settled_spec(self._cache, stream, net, self._config) for stream, net in networks.items()}
        writers = {stream: _NotedWriter(self._cache, spec, self._ledger) for stream, spec in specs.items()}
        self._line = threading.Thread(target=self._run, args=(networks, writers), name="line", daemon=True)
        self._line.start()
        return specs

    def extract(self, tasks: list[Task]) -> list[Failure]:
        """Extract a chunk of clips; while its last ones are under way, the next chunk's first ones are, too.

        Returns:
            The failures; all other streams of these clips are on disk now, as are the failures.

        Raises:
            UserError: As it ended the line.
            MachineError: As it ended the line.
        """
        future = self._ledger.open(tasks)
        self._feed.put(tasks)
        return future.result()

    def stop(self) -> None:
        """Write what is finished and end the decoders."""
        self._stopped.set()
        if self._line:
            self._line.join()

    def _run(self, networks: "Mapping[str, Network]", writers: Mapping[str, StreamWriter]) -> None:
        from .line import run_line

        # Spawned processes import the file that their parent runs: here Ray's own, which they do not need.
        vars(sys.modules["__main__"]).pop("__file__", None)
        lanes = [networks] * (LANES_ON_GPU if self._config.device == "cuda" else max(1, self._cpus))
        tally = Tally(Plan(lambda: iter(())), time.monotonic())  # the driver's one counts
        try:
            with DecoderPool(self._config.workers or max(1, self._cpus), self._config.timeout_seconds) as pool:
                run_line(self._results(pool, networks), lanes, writers, tally, lambda _: None)
        except BaseException as error:  # raised again in `extract`
            self._ledger.close(error)
        else:
            self._ledger.close(RuntimeError("the actor was stopped"))

    def _results(self, pool: DecoderPool, networks: "Mapping[str, Network]") -> Iterator[Decoded | None]:
        """Yield the decoders' results for all chunks there will be; None when there was none for a while."""
        settings = decode_settings(self._config, networks)
        while not self._stopped.is_set():
            for decoded in pool.results(self._feed, settings):
                yield decoded
                if self._stopped.is_set():
                    return
            yield None
            self._feed.wait(HEARTBEAT_SECONDS)


class _Feed(Iterator[Task]):
    """Clips to be decoded. Unlike other iterators it may run dry and go on again when more clips have come."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._arrived = threading.Event()

    def put(self, tasks: list[Task]) -> None:
        for task in tasks:
            self._tasks.put(task)
        self._arrived.set()

    def wait(self, seconds: float) -> None:
        """Wait until clips arrive, at most so long."""
        self._arrived.wait(seconds)
        self._arrived.clear()

    def __next__(self) -> Task:
        try:
            return self._tasks.get_nowait()
        except queue.Empty:
            raise StopIteration from None


@dataclass
class _OpenChunk:
    left: int
    """Rows and failures that are still to come."""
    failures: list[Failure] = field(default_factory=list)
    """Those that came."""
    future: "Future[list[Failure]]" = field(default_factory=Future)
    """Done when all are on disk."""


class _Ledger:
    """Knows what is still missing of each chunk, and has it written as soon as nothing is."""

    def __init__(self) -> None:
        self.writers: list[StreamWriter] = []
        self._chunks: dict[str, _OpenChunk] = {}
        self._error: BaseException | None = None
        self._lock = threading.Lock()

    def open(self, tasks: list[Task]) -> "Future[list[Failure]]":
        """Begin a chunk."""
        chunk = _OpenChunk(sum(len(task.streams) for task in tasks))
        with self._lock:
            self._chunks |= {task.clip.id: chunk for task in tasks}
            if self._error:
                chunk.future.set_exception(self._error)
        return chunk.future

    def note(self, clip_id: str, failure: Failure | None = None) -> None:
        """Count a row or a failure that was added to a writer; called on the thread that owns the writers."""
        with self._lock:
            chunk = self._chunks[clip_id]
        chunk.left -= 1
        chunk.failures += [failure] if failure else []
        if chunk.left:
            return
        for writer in self.writers:
            writer.flush()
        with self._lock:
            self._chunks = {key: other for key, other in self._chunks.items() if other is not chunk}
        chunk.future.set_result(chunk.failures)

    def close(self, error: BaseException) -> None:
        """End the chunks under way, and all later ones, with an error."""
        with self._lock:
            self._error = error
            for chunk in {id(chunk): chunk for chunk in self._chunks.values()}.values():
                chunk.future.set_exception(error)


class _NotedWriter(StreamWriter):
    """Tells a ledger what is added."""

    def __init__(self, root: Path, spec: StreamSpec, ledger: _Ledger) -> None:
        super().__init__(root, spec)
        self._ledger = ledger
        ledger.writers.append(self)

    def add(self, row: Row) -> None:
        super().add(row)
        self._ledger.note(row.clip_id)

    def add_failure(self, failure: Failure) -> None:
        super().add_failure(failure)
        self._ledger.note(failure.clip_id, failure)
