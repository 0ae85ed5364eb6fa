"""What each stage of the extraction costs alone, on one thread: the measure for the whole job's wall time."""

import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..cache import Row, StreamSpec, StreamWriter
from .clips import Clip
from .config import ExtractConfig, decode_settings, stream_spec
from .decode import DecodeError
from .flow import FLOW_BACKENDS
from .lanes import Batcher
from .networks import Network, load_networks
from .worker import Task, prepare, sample, source_of


def stage_seconds(clips: Iterable[Clip], config: ExtractConfig) -> dict[str, float]:
    """Run the stages one after the other on one thread.

    Args:
        clips: Clips that can be decoded; others are left out.
        config: Settings of the job.

    Returns:
        CPU seconds (user and system) for all clips: "decode", "prepare-rgb" (to the network's square), "prepare-flow"
        (flow, rendering, square), "network-rgb", "network-flow" and "write". Starting and loading are left out.
    """
    networks = load_networks(config)
    stages = _Stages(networks, config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with torch.inference_mode():
            for network in networks.values():  # the first run pays for what all others reuse
                network.run(np.zeros((network.batch_size, network.side, network.side, 3), np.uint8))
            for clip in clips:
                stages.run(clip)
            stages.finish()
    finally:
        torch.set_num_threads(threads)
    return stages.seconds


class _Stages:
    """The stages in a row, with a clock for each."""

    def __init__(self, networks: dict[str, Network], config: ExtractConfig) -> None:
        self.seconds: dict[str, float] = {}
        self._networks = networks
        self._settings = decode_settings(config, {stream: network.side for stream, network in networks.items()})
        self._flow = FLOW_BACKENDS[config.flow_backend](config.flow_parameters)
        self._specs = {stream: stream_spec(stream, net.backbone, config) for stream, net in networks.items()}
        self._batchers: dict[str, Batcher[None]] = {s: Batcher(net.batch_size, net.side) for s, net in networks.items()}
        self._rows: dict[str, list[Row]] = {stream: [] for stream in networks}

    def run(self, clip: Clip) -> None:
        """Take a clip through decoding and the networks."""
        task = Task(clip, tuple(self._networks))
        try:
            with self._clock("decode"):
                sampled = sample(task, self._settings)
            for stream in task.streams:
                with self._clock(f"prepare-{stream}"):
                    images = prepare(stream, sampled, self._settings, self._flow)
                self._run_network(stream, images)
                self._rows[stream].append(_row(clip, self._specs[stream], sampled.times))
        except DecodeError:
            return

    def finish(self) -> None:
        """Run the last, partial batches, and write all rows."""
        for stream, batcher in self._batchers.items():
            with self._clock(f"network-{stream}"):
                for batch in batcher.rest():
                    self._networks[stream].run(batch.images)
        with tempfile.TemporaryDirectory() as directory, self._clock("write"):
            for stream, rows in self._rows.items():
                with StreamWriter(Path(directory), self._specs[stream]) as writer:
                    for row in rows:
                        writer.add(row)

    def _run_network(self, stream: str, images: NDArray[np.uint8]) -> None:
        flat = images.reshape(-1, *images.shape[2:])
        with self._clock(f"network-{stream}"):
            for batch in self._batchers[stream].add(flat, [None] * len(flat)):
                self._networks[stream].run(batch.images)

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.process_time() - start


def _row(clip: Clip, spec: StreamSpec, times: NDArray[np.float64]) -> Row:
    """Return a row of the right shape; what it costs to write does not depend on the values."""
    features = np.zeros((spec.views, spec.frames, spec.dim), np.float16)
    return Row(clip.id, clip.label, features, times, *source_of(clip))
