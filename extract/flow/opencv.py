"""Farneback flow by OpenCV on the CPU."""

import cv2
import numpy as np
from numpy.typing import NDArray

from .backend import FarnebackParameters


class OpenCVFarneback:
    """`cv2.calcOpticalFlowFarneback`, one pair after the other on one thread."""

    name = "opencv"
    version = f"opencv {cv2.__version__}"

    def __init__(self, parameters: FarnebackParameters = FarnebackParameters()) -> None:  # noqa: B008 (frozen)
        # OpenCV's own threads gain nothing here: the work is spread over processes.
        cv2.setNumThreads(0)
        self._parameters = parameters

    def __call__(self, pairs: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the flow `[N, H, W, 2]` of grey pairs `[N, 2, H, W]`; see `FlowBackend`."""
        p = self._parameters
        flow = np.empty((len(pairs), *pairs.shape[2:], 2), dtype=np.float32)
        for (first, second), out in zip(pairs, flow, strict=True):
            out[...] = cv2.calcOpticalFlowFarneback(  # type: ignore[call-overload]
                first,
                second,
                None,
                p.pyr_scale,
                p.levels,
                p.winsize,
                p.iterations,
                p.poly_n,
                p.poly_sigma,
                p.flags,
            )
        return flow
