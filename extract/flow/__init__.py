"""Dense optical flow and its rendering as images."""

from .backend import FarnebackParameters, FlowBackend
from .opencv import OpenCVFarneback

FLOW_BACKENDS: dict[str, type[FlowBackend]] = {"opencv": OpenCVFarneback}

__all__ = ["FLOW_BACKENDS", "FarnebackParameters", "FlowBackend", "OpenCVFarneback"]
