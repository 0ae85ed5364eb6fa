"""The way of the images from the decoders through the networks into the cache."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..cache import Failure, StreamWriter
from .alarm import Alarm
from .lanes import Lanes
from .networks import Network
from .report import Progress, Tally
from .rows import Pending, RowWriter
from .worker import Decoded

Slot = tuple[Pending, int]
"""A frame whose features are wanted: its clip's stream, and its number there."""


def run_line(
    results: Iterable[Decoded | None],
    networks: Mapping[str, Network],
    num_lanes: int,
    writers: Mapping[str, StreamWriter],
    tally: Tally,
    progress: Callable[[Progress], None],
) -> None:
    """Send all results of the decoders through the networks into the cache.

    Args:
        results: What the decoders yield; None when they had nothing for a while.
        networks: Stream -> its network.
        num_lanes: Threads that run the networks.
        writers: Stream -> its writer; closed here.
        tally: Told of every clip.
        progress: Called after every result.

    Raises:
        MachineError: If the disk or the memory is full.
        UserError: If the cache cannot be written any more.
    """
    alarm = Alarm()
    threads = torch.get_num_threads()
    rows = RowWriter(writers, alarm)
    lanes: Lanes[Slot] = Lanes(networks, num_lanes, _Delivery(rows, tally), alarm)
    try:
        for decoded in results:
            alarm.check()
            if decoded is None:
                lanes.flush()  # nothing comes: what waits for mates in its batch shall not wait on
            else:
                _record_failures(decoded, rows, tally)
                _submit(decoded, networks, lanes)
            progress(tally.progress())
        lanes.finish()
    except BaseException as error:  # the lanes and the writer have to end whatever it is, Ctrl-C too
        alarm.ring(error)
        raise
    finally:
        lanes.join()
        rows.finish()
        torch.set_num_threads(threads)  # a lane's setting reaches beyond its thread
    alarm.check()
    progress(tally.progress())


class _Delivery:
    """Takes features from the lanes, and hands a clip's row on when its last frame has come."""

    def __init__(self, rows: RowWriter, tally: Tally) -> None:
        self._rows = rows
        self._tally = tally

    def __call__(self, stream: str, slots: list[Slot], features: NDArray[np.float16]) -> None:
        for (pending, frame), feature in zip(slots, features, strict=True):
            if pending.fill(frame, feature):
                self._rows.put(stream, pending.row())
                self._tally.complete(pending.decoded.task.clip.id)


def _record_failures(decoded: Decoded, rows: RowWriter, tally: Tally) -> None:
    """Write down why streams of a clip have no images."""
    clip = decoded.task.clip
    for stream, (reason, message) in decoded.failures.items():
        failure = Failure(clip.id, clip.label, reason, message, *decoded.source)
        rows.put(stream, failure)
        tally.fail(failure)


def _submit(decoded: Decoded, networks: Mapping[str, Network], lanes: Lanes[Slot]) -> None:
    """Hand a clip's images to the networks."""
    without_images = replace(decoded, images={})
    for stream, images in decoded.images.items():
        views, frames = images.shape[:2]
        features = np.empty((views, frames, networks[stream].backbone.dim), np.float16)
        pending = Pending(without_images, features, left=views * frames)
        slots = [(pending, frame) for frame in range(views * frames)]
        lanes.submit(stream, images.reshape(-1, *images.shape[2:]), slots)
