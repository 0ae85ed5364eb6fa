"""From features of single frames to rows in the cache: gathering by clip, and one thread that writes."""

import queue
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..cache import Failure, Row, StreamWriter
from .alarm import Alarm, put
from .worker import Decoded

FLUSH_SECONDS = 1.0


class ClipState:
    """How many streams of a clip are still being computed, and whether it will lack one.

    Args:
        streams: Streams that are being computed.
        failed: Whether another stream failed, now or in an earlier job.
    """

    def __init__(self, streams: int, *, failed: bool) -> None:
        self._left = streams
        self._failed = failed
        self._lock = threading.Lock()

    def settle(self) -> bool:
        """Count a stream as finished; returns whether the clip has all its streams now."""
        with self._lock:
            self._left -= 1
            return self._left == 0 and not self._failed


@dataclass
class Pending:
    """A clip's stream whose features are being computed."""

    decoded: Decoded
    """The clip, without its products."""
    stream: str
    """Which stream of it."""
    features: NDArray[np.float16]
    """`[V, T, D]` or `[V, T, P, D]`, filled item by item."""
    left: int
    """Items whose features are still missing."""
    clip: ClipState
    """Shared by the clip's streams."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while `left` changes, since lanes deliver at the same time."""

    def fill(self, item: int, features: NDArray[np.float16]) -> bool:
        """Set the features `[k, ...]` of an item; returns whether the stream is complete now."""
        views, frames, *shape = self.features.shape
        k = len(features)
        self.features.reshape(views * frames, *shape)[item * k : (item + 1) * k] = features
        with self.lock:
            self.left -= 1
            return self.left == 0

    def row(self) -> Row:
        """Return the complete row."""
        clip = self.decoded.task.clip
        size, mtime_ns = self.decoded.source
        return Row(clip.id, clip.label, self.features, self.decoded.times[self.stream], size, mtime_ns)


class RowWriter:
    """One thread that owns the writers of all streams.

    Args:
        writers: Stream -> its writer; closed by this thread.
        alarm: Rings if the cache cannot be written.
    """

    def __init__(self, writers: Mapping[str, StreamWriter], alarm: Alarm) -> None:
        self._writers = writers
        self._alarm = alarm
        self._items: queue.Queue[tuple[str, Row | Failure] | None] = queue.Queue(64)
        self._thread = threading.Thread(target=self._run, name="row-writer", daemon=True)
        self._thread.start()

    def put(self, stream: str, item: Row | Failure) -> None:
        """Hand over a row or a failure.

        Raises:
            BaseException: The alarm's error, if it rings while the thread is behind.
        """
        put(self._items, (stream, item), self._alarm)

    def finish(self) -> None:
        """Write all that was handed over, and end the thread; also after an alarm, so that nothing finished is lost."""
        while self._thread.is_alive():
            try:
                self._items.put(None, timeout=FLUSH_SECONDS)
                break
            except queue.Full:
                continue
        self._thread.join()

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                for writer in self._writers.values():
                    stack.enter_context(writer)
                self._write_all()
        except BaseException as error:  # raised again on the job's thread
            self._alarm.ring(error)

    def _write_all(self) -> None:
        while True:
            try:
                item = self._items.get(timeout=FLUSH_SECONDS)
            except queue.Empty:
                pass
            else:
                if item is None:
                    return
                self._write(*item)
            for writer in self._writers.values():
                writer.flush_if_due()

    def _write(self, stream: str, item: Row | Failure) -> None:
        if isinstance(item, Row):
            self._writers[stream].add(item)
        else:
            self._writers[stream].add_failure(item)
