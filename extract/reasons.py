"""Why a clip gives no features: a fixed list of reason codes."""

REASONS: dict[str, str] = {
    "missing": "There is no file of this name or address, or a link leads nowhere; restore it or take it off the list.",
    "not-a-file": "The name is a directory, a pipe or a device; put a video file there.",
    "unreadable": "The system or the server refuses to open or read the file; check permissions, disk and network.",
    "empty-file": "The file has no bytes; copy or download it again.",
    "unknown-format": "The content is no video container, or its header is missing; copy or download it again.",
    "forbidden-format": "The container is not on the list of those opened, because some of them make the decoder open "
    "other files (playlists, concatenations); convert the clip to MP4.",
    "unknown-codec": "The decoding library has no decoder for the video stream; convert the clip to H.264.",
    "no-video": "The file has no video stream, only sound or data; take it off the list.",
    "still-image": "The file holds a picture, or a sound with a cover picture; take it off the list.",
    "no-frames": "The container is in order but not one frame decodes; copy or download it again.",
    "single-frame": "Flow needs two frames and the clip has one; take it off the list of the flow stream.",
    "too-large": "A frame has more pixels than are decoded; scale the clip down.",
    "damaged": "The file, or the shard it lies in, is cut off, or frames in it are broken; copy or download it again.",
    "timeout": "Decoding took longer than allowed and was stopped; raise the limit, or shorten the clip.",
    "decoder-error": "Decoding met an error of its own; report it with the message, or convert the clip.",
    "decoder-died": "The decoding process crashed on this clip; convert it, or take it off the list.",
}
"""Reason code -> what it means and what to do. The job raises "timeout" and "decoder-died", decoding all others."""


class DecodeError(Exception):
    """A clip that cannot be decoded.

    Args:
        reason: A key of `REASONS`.
        message: One line on this very file.
    """

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(reason, message)
        self.reason = reason
        self.message = " ".join(message.split())

    def __str__(self) -> str:
        """Return reason and message on one line."""
        return f"{self.reason}: {self.message}"
