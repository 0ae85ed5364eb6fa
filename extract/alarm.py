"""Threads that stop together: the first error of any of them ends them all."""

import queue
from typing import TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.2


class Alarm:
    """Holds the first error that any thread met."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def ring(self, error: BaseException) -> None:
        """Tell all threads to stop."""
        self.error = self.error or error

    def check(self) -> None:
        """Raise the error, if there is one."""
        if self.error is not None:
            raise self.error


def put(channel: "queue.Queue[T]", item: T, alarm: Alarm) -> None:
    """Put an item into a bounded queue as soon as there is room.

    Raises:
        BaseException: The alarm's error, if it rings meanwhile.
    """
    while True:
        alarm.check()
        try:
            return channel.put(item, timeout=POLL_SECONDS)
        except queue.Full:
            continue
