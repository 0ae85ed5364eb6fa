"""The speed of extraction, as ratios within one run: beside its stages' cost, and beside a plain loop."""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from ..cache.errors import UserError
from ..extract.clips import Clip
from ..extract.config import ExtractConfig
from ..extract.flow.render import render
from ..extract.frames import fit, reduced_size, resize
from ..extract.job import cores, extract
from ..extract.networks import Network, load_networks
from ..extract.sampling import Sampling, frame_positions, successors
from ..extract.stages import stage_seconds
from .datasets import list_clips
from .synth import generate


def bench_extract(videos: Path | None, config: ExtractConfig, clips: int) -> dict[str, Any]:
    """Extract some clips, measure each stage alone on one thread, and run a plain loop over the same clips.

    Args:
        videos: A dataset; None makes synthetic clips.
        config: Settings of the job.
        clips: How many clips of the dataset, evenly chosen.

    Returns:
        clips, cores, seconds, clips_per_second, stages (core-seconds of each alone), core_seconds (their sum),
        ratio = seconds / (core_seconds / cores): 1 is a machine that is never idle and wastes nothing; plain_seconds,
        speedup (over the plain loop), peak_mib (memory of this process and of the largest decoder process).
    """
    with some_clips(videos, clips) as chosen, tempfile.TemporaryDirectory() as directory:
        report = extract(chosen, Path(directory) / "cache", config)
        peak = {"job": _peak_mib(resource.RUSAGE_SELF), "decoder": _peak_mib(resource.RUSAGE_CHILDREN)}
        stages = stage_seconds(chosen, config)
        # In a process of its own: nothing that the job has set up there may help or hinder the loop.
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            plain = process.submit(plain_seconds, chosen, config, Path(directory)).result()
    total = sum(stages.values())
    return {
        "clips": report.done,
        "cores": cores(),
        "seconds": report.seconds,
        "clips_per_second": report.clips_per_second,
        "stages": stages,
        "core_seconds": total,
        "ratio": report.seconds / (total / cores()),
        "plain_seconds": plain,
        "speedup": plain / report.seconds,
        "peak_mib": peak,
    }


@contextmanager
def some_clips(videos: Path | None, count: int) -> Iterator[list[Clip]]:
    """Choose clips evenly from a data set, or make synthetic ones for as long as they are needed."""
    with tempfile.TemporaryDirectory() as directory:
        source = videos or Path(directory) / "videos"
        if videos is None:
            generate(source, clips_per_class=max(1, count // 24), num_frames=24)
        listed = list_clips(source)
        if any(clip.span or isinstance(clip.path, str) for clip in listed):
            raise UserError(f"OpenCV reads no shards and no URLs; {source}; bench a folder or a CSV of local files")
        yield [listed[i] for i in np.unique(np.linspace(0, len(listed) - 1, min(count, len(listed))).astype(int))]


def plain_seconds(clips: Sequence[Clip], config: ExtractConfig, folder: Path) -> float:
    """Return the wall time of the loop that one would write: OpenCV reads and computes flow, one image a network run.

    The same frames, the same networks and settings as in the job, torch and OpenCV with all their threads; each clip's
    features go into a file of their own. Loading the networks is part of it, as it is of the job.
    """
    started = time.perf_counter()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(cores())
    try:
        with torch.inference_mode():
            networks = load_networks(config)
            for number, clip in enumerate(clips):
                frames = _read_all(str(clip.path))
                if len(frames) < 2:  # the job lists such clips as failures
                    continue
                for stream, network in networks.items():
                    images = _images(stream, frames, network, config)
                    features = [network.backbone.features(_one(image, network)) for image in images]
                    np.save(folder / f"{number}-{stream}.npy", torch.cat(features).half().cpu().numpy())
    finally:
        cv2.setNumThreads(threads)
    return time.perf_counter() - started


def _read_all(path: str) -> list[NDArray[np.uint8]]:
    capture = cv2.VideoCapture(path)
    frames: list[NDArray[np.uint8]] = []
    while True:
        there, frame = capture.read()
        if not there:
            return frames
        frames.append(np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8))


def _images(
    stream: str, frames: list[NDArray[np.uint8]], network: Network, config: ExtractConfig
) -> Iterator[NDArray[Any]]:
    """Yield the items of a stream's network, one after the other."""
    settings = network.settings
    sampling = Sampling(config.frames * network.backbone.fields, config.views, config.seed)
    positions = frame_positions(len(frames), sampling, "")
    small_size = reduced_size(frames[0].shape[0], frames[0].shape[1], settings.want.short_side)
    made = []
    for view in positions if stream == "rgb" else np.stack(successors(positions, len(frames)), axis=-1):
        for at in view:
            picked = [resize(frames[i], *small_size) for i in np.atleast_1d(at)]
            image = picked[0] if stream == "rgb" else _flow_image(picked, network, config)
            made.append(fit(image, settings.size, settings.fit, settings.want.short_side))
    product = np.stack(made).reshape(config.views, -1, *made[0].shape)
    yield from network.items(product, config.frames)


def _flow_image(pair: list[NDArray[np.uint8]], network: Network, config: ExtractConfig) -> NDArray[Any]:
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pair]
    p = config.flow_parameters
    flow: NDArray[np.float32] = cv2.calcOpticalFlowFarneback(  # type: ignore[call-overload]
        *grey, None, p.pyr_scale, p.levels, p.winsize, p.iterations, p.poly_n, p.poly_sigma, p.flags
    )
    return flow if network.backbone.channels == 2 else render(flow, config.flow_scale)


def _one(item: NDArray[Any], network: Network) -> torch.Tensor:
    return torch.from_numpy(item[None]).to(network.backbone.device)


def _peak_mib(who: int) -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(who).ru_maxrss * unit / 2**20
