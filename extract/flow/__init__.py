"""Dense optical flow and its rendering as images.

Flow is computed either where the frames are decoded (`HOST_BACKENDS`), or with the networks on their device
(`DEVICE_BACKENDS`). Importing this package imports neither torch nor Triton: decoder processes do.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from .backend import FarnebackParameters, FlowBackend
from .opencv import OpenCVFarneback
from .opencv_cuda import OpenCVCudaFarneback

if TYPE_CHECKING:
    import torch

    from .backend import DeviceFlow

HOST_BACKENDS: dict[str, type[FlowBackend]] = {"opencv": OpenCVFarneback, "opencv-cuda": OpenCVCudaFarneback}
DEVICE_BACKENDS: dict[str, str] = {
    "torch": "torch_backend:TorchFarneback",
    "torch-compiled": "compiled:CompiledFarneback",
    "triton": "triton_backend:TritonFarneback",
}
"""Module and class below this package, by name."""
BACKENDS = ("auto", *HOST_BACKENDS, *DEVICE_BACKENDS)
AGREEING = frozenset({"opencv", *DEVICE_BACKENDS})
"""Backends whose flow differs by no more than rounding: by 1e-5 pixels in the mean (docs/benchmarks.md)."""


def choose_backend(name: str, device_kind: str) -> str:
    """Return what "auto" stands for on a kind of device ("cpu", "cuda"); any other name is returned as it is."""
    if name != "auto":
        return name
    if device_kind == "cpu":
        return "opencv"  # two to three times faster there
    return "triton" if find_spec("triton") else "torch"


def load_device_backend(name: str, parameters: FarnebackParameters, device: "torch.device") -> "DeviceFlow":
    """Load a backend that runs on a device.

    Raises:
        UserError: If it cannot run there.
    """
    module, _, attribute = DEVICE_BACKENDS[name].partition(":")
    backend: Any = getattr(import_module(f".{module}", __package__), attribute)
    return cast("DeviceFlow", backend(parameters, device))


__all__ = [
    "AGREEING",
    "BACKENDS",
    "DEVICE_BACKENDS",
    "HOST_BACKENDS",
    "FarnebackParameters",
    "FlowBackend",
    "OpenCVFarneback",
    "choose_backend",
    "load_device_backend",
]
