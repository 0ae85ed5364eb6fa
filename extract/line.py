"""The way of the images from the decoders through the networks into the cache."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..cache import Failure, StreamWriter
from .alarm import Alarm
from .lanes import Lanes
from .networks import Network
from .report import Progress, Tally
from .rows import ClipState, Pending, RowWriter
from .worker import Decoded

Slot = tuple[Pending, int]
"""An item whose features are wanted: its clip's stream, and its number there."""


def run_line(
    results: Iterable[Decoded | None],
    lanes_networks: Sequence[Mapping[str, Network]],
    writers: Mapping[str, StreamWriter],
    tally: Tally,
    progress: Callable[[Progress], None],
) -> None:
    """Send all results of the decoders through the networks into the cache.

    Args:
        results: What the decoders yield; None when they had nothing for a while.
        lanes_networks: For each thread that runs networks, these by stream.
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
    lanes: Lanes[Slot] = Lanes(lanes_networks, _Delivery(rows, tally), alarm)
    try:
        for decoded in results:
            alarm.check()
            if decoded is None:
                lanes.flush()  # nothing comes: what waits for mates in its batch shall not wait on
            else:
                _record_failures(decoded, rows, tally)
                _submit(decoded, lanes_networks[0], lanes)
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
        for (pending, item), values in zip(slots, features, strict=True):
            if pending.fill(item, values):
                self._rows.put(stream, pending.row())
                if pending.clip.settle():
                    self._tally.complete()


def _record_failures(decoded: Decoded, rows: RowWriter, tally: Tally) -> None:
    """Write down why streams of a clip have no images."""
    clip = decoded.task.clip
    failures = [
        (stream, Failure(clip.id, clip.label, reason, message, *decoded.source))
        for stream, (reason, message) in decoded.failures.items()
    ]
    for stream, failure in failures:
        rows.put(stream, failure)
    if failures:
        tally.fail([failure for _, failure in failures], counted=decoded.task.standing)


def _submit(decoded: Decoded, networks: Mapping[str, Network], lanes: Lanes[Slot]) -> None:
    """Hand a clip's items to the networks."""
    without_products = replace(decoded, products={})
    clip = ClipState(len(decoded.products), failed=bool(decoded.failures) or decoded.task.standing)
    for stream, product in decoded.products.items():
        network = networks[stream]
        frames = decoded.times[stream].shape[1]
        items = network.items(product, frames)
        features = np.empty((*decoded.times[stream].shape, *network.feature_shape), np.float16)
        pending = Pending(without_products, stream, features, len(items), clip)
        lanes.submit(stream, items, [(pending, item) for item in range(len(items))])
