"""The threads that run the networks on batches of many clips' items."""

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Generic

import numpy as np
import torch
from numpy.typing import NDArray

from .alarm import POLL_SECONDS, Alarm, put
from .batcher import Batch, Batcher, Slot
from .networks import Network


class Lanes(Generic[Slot]):
    """Threads that run the networks; whichever is free takes the next batch, of whatever stream.

    On a CPU there is a lane for each core and each lane keeps to one thread of its own: that wastes less than sharing
    one image between cores, leaves no core idle while decoding is slow, and the features do not depend on their number.
    A GPU has two lanes with a CUDA stream each, so that one copies while the other computes.

    Args:
        lanes: For each lane its networks by stream.
        deliver: Called on the lanes' threads with stream, slots and features `[len(slots), k, ...]`.
        alarm: Rings on an error here, and ends the lanes when it rings elsewhere.
    """

    def __init__(
        self,
        lanes: Sequence[Mapping[str, Network]],
        deliver: Callable[[str, list[Slot], NDArray[np.float16]], None],
        alarm: Alarm,
    ) -> None:
        self._batchers: dict[str, Batcher[Slot]] = {
            stream: Batcher(network.batch_size) for stream, network in lanes[0].items()
        }
        self._deliver = deliver
        self._alarm = alarm
        # For each lane one batch at hand beside the one under way.
        self._batches: queue.Queue[tuple[str, Batch[Slot]] | None] = queue.Queue(len(lanes))
        self._threads = [
            threading.Thread(target=self._run, args=(networks,), name=f"lane-{i}", daemon=True)
            for i, networks in enumerate(lanes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, stream: str, items: NDArray[Any], slots: list[Slot]) -> None:
        """Hand over items `[N, ...]`; waits while the lanes have enough to do.

        Raises:
            BaseException: The alarm's error, if it rings.
        """
        for batch in self._batchers[stream].add(items, slots):
            put(self._batches, (stream, batch), self._alarm)

    def flush(self) -> None:
        """Run the items that wait for others of their batch.

        Raises:
            BaseException: The alarm's error, if it rings.
        """
        for stream, batcher in self._batchers.items():
            for batch in batcher.rest():
                put(self._batches, (stream, batch), self._alarm)

    def finish(self) -> None:
        """Run all that was submitted and end the lanes.

        Raises:
            BaseException: The alarm's error, if it rings.
        """
        self.flush()
        for _ in self._threads:
            put(self._batches, None, self._alarm)
        self.join()
        self._alarm.check()

    def join(self) -> None:
        """Wait for the end of the lanes, after `finish` or an alarm."""
        for thread in self._threads:
            thread.join()

    def _run(self, networks: Mapping[str, Network]) -> None:
        torch.set_num_threads(1)
        try:
            with torch.inference_mode(), _own_cuda_stream(networks):
                while self._alarm.error is None:
                    try:
                        item = self._batches.get(timeout=POLL_SECONDS)
                    except queue.Empty:
                        continue
                    if item is None:
                        return
                    stream, batch = item
                    features = networks[stream].run(batch.items, len(batch.slots))
                    self._deliver(stream, batch.slots, features)
        except BaseException as error:  # raised again on the job's thread
            self._alarm.ring(error)


def _own_cuda_stream(networks: Mapping[str, Network]) -> Any:
    """Return a context in which this thread's work on a GPU is queued apart from other threads'."""
    device = next(iter(networks.values())).backbone.device
    return (
        torch.cuda.stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]
        if device.type == "cuda"
        else nullcontext()
    )
