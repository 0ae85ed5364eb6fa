"""Decoding of a clip's sampled frames, reduced as soon as they are decoded.

A clip is refused as damaged if a frame that had to be decoded is broken, a packet is incomplete, or the file is shorter
than its container says: features of half a clip would pass for those of a whole one. Four things are not noticed:
broken frames that need not be decoded (behind the last sampled one, or in a stretch that is jumped over), a transport
stream cut between two packets, which is a whole one, packets that a Matroska or AVI reader drops without a word when it
finds its way after damage, and codecs like VP8 that decode any bytes without complaint.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .container import open_video
from .hwaccel import hardware
from .reasons import REASONS, DecodeError
from .reduce import Collector, Sampled, Want
from .sampling import Sampling
from .scan import PacketIndex, scan_packets
from .source import open_clip
from .truncation import declared_size

__all__ = ["REASONS", "DecodeError", "Sampled", "Want", "decode_clip"]


def decode_clip(
    path: Path | str,
    sampling: Sampling,
    wants: Mapping[str, Want],
    *,
    clip_id: str,
    span: tuple[int, int] | None = None,
    hwaccel: str = "none",
) -> Sampled:
    """Decode the sampled frames of a clip.

    Args:
        path: The video file; as a `str`, a URL that fsspec opens.
        sampling: Features and views.
        wants: Stream -> what it takes; at least one.
        clip_id: The clip's identity, on which its random views depend.
        span: Offset and length in bytes of a video within an uncompressed tar; None for a file of its own.
        hwaccel: Hardware that decodes where it can; a name in `HWACCELS`.

    Returns:
        Frames and time stamps. Streams of pairs are missing in a clip of one frame, if others were asked for too.

    Raises:
        DecodeError: With a key of `REASONS` other than "timeout" and "decoder-died".
    """
    new_collector = partial(Collector, sampling, clip_id, wants)
    with open_clip(path, span) as file:
        if hardware(hwaccel) is not None:
            # Software has the last word: a GPU that is full, or cannot, says nothing about the clip.
            with suppress(DecodeError, av.error.FFmpegError, OSError):
                return _decode_file(file, hwaccel, new_collector)
        try:
            return _decode_file(file, "none", new_collector)
        except av.error.FFmpegError as error:
            raise DecodeError("damaged", f"decoding failed ({error.strerror})") from error
        except OSError as error:
            raise DecodeError("unreadable", error.strerror or str(error)) from error


def _decode_file(file: BinaryIO, hwaccel: str, new_collector: Callable[[int, float], Collector]) -> Sampled:
    """Count, choose positions, decode; decode all if the quick way does not hold what the packets promised."""
    with open_video(file) as (container, stream):
        index = scan_packets(container, stream)
        promised, rate = stream.frames, float(stream.average_rate or 0)
    _refuse_cut_file(file, index, promised)
    if index.seekable:
        collector = new_collector(index.num_frames, rate)
        if _collect_by_seeking(file, hwaccel, index, collector):
            return collector.result()
    num_frames = index.num_frames
    for _ in range(2):
        collector = new_collector(max(num_frames, 1), rate)
        decoded = _collect_in_sequence(file, hwaccel, collector)
        if decoded == num_frames:
            return collector.result()
        # Some packets hold no frame, or two: draw the positions again, from the count that decoding gave.
        num_frames = decoded
    raise DecodeError("damaged", "decoding twice gave different numbers of frames")


def _refuse_cut_file(file: BinaryIO, index: PacketIndex, promised: int) -> None:
    """Raise if the file ends too early and frames are missing for it, or there are no frames at all."""
    needed, present = declared_size(file), _size(file)
    # A header that promises a number of frames, and all of them there: only the tail (an index) is cut off.
    complete = 0 < promised <= index.num_packets
    if needed > present and not complete:
        raise DecodeError("damaged", f"the file is cut off: {present} bytes of at least {needed}")
    if index.num_packets == 0:
        raise DecodeError("no-frames", f"the video stream is empty; its header promises {promised} frames")


def _collect_by_seeking(file: BinaryIO, hwaccel: str, index: PacketIndex, collector: Collector) -> bool:
    """Decode from key frame to key frame to the wanted frames.

    Returns:
        Whether every wanted frame was found whole. If not, the clip is not necessarily broken: decoding in sequence
        has the last word.
    """
    try:
        with open_video(file, hwaccel) as (container, stream):
            for position, frame in _sought_frames(container, stream, index, collector.wanted):
                collector.add(position, frame)
    except (_NotFoundError, av.error.FFmpegError):
        return False
    return True


def _collect_in_sequence(file: BinaryIO, hwaccel: str, collector: Collector) -> int:
    """Decode the whole clip and return the number of its frames.

    Raises:
        DecodeError: "damaged" or "no-frames".
    """
    num_frames = 0
    wanted = set(collector.wanted)
    with open_video(file, hwaccel) as (container, stream):
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise DecodeError("damaged", f"frame {num_frames} is broken")
            if num_frames in wanted:
                collector.add(num_frames, frame)
            num_frames += 1
    if num_frames == 0:
        raise DecodeError("no-frames", "not one frame of the video stream decodes")
    return num_frames


class _NotFoundError(Exception):
    """A frame is not where the packets say."""


def _sought_frames(
    container: InputContainer, stream: VideoStream, index: PacketIndex, positions: list[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield the frames at ascending positions, seeking only where a key frame lies ahead of the frame reached.

    Seeking back, or to a key frame behind the frame reached, would decode frames twice. A frame is known by its time
    stamp, so a seek that lands elsewhere costs time but cannot give another frame.
    """
    reached = index.pts[0]
    frames = container.decode(stream)
    for position in positions:
        key = index.key_before(position)
        if index.pts[key] > reached:
            container.seek(int(index.seek_to[key]), stream=stream)
            frames = container.decode(stream)
        for frame in frames:
            if frame.pts is None or frame.is_corrupt:
                raise _NotFoundError
            reached = frame.pts
            if reached >= index.pts[position]:
                break
        if reached != index.pts[position]:
            raise _NotFoundError
        yield position, frame


def _size(file: BinaryIO) -> int:
    """Return the size of an open file in bytes."""
    return file.seek(0, os.SEEK_END)
