"""Decoding by hardware, where the machine and FFmpeg have it."""

from functools import cache

import av
from av.codec.hwaccel import HWAccel, hwdevices_available

HWACCELS = ("none", "cuda")
"""Names of the hardware decoders; "none" decodes by software alone."""


@cache
def hardware(name: str) -> HWAccel | None:
    """Return what `av.open` needs to decode by hardware, or None where this process cannot have it.

    Codecs and profiles that the hardware does not know are decoded by software all the same.
    """
    if name not in hwdevices_available():
        return None
    # All containers of a process share the device's primary context: one of their own would cost memory and time.
    accel = HWAccel(device_type=name, allow_software_fallback=True, options={"primary_ctx": "1"})
    try:
        # The fallback covers what the hardware cannot decode; that there is none shows only here.
        accel.create(av.Codec("h264", "r"))
    except av.error.FFmpegError:
        return None
    return accel
