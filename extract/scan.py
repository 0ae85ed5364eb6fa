"""A pass over a clip's packets without decoding: how many frames, shown when, and where decoding can start."""

from array import array
from dataclasses import dataclass

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .reasons import DecodeError

SEEK_STAMPS = {"mov": "dts", "matroska": "pts"}
"""First names of the containers with an exact index, and the time stamps in it. In others, seeking lands near."""
HIDDEN_FRAME_CODECS = {"vp8", "libvpx"}
"""Codecs of which a packet may hold a frame that is never shown."""
NO_TIME = np.iinfo(np.int64).min


@dataclass(frozen=True)
class PacketIndex:
    """The packets of a video stream that will be shown, in order of presentation."""

    pts: NDArray[np.int64]
    """Presentation time stamps `[n]` in the stream's time base."""
    seek_to: NDArray[np.int64]
    """The time stamps `[n]` by which the container finds the packets."""
    is_key: NDArray[np.bool_]
    """Whether decoding can start at the packet `[n]`."""
    num_packets: int
    """All packets, also those that are decoded and not shown."""
    seekable: bool
    """Whether frames can be found by their time stamps: all are there, unequal, in a container with an exact index."""

    @property
    def num_frames(self) -> int:
        """Frames that the packets promise; decoding has the last word."""
        return len(self.pts)

    def key_before(self, position: int) -> int:
        """Return the position of the last key frame shown at or before a position (0 if there is none)."""
        keys = np.flatnonzero(self.is_key[: position + 1])
        return int(keys[-1]) if len(keys) else 0


def scan_packets(container: InputContainer, stream: VideoStream) -> PacketIndex:
    """Read every packet of a stream.

    Raises:
        DecodeError: "damaged" if the container says that a packet is incomplete.
    """
    # Plain arrays: a day of video is some million packets, and no object of them may stay.
    pts, dts, is_key = array("q"), array("q"), array("b")
    num_packets = 0
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise DecodeError("damaged", f"packet {num_packets} of the video stream is incomplete")
        num_packets += 1
        if packet.size == 0 or packet.is_discard:
            continue
        pts.append(NO_TIME if packet.pts is None else packet.pts)
        dts.append(NO_TIME if packet.dts is None else packet.dts)
        is_key.append(packet.is_keyframe)
    shown = np.array(pts, dtype=np.int64)
    order = np.argsort(shown, kind="stable")
    stamps = SEEK_STAMPS.get(container.format.name.split(",")[0], "")
    seek_to = (shown if stamps == "pts" else np.array(dts, dtype=np.int64))[order]
    shown = shown[order]
    distinct = len(shown) > 0 and bool(np.all(np.diff(shown) > 0))
    stamped = distinct and shown[0] != NO_TIME and bool(np.all(seek_to != NO_TIME))
    return PacketIndex(
        pts=shown,
        seek_to=seek_to,
        is_key=np.array(is_key, dtype=np.bool_)[order],
        num_packets=num_packets - 1,  # the last one is the flush packet, which is not in the file
        seekable=stamped and stamps != "" and stream.codec_context.name not in HIDDEN_FRAME_CODECS,
    )
