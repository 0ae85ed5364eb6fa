"""Triton's kernels, interpreted on the CPU, against the eager stages bit by bit; the code they compile to for a GPU."""

import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.extract.flow import FarnebackParameters, load_device_backend, stages, tables
from amfir.extract.flow.cost import costs, per_pair
from amfir.extract.flow.farneback import flow_of_frames, flow_of_pairs
from amfir.extract.flow.stages import Grid

from .tritonload import triton_stages

triton = pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SIZE = (37, 45)
"""Two tiles of 32 pixels in each direction, neither of them full."""


@pytest.fixture(scope="module")
def interpreted() -> Iterator[ModuleType]:
    with triton_stages(interpret=True) as loaded:
        yield loaded


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def video(*shape: int, seed: int = 0) -> Tensor:
    """Smooth grey uint8 frames `[..., H, W]`; each is the first one moved on by (2, 1) pixels, with noise."""
    *lead, height, width = shape
    texture = torch.nn.functional.avg_pool2d(noise(1, height + 60, width + 60, seed=seed, scale=600.0), 7, 1)[0]
    frames = [texture[i : i + height, 2 * i : 2 * i + width] for i in range(math.prod(lead))]
    return (torch.stack(frames) + noise(len(frames), height, width, seed=seed) + 128).clamp(0, 255).byte().view(shape)


def grid(size_in: tuple[int, int], size_out: tuple[int, int]) -> Grid:
    rows, columns = (tables.bilinear(a, b) for a, b in zip(size_in, size_out, strict=True))
    parts = rows.low, rows.high, rows.weight[:, None], columns.low, columns.high, columns.weight
    return Grid(*map(torch.from_numpy, parts))


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
@pytest.mark.parametrize("size_out", [None, (20, 41), (9, 11)])
def test_a_level_has_the_bits_of_the_eager_one(
    interpreted: ModuleType, kind: torch.dtype, size_out: tuple[int, int] | None
) -> None:
    frames = video(2, *SIZE) if kind == torch.uint8 else noise(2, *SIZE, scale=50.0)
    blur = tables.blur_taps(1.0 if size_out is None else size_out[0] / SIZE[0])
    resize = None if size_out is None else grid(SIZE, size_out)
    assert same_bits(interpreted.level_image(frames, blur, resize), stages.level_image(frames, blur, resize))


@pytest.mark.parametrize(("n", "sigma"), [(5, 1.2), (7, 1.5), (1, 0.2)])
def test_an_expansion_has_the_bits_of_the_eager_one(interpreted: ModuleType, n: int, sigma: float) -> None:
    image, constants = noise(2, *SIZE, scale=60.0), tables.expansion(n, sigma)
    image[1] = 100.0
    assert same_bits(interpreted.expand(image, constants), stages.expand(image, constants))


def test_a_sum_that_begins_with_minus_zero_keeps_its_sign(interpreted: ModuleType) -> None:
    # The difference of the neighbours is -0, and no further ones are added.
    image, constants = torch.zeros(1, 3, 3), tables.expansion(1, 0.5)
    image[0, 2], image[0, :, 2] = -0.0, -0.0
    expected = stages.expand(image, constants)
    assert torch.signbit(expected).any()
    assert same_bits(interpreted.expand(image, constants), expected)


def test_an_upsampled_flow_has_the_bits_of_the_eager_one(interpreted: ModuleType) -> None:
    flow, resize = noise(3, 2, 19, 22, scale=5.0), grid((19, 22), SIZE)
    assert same_bits(interpreted.upsample(flow, resize, 2.0), stages.upsample(flow, resize, 2.0))


def test_matrices_have_the_bits_of_the_eager_ones(interpreted: ModuleType) -> None:
    expansions, flow = noise(4, 5, *SIZE, scale=20.0), noise(3, 2, *SIZE, scale=4.0)
    flow[0, :, ::3] = flow[0, :, ::3].round()  # lands on pixels
    flow[1, 0, :, 0], flow[1, 1, 0] = -1e-40, -1e-40  # outside, though by less than a normal number
    flow[1, 0, 5:9], flow[1, 1, 20:22] = 3e9, -1e18  # beyond the integers
    flow[2] = 0.0
    first = torch.tensor([0, 2, 1])
    borders = [torch.from_numpy(tables.attenuation(n)) for n in SIZE]
    expected = stages.matrices(expansions, first, flow, *borders)
    assert torch.isfinite(expected[0]).all()
    assert same_bits(interpreted.matrices(expansions, first, flow, *borders), expected)


@pytest.mark.parametrize("window", [tables.window(6, False), tables.window(15, True)])
def test_sums_and_solutions_have_the_bits_of_the_eager_ones(interpreted: ModuleType, window: tables.Window) -> None:
    constraints = noise(1, 5, *SIZE, scale=30.0)
    constraints[0, :, 10:30] = 0.0
    sums = stages.vertical_sum(constraints, window)
    assert same_bits(interpreted.vertical_sum(constraints, window), sums)
    expected = stages.horizontal_sum_and_solve(sums, window)
    assert same_bits(interpreted.horizontal_sum_and_solve(sums, window), expected)


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ((1, 2, 12, 14), FarnebackParameters()),
        ((1, 2, 64, 65), FarnebackParameters(iterations=1)),
        ((1, 2, 31, 33), FarnebackParameters(0.5, 5, 15, 2, 7, 1.5, 256)),
        ((2, 3, 17, 23), FarnebackParameters(winsize=6, iterations=1)),
        ((1, 2, 40, 44), FarnebackParameters(0.8, 1, 5, 1, 3, 1.2)),
    ],
)
def test_flow_has_the_bits_of_the_eager_one(
    interpreted: ModuleType, shape: tuple[int, ...], parameters: FarnebackParameters
) -> None:
    frames = video(*shape)
    expected = flow_of_frames(frames, parameters)
    assert expected.abs().max() > 0.5
    assert same_bits(flow_of_frames(frames, parameters, stages=interpreted.TRITON), expected)


def test_pairs_and_an_initial_flow_have_the_bits_of_the_eager_ones(interpreted: ModuleType) -> None:
    pairs, initial = video(2, 1, 2, 20, 35), noise(2, 1, 20, 35, 2, scale=3.0)
    parameters = FarnebackParameters(winsize=4, iterations=1)
    expected = flow_of_pairs(pairs, parameters, initial)
    assert not same_bits(expected, flow_of_pairs(pairs, parameters))
    assert same_bits(flow_of_pairs(pairs, parameters, initial, interpreted.TRITON), expected)


def test_constant_frames_do_not_move(interpreted: ModuleType) -> None:
    frames = torch.full((1, 2, 16, 20), 130, dtype=torch.uint8)
    parameters = FarnebackParameters(iterations=2)
    assert not flow_of_frames(frames, parameters, stages=interpreted.TRITON).any()


def test_the_backend_computes_the_flow_of_pairs(interpreted: ModuleType) -> None:
    parameters, pairs = FarnebackParameters(winsize=4, iterations=1), video(2, 2, 14, 15)
    backend = load_device_backend("triton", parameters, CPU)
    assert (backend.name, backend.version) == ("triton", f"triton {triton.__version__}, definition 1")
    assert same_bits(backend(pairs), load_device_backend("torch", parameters, CPU)(pairs))
    assert backend(pairs[:0]).shape == (0, 14, 15, 2)


def test_a_cpu_is_refused_unless_kernels_are_interpreted() -> None:
    with (
        triton_stages(interpret=False),
        pytest.raises(UserError, match=r"^the device is a CPU; flow backend triton; .*"),
    ):
        load_device_backend("triton", FarnebackParameters(), CPU)


def test_a_missing_triton_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with triton_stages(interpret=False):
        monkeypatch.setitem(sys.modules, "triton", None)
        with pytest.raises(UserError, match=r"^triton cannot be imported \(.*\); .* pip install triton, or .*torch$"):
            load_device_backend("triton", FarnebackParameters(), CPU)


def test_costs_match_hand_worked_numbers() -> None:
    # 64 x 80 has one coarser level, 32 x 40: 5120 and 1280 pixels. Frames are uint8, all else is float32.
    entries = {(c.kernel, c.level): c for c in costs(64, 80, FarnebackParameters(iterations=2))}
    moved = {key: (c.read, c.written) for key, c in entries.items()}
    assert moved["blur", 0] == (5120, 20480)
    assert moved["blur_rows", 1] == (5120, 4 * 64 * 2 * 40)
    assert moved["blur_columns", 1] == (4 * 64 * 2 * 40, 5120)
    assert moved["expand_columns", 0] == (20480, 3 * 20480)
    assert moved["expand_rows", 0] == (3 * 20480, 5 * 20480)
    assert moved["upsample", 0] == (2 * 5120, 2 * 20480)
    assert moved["matrices", 1] == (12 * 5120, 5 * 5120)
    assert moved["vertical_sum", 1] == (5 * 5120, 5 * 5120)
    assert moved["horizontal_sum_and_solve", 1] == (5 * 5120, 2 * 5120)
    assert len(entries) == 14
    assert sum(c.launches for c in entries.values()) == 8 + 2 * 6
    chosen = [entries["blur", 0], entries["matrices", 1]]
    assert per_pair(chosen, 1.5) == (1.5 * 5120 + 24 * 5120, 1.5 * 20480 + 10 * 5120, 1.5 * 5120 * 16 + 2 * 1280 * 84)


def test_operations_are_those_that_the_kernels_do(interpreted: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whole tiles, because clamped pixels are computed too.
    from triton.runtime.interpreter import InterpreterBuilder

    done: Counter[str] = Counter()
    kernel = ""

    def counting(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(self: Any, a: Any, b: Any) -> Any:
            done[kernel] += np.broadcast(a.data, b.data).size
            return operation(self, a, b)

        return counted

    def launch(of: Any, *arguments: Any, **constants: Any) -> None:
        nonlocal kernel
        kernel = of.__name__
        start(of, *arguments, **constants)

    start = interpreted._launch
    monkeypatch.setattr(interpreted, "_launch", launch)
    for name in ("create_fadd", "create_fsub", "create_fmul", "create_precise_divf"):
        monkeypatch.setattr(InterpreterBuilder, name, counting(getattr(InterpreterBuilder, name)))
    parameters = FarnebackParameters(levels=1, winsize=6, iterations=1, poly_n=3)
    flow_of_frames(video(1, 2, 64, 64), parameters, stages=interpreted.TRITON)
    expected: Counter[str] = Counter()
    for entry in costs(64, 64, parameters):
        expected[entry.kernel] += entry.operations * (2 if entry.shared else 1)
    assert done == expected


SCALARS = {"gain": "fp32", "scale": "fp32", "regularisation": "fp32"} | dict.fromkeys(
    ("ig11", "ig03", "ig33", "ig55"), "fp32"
)
"""Types of the arguments that are neither pixels nor sizes; the rest of the types follows from the names below."""


@pytest.mark.parametrize("frames", ["*u8", "*fp32"])
def test_compiled_kernels_neither_fuse_nor_approximate(
    frames: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compile for an H100 or H200: every operation is rounded once, and threads of a warp lie side by side along x."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = SCALARS | {"frames": frames} | dict.fromkeys(("first", "top", "bottom", "left", "right"), "*i64")
    types |= dict.fromkeys(("height", "width", "height_in", "width_in", "width_out"), "i32") | {"radius": "constexpr"}
    with triton_stages(interpret=False) as loaded:
        names = [name for name, kernel in vars(loaded.kernels).items() if hasattr(kernel, "fn") and name[0] != "_"]
        assert len(names) == 9
        for name in names:
            kernel = getattr(loaded.kernels, name)
            signature = {argument: types.get(argument, "*fp32") for argument in kernel.arg_names}
            constants = {"radius": 3} if "radius" in signature else {}
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            try:
                compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=loaded.COMPILATION)
            except Exception as error:  # whatever a toolchain that is not there may raise
                pytest.skip(f"this Triton cannot compile without a GPU: {error}")
            ptx = compiled.asm["ptx"]
            assert re.findall(r"\bfma\S*|\bdiv\.(?!rn\.f32|s32)\S*|\S+\.ftz\S*|\S+\.approx\S*|\S+\.f64", ptx) == []
            assert ("div.rn.f32" in ptx) == (name == "horizontal_sum_and_solve")
            assert "threadsPerWarp = [32]" in compiled.asm["ttgir"]
            assert "convert_layout" not in compiled.asm["ttgir"]
