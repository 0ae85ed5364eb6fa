"""Opening of a video container, such that no other file is ever opened with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NoReturn

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from .hwaccel import hardware
from .reasons import DecodeError

VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,ivf,flv,asf,ogg,rm,dv,mxf,nut,"
    "yuv4mpegpipe,gif,apng"
)
"""FFmpeg's names of the containers that are decoded. None of them refers to other files."""
AUDIO_FORMATS = "mp3,wav,flac,aac"
"""Opened only to say that there is no video in them."""
STILL_FORMATS = "jpeg_pipe,png_pipe,bmp_pipe,webp_pipe,tiff_pipe"
"""Opened only to say that they are pictures."""

MAX_PIXELS = 1 << 26
"""Largest frame decoded, in pixels: twice an 8K frame."""


@contextmanager
def open_video(file: BinaryIO, hwaccel: str = "none") -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container in a file and its first real video stream, ready to be decoded on one thread.

    Args:
        file: Seekable, read as the container needs it.
        hwaccel: Hardware that decodes where it can; a name in `HWACCELS`.

    Raises:
        DecodeError: "unknown-format", "forbidden-format", "no-video", "still-image", "unknown-codec", "too-large" or
            "damaged".
    """
    file.seek(0)
    try:
        container = av.open(
            file,
            mode="r",
            # Three locks on one door: only listed formats, no protocol, and a hook that refuses every further file.
            container_options={
                "format_whitelist": f"{VIDEO_FORMATS},{AUDIO_FORMATS},{STILL_FORMATS}",
                "protocol_whitelist": "",
            },
            options={"max_pixels": str(MAX_PIXELS)},
            io_open=_refuse,
            metadata_errors="ignore",
            hwaccel=hardware(hwaccel),
        )
    except (av.error.ArgumentError, av.error.PermissionError) as error:
        raise DecodeError("forbidden-format", "the container format is not on the list of those opened") from error
    except av.error.FFmpegError as error:
        raise DecodeError("unknown-format", f"no video container is found in the file ({error.strerror})") from error
    with container:
        yield container, _video_stream(container)


def _video_stream(container: InputContainer) -> VideoStream:
    """Choose the first video stream that is no attached picture, and prepare its decoder."""
    if container.format.name in STILL_FORMATS.split(","):
        raise DecodeError("still-image", f"the file is a picture ({container.format.name.removesuffix('_pipe')})")
    videos = [stream for stream in container.streams if stream.type == "video"]
    moving = [stream for stream in videos if not stream.disposition & Disposition.attached_pic]
    if not moving:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        reason = "still-image" if videos else "no-video"
        raise DecodeError(reason, f"the file has no moving picture; its streams: {kinds}")
    stream = moving[0]
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        raise DecodeError("unknown-codec", "there is no decoder for the video stream")
    codec = stream.codec_context
    if codec.width * codec.height > MAX_PIXELS:
        raise DecodeError("too-large", f"frames of {codec.width} x {codec.height} pixels; at most {MAX_PIXELS} pixels")
    codec.thread_count = 1
    codec.thread_type = "NONE"
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Refuse to open what a container refers to."""
    raise DecodeError("forbidden-format", "the container refers to another file")
