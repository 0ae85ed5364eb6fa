"""The one place that imports torchvision, whatever build of it is installed."""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch

Registered = TypeVar("Registered")


def torchvision() -> ModuleType:
    """Import torchvision, with `torchvision.models`.

    PyPI's torchvision is built for CUDA, and its C++ extension cannot be loaded beside a torch built for the CPU. The
    import then fails where torchvision describes its compiled operators (nms, roi_align, deform_conv2d ...) to torch,
    since they are not there. These serve detection; the classification networks and the transforms are plain Python
    over torch, so the import is repeated without the descriptions.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    return _import_without_operators()


def _import_without_operators() -> ModuleType:
    """Import torchvision while `torch.library.register_fake` does nothing."""
    original = torch.library.register_fake

    def ignore(*_: Any, **__: Any) -> Callable[[Registered], Registered]:
        return lambda function: function

    torch.library.register_fake = ignore
    try:
        return importlib.import_module("torchvision")
    finally:
        torch.library.register_fake = original
