"""Farneback flow by plain torch operations, on any device: the reference of the faster versions."""

import torch
from torch import Tensor

from .backend import FarnebackParameters
from .farneback import flow_of_pairs

DEFINITION = 1
"""Changes whenever the bits of the result change; every version that gives the same bits names the same one."""


class TorchFarneback:
    """`farneback.flow_of_pairs` with its eager stages."""

    name = "torch"
    version = f"torch {torch.__version__}, definition {DEFINITION}"

    def __init__(self, parameters: FarnebackParameters, device: torch.device) -> None:
        self._parameters = parameters
        self._device = device

    def __call__(self, pairs: Tensor) -> Tensor:
        """Compute the flow `[N, H, W, 2]` of grey pairs `[N, 2, H, W]`; see `backend.DeviceFlow`."""
        return flow_of_pairs(pairs.to(self._device)[None], self._parameters)[0]
