"""Small videos, made by PyAV, for the tests: loaded through the fixtures in conftest.py."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import cv2
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

RATE_TICKS = 90_000


def moving_texture(num_frames: int, width: int, height: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Return RGB frames of a smooth random texture that moves by (2, 1) pixels a frame."""
    noise = np.random.default_rng(seed).integers(0, 256, (height + 64, width + 64, 3), dtype=np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 3)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)  # type: ignore[call-overload]
    frames = []
    for i in range(num_frames):
        rolled = np.roll(texture, (i, 2 * i), axis=(0, 1))[:height, :width]
        frames.append(np.ascontiguousarray(rolled))
    return frames


def make_clip(
    path: Path,
    *,
    num_frames: int = 12,
    width: int = 64,
    height: int = 48,
    fps: int = 25,
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 0,
    pix_fmt: str = "yuv420p",
    seed: int = 0,
    frames: Iterable[NDArray[np.uint8]] | None = None,
    times: list[float] | None = None,
    rotation: int = 0,
    title: str = "",
    container_format: str | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a clip and return its path.

    Args:
        path: File to write; its suffix chooses the container unless `container_format` does.
        num_frames: Frames of the built-in moving texture.
        width: Width in pixels.
        height: Height in pixels.
        fps: Frames a second.
        codec: Encoder name.
        gop: Distance of key frames.
        b_frames: B-frames between references.
        pix_fmt: Pixel format.
        seed: Seed of the texture.
        frames: RGB frames `[H, W, 3]` instead of the texture.
        times: Seconds of each frame, for a variable frame rate.
        rotation: Degrees, counter-clockwise, in the display matrix.
        title: Title in the container's metadata.
        container_format: Name of the muxer.
        options: Further options of the encoder.
        container_options: Further options of the muxer.
    """
    images = moving_texture(num_frames, width, height, seed) if frames is None else frames
    encoder_options = {"preset": "ultrafast", "sc_threshold": "0"} if codec in {"libx264", "libx265"} else {}
    with av.open(path, "w", format=container_format, options=container_options or {}) as container:
        container.metadata.update({"title": title} if title else {})
        stream = cast(VideoStream, container.add_stream(codec, rate=fps, options=encoder_options | (options or {})))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        if times is not None:
            stream.codec_context.time_base = Fraction(1, RATE_TICKS)
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = i if times is None else round(times[i] * RATE_TICKS)
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, RATE_TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
