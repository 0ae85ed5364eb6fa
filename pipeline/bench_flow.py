"""The speed of the flow backends, and how far their flow lies from OpenCV's."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..cache.errors import UserError
from ..extract.clips import Clip
from ..extract.decode import DecodeError, Want, decode_clip
from ..extract.flow import DEVICE_BACKENDS, HOST_BACKENDS, FarnebackParameters, load_device_backend
from ..extract.flow.render import render
from ..extract.networks import find_devices
from ..extract.sampling import Sampling
from .bench_extract import some_clips

PAIRS_A_CLIP = 8


def bench_flow(
    videos: Path | None,
    backends: Sequence[str],
    *,
    pairs: int,
    short_side: int,
    device: str,
    parameters: FarnebackParameters,
) -> dict[str, Any]:
    """Compute the flow of the same pairs with each backend.

    Args:
        videos: A dataset; None makes synthetic clips.
        backends: Names; OpenCV's, which the others are compared with, is always measured.
        pairs: How many pairs.
        short_side: Of the frames, in pixels.
        device: Where device backends run; a single one.
        parameters: Of the flow.

    Returns:
        pairs, height, width, threads, device, and for each backend: pairs_per_second, speedup (over OpenCV on one
        thread), mean, p999 and max (end-point differences from OpenCV in pixels), codes (share of 8-bit codes of the
        rendered flow that differ), or "unavailable" with the reason.

    Raises:
        UserError: If no clip can be decoded.
    """
    with some_clips(videos, -(-pairs // PAIRS_A_CLIP) * 2) as clips:
        batch = _pairs(clips, short_side)[:pairs]
    place = find_devices(device)[0]
    expected, opencv_rate = _timed(lambda: HOST_BACKENDS["opencv"](parameters)(batch), len(batch))
    itself = {"pairs_per_second": opencv_rate, "speedup": 1.0, **_difference(expected, expected)}
    found: dict[str, Any] = {"opencv": itself}
    for name in backends:
        if name != "opencv":
            found[name] = _measure(name, batch, parameters, place, expected, opencv_rate)
    return {
        "pairs": len(batch),
        "height": batch.shape[2],
        "width": batch.shape[3],
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
        "backends": found,
    }


def _measure(
    name: str,
    batch: NDArray[np.uint8],
    parameters: FarnebackParameters,
    place: torch.device,
    expected: NDArray[np.float32],
    opencv_rate: float,
) -> dict[str, Any]:
    try:
        flow, rate = _timed(_runner(name, batch, parameters, place), len(batch))
    except UserError as error:
        return {"unavailable": str(error)}
    return {"pairs_per_second": rate, "speedup": rate / opencv_rate, **_difference(flow, expected)}


def _runner(
    name: str, batch: NDArray[np.uint8], parameters: FarnebackParameters, place: torch.device
) -> Callable[[], NDArray[np.float32] | torch.Tensor]:
    if name not in DEVICE_BACKENDS:
        host = HOST_BACKENDS[name](parameters)
        return lambda: host(batch)
    flow = load_device_backend(name, parameters, place)
    pairs = torch.from_numpy(batch).to(place)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            out = flow(pairs)
        if place.type == "cuda":  # kernels run on after their launch
            torch.cuda.synchronize(place)
        return out

    return run


def _timed(run: Callable[[], NDArray[np.float32] | torch.Tensor], pairs: int) -> tuple[NDArray[np.float32], float]:
    """Return the flow and pairs a second: the first run compiles and warms up, the best of three counts.

    On a GPU the flow stays there, as it does in an extraction.
    """
    flow = run()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return flow.cpu().numpy() if isinstance(flow, torch.Tensor) else flow, pairs / min(seconds)


def _difference(flow: NDArray[np.float32], expected: NDArray[np.float32]) -> dict[str, float]:
    distance = np.hypot(*np.moveaxis(flow.astype(np.float64) - expected, -1, 0))
    return {
        "mean": float(distance.mean()),
        "p999": float(np.quantile(distance, 0.999)),
        "max": float(distance.max()),
        "codes": float((render(flow) != render(expected)).mean()),
    }


def _pairs(clips: Sequence[Clip], short_side: int) -> NDArray[np.uint8]:
    """Decode pairs `[N, 2, H, W]` of the most frequent size among the clips."""
    found = []
    for clip in clips:
        try:
            wants = {"flow": Want(short_side, pairs=True)}
            sampled = decode_clip(clip.path, Sampling(PAIRS_A_CLIP), wants, clip_id=clip.id, span=clip.span)
        except DecodeError:
            continue
        found.append(sampled.arrays["flow"][0])
    if not found:
        raise UserError("no clip can be decoded; the data set; give clips of at least two frames")
    shape = Counter(pairs.shape for pairs in found).most_common(1)[0][0]
    return np.concatenate([pairs for pairs in found if pairs.shape == shape])
