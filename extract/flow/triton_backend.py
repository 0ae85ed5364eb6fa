"""Farneback flow by Triton kernels, on a GPU (or in Triton's interpreter, for tests)."""

import torch
from torch import Tensor

from ...cache.errors import UserError
from .backend import FarnebackParameters
from .farneback import flow_of_pairs
from .torch_backend import DEFINITION


class TritonFarneback:
    """`farneback.flow_of_pairs` with its stages as Triton kernels: the same bits as the eager stages, faster.

    Raises:
        UserError: If Triton is not installed, or the device is a CPU and Triton does not interpret its kernels (which
            it does if the environment says TRITON_INTERPRET=1 before anything imports it).
    """

    name = "triton"

    def __init__(self, parameters: FarnebackParameters, device: torch.device) -> None:
        try:
            import triton
            from triton.runtime import JITFunction

            from . import kernels, triton_stages
        except ImportError as error:
            raise UserError(
                f"triton cannot be imported ({error}); flow backend triton; pip install triton, or --flow-backend torch"
            ) from error
        if device.type == "cpu" and isinstance(kernels.blur, JITFunction):
            raise UserError(
                "the device is a CPU; flow backend triton; give it a GPU (--device), or --flow-backend torch"
            )
        self.version = f"triton {triton.__version__}, definition {DEFINITION}"
        self._parameters = parameters
        self._device = device
        self._stages = triton_stages.TRITON

    def __call__(self, pairs: Tensor) -> Tensor:
        """Compute the flow `[N, H, W, 2]` of grey pairs `[N, 2, H, W]`; see `backend.DeviceFlow`."""
        return flow_of_pairs(pairs.to(self._device)[None], self._parameters, stages=self._stages)[0]
