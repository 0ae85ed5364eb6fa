"""Farneback flow whose stages torch.compile has fused: a C++ compiler does it on a CPU, Triton on a GPU.

The bits have to stay those of the eager stages, so a multiplication and an addition must not be contracted into one
rounding, and divisions must round properly. On a CPU that is Inductor's default. On CUDA these are settings: in torch
2.13 Inductor compiles its kernels with Triton's `enable_fp_fusion` off only where `emulate_precision_casts` is on (its
other effects concern 16-bit numbers, of which there are none here), divides by `div_rn` only with
`eager_numerics.division_rounding`, and keeps denormal numbers in library functions with `disable_ftz`.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import stages
from .backend import FarnebackParameters
from .farneback import flow_of_pairs
from .torch_backend import DEFINITION

EXACT: dict[str, str | int | bool | Callable[..., Any]] = {
    "emulate_precision_casts": True,
    "eager_numerics.division_rounding": True,
    "eager_numerics.disable_ftz": True,
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp.enable_unsafe_math_opt_flag": False,
}
"""Inductor's settings that keep each operation's rounding; those that a version does not have are left out."""
VARIANTS = 64
"""Compiled versions of a stage that are kept: for each set of parameters, type of image, and one or many frames."""


class CompiledFarneback:
    """`farneback.flow_of_pairs` with compiled stages; the first calls take minutes, since they compile."""

    name = "torch-compiled"
    version = f"torch {torch.__version__} compiled, definition {DEFINITION}"

    def __init__(self, parameters: FarnebackParameters, device: torch.device) -> None:
        self._parameters = parameters
        self._device = device

    def __call__(self, pairs: Tensor) -> Tensor:
        """Compute the flow `[N, H, W, 2]` of grey pairs `[N, 2, H, W]`; see `backend.DeviceFlow`."""
        # A kernel's weights are part of the compiled code: as inputs they would be multiplied in double precision.
        with torch._dynamo.config.patch(specialize_float=True, recompile_limit=VARIANTS):
            return flow_of_pairs(pairs.to(self._device)[None], self._parameters, stages=compiled_stages())[0]


@functools.cache
def compiled_stages() -> stages.Stages:
    """Wrap all stages so that each is compiled when it is first called, for images of any size.

    The two passes of a separable filter are compiled apart: fused, the first would be computed anew for each tap of the
    second.
    """
    rows, columns = _compiled(stages.blur_rows), _compiled(stages.blur_columns)
    first, second = _compiled(stages.expand_columns), _compiled(stages.expand_rows)
    return stages.Stages(
        # A copy, since code compiled for a view depends on the shape of what it is a view of.
        level_image=lambda frames, blur, grid: columns(rows(frames.clone(), blur, grid), blur, grid),
        expand=lambda image, constants: second(first(image, constants), constants),
        upsample=_compiled(stages.upsample),
        matrices=_compiled(stages.matrices),
        vertical_sum=_compiled(stages.vertical_sum),
        horizontal_sum_and_solve=_compiled(stages.horizontal_sum_and_solve),
    )


def _compiled(stage: Callable[..., Tensor]) -> Callable[..., Any]:
    known = torch._inductor.list_options()
    options = {name: value for name, value in EXACT.items() if name in known}
    return torch.compile(stage, fullgraph=True, dynamic=True, options=options)
