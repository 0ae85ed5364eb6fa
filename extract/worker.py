"""The decoder process: clips in, images ready for the networks out. Imports no torch, so that many start quickly."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from .clips import Clip
from .decode import DecodeError, Sampled, decode_clip
from .flow import FLOW_BACKENDS, FarnebackParameters, FlowBackend
from .flow.render import render
from .frames import fit
from .sampling import Sampling

READY = "ready"
"""What a worker sends once it has started."""


@dataclass(frozen=True)
class DecodeSettings:
    """What a worker does with every clip."""

    sampling: Sampling
    """Which frames are taken."""
    sides: dict[str, int]
    """Side of the images of each stream, in pixels."""
    fit: Literal["crop", "squash"]
    """How a frame becomes a square."""
    flow_backend: str
    """What computes the flow."""
    flow_parameters: FarnebackParameters
    """Parameters of the flow."""
    flow_scale: float
    """Grey levels per pixel of displacement in the rendered flow."""


@dataclass(frozen=True)
class Task:
    """A clip and the streams that are wanted of it."""

    clip: Clip
    """The clip."""
    streams: tuple[str, ...]
    """Subset of "rgb" and "flow"."""


@dataclass(frozen=True)
class Decoded:
    """What became of a task: each wanted stream is either in `images` or in `failures`."""

    task: Task
    """The task."""
    source: tuple[int, int]
    """Size in bytes and mtime in nanoseconds of the clip's file; zeros if there is none."""
    images: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Stream -> `[V, T, S, S, 3]`."""
    times: NDArray[np.float64] | None = None
    """Seconds `[V, T]` at which the frames are shown."""
    failures: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Stream -> reason code and message."""


def serve(connection: Connection) -> None:
    """Run a worker: say `READY`, then answer each pair of `Task` and `DecodeSettings` with a `Decoded`."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    cv2.setNumThreads(0)
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
        backend = FLOW_BACKENDS[settings.flow_backend](settings.flow_parameters)
        sampled = sample(task, settings)
        images, failures = {}, {}
        for stream in task.streams:
            try:
                images[stream] = prepare(stream, sampled, settings, backend)
            except DecodeError as error:
                failures[stream] = (error.reason, error.message)
        return Decoded(task, source, images, sampled.times, failures)
    except DecodeError as error:
        return failed(task, error.reason, error.message, source)
    except Exception as error:  # one odd clip must not end a job of thousands
        return failed(task, "decoder-error", f"{type(error).__name__}: {error}", source)


def sample(task: Task, settings: DecodeSettings) -> Sampled:
    """Decode what the wanted streams need of a clip.

    Raises:
        DecodeError: If the clip cannot be decoded.
    """
    sides = {stream: side for stream, side in settings.sides.items() if stream in task.streams}
    return decode_clip(
        task.clip.path,
        settings.sampling,
        clip_id=task.clip.id,
        rgb_short_side=sides.get("rgb"),
        grey_short_side=sides.get("flow"),
    )


def prepare(stream: str, sampled: Sampled, settings: DecodeSettings, backend: FlowBackend) -> NDArray[np.uint8]:
    """Make a stream's images `[V, T, S, S, 3]` from the decoded frames.

    Raises:
        DecodeError: "single-frame" for flow of a clip of one frame.
    """
    return _PREPARE[stream](sampled, settings, backend)


def _prepare_rgb(sampled: Sampled, settings: DecodeSettings, _: FlowBackend) -> NDArray[np.uint8]:
    assert sampled.images is not None
    return fit(sampled.images, settings.sides["rgb"], settings.fit)


def _prepare_flow(sampled: Sampled, settings: DecodeSettings, backend: FlowBackend) -> NDArray[np.uint8]:
    if sampled.pairs is None:
        raise DecodeError("single-frame", "the clip has one frame, flow needs two")
    views, frames = sampled.pairs.shape[:2]
    flow = backend(sampled.pairs.reshape(views * frames, *sampled.pairs.shape[2:]))
    images = fit(render(flow, settings.flow_scale), settings.sides["flow"], settings.fit)
    return images.reshape(views, frames, *images.shape[1:])


_PREPARE: dict[str, Callable[[Sampled, DecodeSettings, FlowBackend], NDArray[np.uint8]]] = {
    "rgb": _prepare_rgb,
    "flow": _prepare_flow,
}


def failed(task: Task, reason: str, message: str, source: tuple[int, int]) -> Decoded:
    """Return a task's result if none of its streams could be had."""
    line = " ".join(message.split())
    return Decoded(task, source, failures=dict.fromkeys(task.streams, (reason, line)))


def source_of(clip: Clip) -> tuple[int, int]:
    """Return size and mtime_ns of a clip's file, zeros if it cannot be looked at."""
    try:
        status = os.stat(clip.path)
    except (OSError, ValueError):
        return (0, 0)
    return (status.st_size, status.st_mtime_ns)


def _die_with_parent() -> None:
    """End this process as soon as its parent is gone, whatever the other thread is busy with."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
