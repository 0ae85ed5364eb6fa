"""The networks: images of many clips are packed into batches of one fixed size, and run on a few threads."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from .alarm import POLL_SECONDS, Alarm, put
from .networks import Network

Slot = TypeVar("Slot")


@dataclass(frozen=True)
class Batch(Generic[Slot]):
    """Images for one run of a network."""

    images: NDArray[np.uint8]
    """`[B, S, S, 3]`, the last ones zero if there are fewer slots."""
    slots: list[Slot]
    """What each image belongs to; at most B."""


class Batcher(Generic[Slot]):
    """Packs images into batches of one fixed size.

    The size never changes, since features depend on it in their last bits; they do not depend on an image's place in
    the batch, nor on the other images.

    Args:
        size: Images of a batch (B).
        side: Side of the images (S).
    """

    def __init__(self, size: int, side: int) -> None:
        self._shape = (size, side, side, 3)
        self._start()

    def add(self, images: NDArray[np.uint8], slots: list[Slot]) -> Iterator[Batch[Slot]]:
        """Take images `[N, S, S, 3]` with a slot each, and yield the batches that get full."""
        for image, slot in zip(images, slots, strict=True):
            self._images[len(self._slots)] = image
            self._slots.append(slot)
            if len(self._slots) == self._shape[0]:
                yield self._take()

    def rest(self) -> Iterator[Batch[Slot]]:
        """Yield the images that wait for others, if there are any, padded with zeros."""
        if self._slots:
            yield self._take()

    def _take(self) -> Batch[Slot]:
        batch = Batch(self._images, self._slots)
        self._start()
        return batch

    def _start(self) -> None:
        self._images: NDArray[np.uint8] = np.zeros(self._shape, np.uint8)
        self._slots: list[Slot] = []


class Lanes(Generic[Slot]):
    """Threads that run the networks; whichever is free takes the next batch, of whatever stream.

    On a CPU there is a lane for each core and each lane keeps to one thread of its own: that wastes less than sharing
    one image between cores, leaves no core idle while decoding is slow, and the features do not depend on their number.

    Args:
        networks: Stream -> its network.
        count: Lanes.
        deliver: Called on the lanes' threads with stream, slots and features `[len(slots), D]`.
        alarm: Rings on an error here, and ends the lanes when it rings elsewhere.
    """

    def __init__(
        self,
        networks: Mapping[str, Network],
        count: int,
        deliver: Callable[[str, list[Slot], NDArray[np.float16]], None],
        alarm: Alarm,
    ) -> None:
        self._networks = networks
        self._batchers: dict[str, Batcher[Slot]] = {
            stream: Batcher(network.batch_size, network.side) for stream, network in networks.items()
        }
        self._deliver = deliver
        self._alarm = alarm
        # For each lane one batch at hand beside the one under way.
        self._batches: queue.Queue[tuple[str, Batch[Slot]] | None] = queue.Queue(count)
        self._threads = [threading.Thread(target=self._run, name=f"lane-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, stream: str, images: NDArray[np.uint8], slots: list[Slot]) -> None:
        """Hand over images `[N, S, S, 3]`; waits while the lanes have enough to do.

        Raises:
            BaseException: The alarm's error, if it rings.
        """
        for batch in self._batchers[stream].add(images, slots):
            put(self._batches, (stream, batch), self._alarm)

    def flush(self) -> None:
        """Run the images that wait for others of their batch.

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

    def _run(self) -> None:
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                while self._alarm.error is None:
                    try:
                        item = self._batches.get(timeout=POLL_SECONDS)
                    except queue.Empty:
                        continue
                    if item is None:
                        return
                    stream, batch = item
                    features = self._networks[stream].run(batch.images)
                    self._deliver(stream, batch.slots, features[: len(batch.slots)])
        except BaseException as error:  # raised again on the job's thread
            self._alarm.ring(error)
