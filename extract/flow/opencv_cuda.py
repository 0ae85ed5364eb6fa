"""Farneback flow by OpenCV on a GPU, for comparison with published work that used it.

It is another computation than OpenCV's on the CPU: pyramid images are sampled without the half-pixel shift, sums are
kept in float32, and the initial flow is interpolated otherwise. So its streams are not taken for another backend's.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ...cache.errors import UserError
from .backend import FarnebackParameters


class OpenCVCudaFarneback:
    """`cv2.cuda.FarnebackOpticalFlow`, one pair after the other; needs an OpenCV built with CUDA.

    Raises:
        UserError: If OpenCV was built without CUDA, or there is no GPU, or `poly_n` is neither 5 nor 7.
    """

    name = "opencv-cuda"
    version = f"opencv {cv2.__version__} cuda"

    def __init__(self, parameters: FarnebackParameters = FarnebackParameters()) -> None:  # noqa: B008 (frozen)
        cuda: Any = getattr(cv2, "cuda", None)
        if cuda is None or not hasattr(cuda, "FarnebackOpticalFlow") or cuda.getCudaEnabledDeviceCount() == 0:
            raise UserError(
                "this OpenCV has no CUDA, or there is no GPU; --flow-backend opencv-cuda; "
                "build OpenCV with CUDA, or use --flow-backend triton, which needs no build"
            )
        p = parameters
        if p.poly_n not in (5, 7):
            raise UserError(f"poly_n is {p.poly_n}; --flow-backend opencv-cuda; it must be 5 or 7 there")
        self._cuda = cuda
        self._flow = cuda.FarnebackOpticalFlow.create(
            p.levels, p.pyr_scale, False, p.winsize, p.iterations, p.poly_n, p.poly_sigma, p.flags
        )

    def __call__(self, pairs: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the flow `[N, H, W, 2]` of grey pairs `[N, 2, H, W]`; see `FlowBackend`."""
        flow = np.empty((len(pairs), *pairs.shape[2:], 2), dtype=np.float32)
        for pair, out in zip(pairs, flow, strict=True):
            first, second = (self._cuda.GpuMat(np.ascontiguousarray(frame)) for frame in pair)
            out[...] = self._flow.calc(first, second, None).download()
        return flow
