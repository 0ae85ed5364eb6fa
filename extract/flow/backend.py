"""What a flow backend is, and the parameters of Farneback's method that they share."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from ...cache.errors import UserError

if TYPE_CHECKING:
    import torch

GAUSSIAN_WINDOW = 256
"""The one flag that changes the method: cv2.OPTFLOW_FARNEBACK_GAUSSIAN."""


@dataclass(frozen=True)
class FarnebackParameters:
    """Parameters of Farneback, "Two-Frame Motion Estimation Based on Polynomial Expansion", SCIA 2003, as in OpenCV."""

    pyr_scale: float = 0.5
    """Size of a pyramid level relative to the next finer one, in (0, 1)."""
    levels: int = 3
    """Pyramid levels above the full size; fewer where a level would have a side under 32 pixels."""
    winsize: int = 15
    """Side of the averaging window in pixels."""
    iterations: int = 3
    """Iterations on each level."""
    poly_n: int = 5
    """Radius in pixels of the neighbourhood of the polynomial expansion."""
    poly_sigma: float = 1.2
    """Standard deviation in pixels of the Gaussian that weighs this neighbourhood."""
    flags: int = 0
    """0 (box window) or 256 (Gaussian window)."""

    def __post_init__(self) -> None:
        """Refuse what OpenCV would take and compute nonsense from, or crash on."""
        rules = {
            "pyr_scale": (0.0 < self.pyr_scale < 1.0, "between 0 and 1"),
            "levels": (self.levels >= 0, "at least 0"),
            "winsize": (self.winsize >= 2, "at least 2"),
            "iterations": (self.iterations >= 1, "at least 1"),
            "poly_n": (self.poly_n >= 1, "at least 1"),
            "poly_sigma": (self.poly_sigma > 0.0, "above 0"),
            "flags": (self.flags in (0, GAUSSIAN_WINDOW), f"0 or {GAUSSIAN_WINDOW}"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise UserError(f"{name} is {getattr(self, name)}; Farneback flow; it must be {rule}")


class FlowBackend(Protocol):
    """Computes dense flow between pairs of grey frames."""

    name: str
    """Key of the backend in the registry."""
    version: str
    """Library and its version: flow may change with it, so it belongs to a stream's spec."""

    def __init__(self, parameters: FarnebackParameters = ...) -> None:
        """Prepare the backend."""

    def __call__(self, pairs: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the flow of each pair.

        Args:
            pairs: Grey frames `[N, 2, H, W]`, in the order of time.

        Returns:
            `[N, H, W, 2]`, x and y displacement in pixels per frame step: what lies at (x, y) in the first frame lies
            at (x + u, y + v) in the second.
        """
        ...


class DeviceFlow(Protocol):
    """Computes dense flow between pairs of grey frames that lie on a device."""

    name: str
    """Key of the backend in the registry."""
    version: str
    """Library and its version: flow may change with it, so it belongs to a stream's spec."""

    def __call__(self, pairs: "torch.Tensor") -> "torch.Tensor":
        """Compute the flow of each pair.

        Args:
            pairs: Grey frames `[N, 2, H, W]`, uint8.

        Returns:
            `[N, H, W, 2]`, float32, as `FlowBackend` gives it. A pair's flow does not depend on the other pairs.
        """
        ...
