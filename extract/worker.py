"""The decoder process: clips in, images ready for the networks out. Imports no torch, so that many start quickly."""

import multiprocessing
import os
import threading
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .allocator import keep_freed_memory
from .clips import Clip
from .decode import DecodeError, Sampled, decode_clip
from .flow import HOST_BACKENDS, FlowBackend
from .prepare import FlowSettings, StreamSettings, prepare
from .sampling import Sampling
from .source import source_of

READY = "ready"
"""What a worker sends once it has started."""


@dataclass(frozen=True)
class DecodeSettings:
    """What a worker does with every clip."""

    sampling: Sampling
    """Which frames are taken."""
    streams: dict[str, StreamSettings]
    """What is made for each stream."""
    flow: FlowSettings
    """How flow is computed."""
    hwaccel: str = "none"
    """Hardware that decodes where it can."""

    def flow_backend(self) -> FlowBackend | None:
        """Return what computes flow here; None if that is done with the networks."""
        backend = HOST_BACKENDS.get(self.flow.backend)
        return backend(self.flow.parameters) if backend else None


@dataclass(frozen=True)
class Task:
    """A clip and the streams that are wanted of it."""

    clip: Clip
    """The clip."""
    streams: tuple[str, ...]
    """Subset of "rgb" and "flow"."""
    standing: bool = False
    """Whether another stream of the clip failed in an earlier job, and stays so."""


@dataclass(frozen=True)
class Decoded:
    """What became of a task: each wanted stream is either in `products` or in `failures`."""

    task: Task
    """The task."""
    source: tuple[int, int]
    """Size in bytes and mtime in nanoseconds of the clip's file; zeros if there is none."""
    products: dict[str, NDArray[Any]] = field(default_factory=dict)
    """Stream -> what `prepare` made, `[V, F, ...]`."""
    times: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Stream -> seconds `[V, T]` of its features."""
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Stream -> reason code and message."""


def serve(connection: Connection) -> None:
    """Run a worker: say `READY`, then answer each pair of `Task` and `DecodeSettings` with a `Decoded`."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    cv2.setNumThreads(0)
    keep_freed_memory()
    try:
        connection.send(READY)
        while True:
            connection.send(decode_task(*connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def decode_task(task: Task, settings: DecodeSettings) -> Decoded:
    """Decode a clip for the wanted streams; whatever goes wrong with it becomes a reason code."""
    source = source_of(task.clip)
    try:
        sampled = sample(task, settings)
        flow = settings.flow_backend()
        products = {
            stream: prepare(array, settings.streams[stream], flow, settings.flow.scale)
            for stream, array in sampled.arrays.items()
        }
        missing = [stream for stream in task.streams if stream not in products]
        failures = dict.fromkeys(missing, ("single-frame", "the clip has one frame, flow needs two"))
        return Decoded(task, source, products, sampled.times, failures)
    except DecodeError as error:
        return failed(task, error.reason, error.message, source)
    except Exception as error:  # one odd clip must not end a job of thousands
        return failed(task, "decoder-error", f"{type(error).__name__}: {error}", source)


def sample(task: Task, settings: DecodeSettings) -> Sampled:
    """Decode what the wanted streams need of a clip.

    Raises:
        DecodeError: If the clip cannot be decoded.
    """
    wants = {stream: settings.streams[stream].want for stream in task.streams}
    clip = task.clip
    return decode_clip(clip.path, settings.sampling, wants, clip_id=clip.id, span=clip.span, hwaccel=settings.hwaccel)


def failed(task: Task, reason: str, message: str, source: tuple[int, int]) -> Decoded:
    """Return a task's result if none of its streams could be had."""
    line = " ".join(message.split())
    return Decoded(task, source, failures=dict.fromkeys(task.streams, (reason, line)))


def _die_with_parent() -> None:
    """End this process as soon as its parent is gone, whatever the other thread is busy with."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
