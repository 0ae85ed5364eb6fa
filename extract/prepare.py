"""From a clip's decoded frames to what its streams' networks take, or to the grey pairs for flow on a device."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .flow import FarnebackParameters, FlowBackend
from .flow.render import render
from .frames import fit
from .reduce import Want

Product = Literal["frames", "rendered", "fields", "pairs"]


@dataclass(frozen=True)
class StreamSettings:
    """What is made of each clip for one stream."""

    want: Want
    """What is decoded."""
    product: Product
    """"frames" (RGB), "rendered" (flow as images), "fields" (flow in pixels), or "pairs" (grey, for flow elsewhere)."""
    size: int
    """Side of the square images or fields in pixels."""
    fit: Literal["crop", "squash"]
    """How a frame becomes a square."""


@dataclass(frozen=True)
class FlowSettings:
    """How flow is computed where frames are decoded, and how it is rendered."""

    backend: str
    """Name in `flow.HOST_BACKENDS`, or of a backend that runs with the networks."""
    parameters: FarnebackParameters
    """Parameters of the flow."""
    scale: float
    """Grey levels per pixel of displacement in the rendered flow."""


def prepare(array: NDArray[np.uint8], stream: StreamSettings, flow: FlowBackend | None, scale: float) -> NDArray[Any]:
    """Make a stream's product from its decoded frames.

    Args:
        array: RGB frames `[V, F, H, W, 3]` or grey pairs `[V, F, 2, H, W]`.
        stream: What is wanted.
        flow: Computes the flow of "rendered" and "fields".
        scale: Grey levels per pixel of displacement in the rendered flow.

    Returns:
        uint8 images `[V, F, S, S, 3]`, float32 fields `[V, F, S, S, 2]`, or the pairs themselves.
    """
    if stream.product == "pairs":
        return array
    if stream.product == "frames":
        return fit(array, stream.size, stream.fit, stream.want.short_side)
    assert flow is not None
    fields = flow(array.reshape(-1, *array.shape[2:])).reshape(*array.shape[:2], *array.shape[3:], 2)
    if stream.product == "fields":
        return fit(fields, stream.size, stream.fit, stream.want.short_side)
    return fit(render(fields, scale), stream.size, stream.fit, stream.want.short_side)
