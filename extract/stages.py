"""What each stage of the extraction costs alone, on one thread: the measure for the whole job's wall time."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..cache import Row, StreamWriter
from .allocator import keep_freed_memory
from .batcher import Batcher
from .clips import Clip
from .config import ExtractConfig, decode_settings
from .decode import DecodeError
from .networks import Network, load_networks
from .prepare import prepare
from .source import source_of
from .spec import stream_spec
from .worker import Task, sample


def stage_seconds(clips: Sequence[Clip], config: ExtractConfig) -> dict[str, float]:
    """Run the stages one after the other on one thread.

    Args:
        clips: Clips that can be decoded; others are left out.
        config: Settings of the job.

    Returns:
        CPU seconds (user and system) for all clips: "decode", "prepare-rgb" (to the network's square), "prepare-flow"
        (flow, rendering, square; part of "network-flow" if the flow is computed there), "network-rgb", "network-flow"
        and "write". Starting and loading are left out.
    """
    networks = load_networks(config)
    keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with torch.inference_mode():
            _Stages(networks, config).run(clips[:1])  # the first run pays for what all others reuse
            return _Stages(networks, config).run(clips)
    finally:
        torch.set_num_threads(threads)


class _Stages:
    """The stages in a row, with a clock for each."""

    def __init__(self, networks: dict[str, Network], config: ExtractConfig) -> None:
        self._seconds: dict[str, float] = {}
        self._networks = networks
        self._frames = config.frames
        self._settings = decode_settings(config, networks)
        self._flow = self._settings.flow_backend()
        self._specs = {stream: stream_spec(stream, network, config) for stream, network in networks.items()}
        self._batchers: dict[str, Batcher[None]] = {s: Batcher(network.batch_size) for s, network in networks.items()}
        self._rows: dict[str, list[Row]] = {stream: [] for stream in networks}

    def run(self, clips: Sequence[Clip]) -> dict[str, float]:
        """Take clips through decoding, the networks and the cache; returns the seconds of each stage."""
        for clip in clips:
            self._take(clip)
        for stream, batcher in self._batchers.items():
            with self._clock(f"network-{stream}"):
                for batch in batcher.rest():
                    self._networks[stream].run(batch.items)
        with tempfile.TemporaryDirectory() as directory, self._clock("write"):
            for stream, rows in self._rows.items():
                with StreamWriter(Path(directory), self._specs[stream]) as writer:
                    for row in rows:
                        writer.add(row)
        return self._seconds

    def _take(self, clip: Clip) -> None:
        task = Task(clip, tuple(self._networks))
        try:
            with self._clock("decode"):
                sampled = sample(task, self._settings)
        except DecodeError:
            return
        for stream, array in sampled.arrays.items():
            with self._clock(f"prepare-{stream}"):
                product = prepare(array, self._settings.streams[stream], self._flow, self._settings.flow.scale)
            self._run_network(stream, product)
            self._rows[stream].append(self._row(clip, stream, sampled.times[stream]))

    def _run_network(self, stream: str, product: NDArray[Any]) -> None:
        network = self._networks[stream]
        items = network.items(product, self._frames)
        with self._clock(f"network-{stream}"):
            for batch in self._batchers[stream].add(items, [None] * len(items)):
                network.run(batch.items)

    def _row(self, clip: Clip, stream: str, times: NDArray[np.float64]) -> Row:
        """Return a row of the right shape; what it costs to write does not depend on the values."""
        features = np.zeros((*times.shape, *self._networks[stream].feature_shape), np.float16)
        return Row(clip.id, clip.label, features, times, *source_of(clip))

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + time.process_time() - start
