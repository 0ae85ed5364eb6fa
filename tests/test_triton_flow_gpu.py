"""Farneback flow on a GPU: Triton, eager on CUDA and eager on the CPU have the same bits; and how fast Triton is."""

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from amfir.extract.flow import FarnebackParameters, load_device_backend, stages, tables
from amfir.extract.flow.cost import costs, per_pair
from amfir.extract.flow.farneback import flow_of_frames, flow_of_pairs

from .tritonload import triton_stages

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

GPU = torch.device("cuda")
PARAMETERS = {"defaults": FarnebackParameters(), "gaussian": FarnebackParameters(0.5, 5, 15, 3, 7, 1.5, 256)}


@pytest.fixture(scope="module")
def compiled() -> Iterator[ModuleType]:
    with triton_stages(interpret=False) as loaded:
        yield loaded


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.cpu().view(torch.int32), b.cpu().view(torch.int32))


def video(frames: int, height: int, width: int) -> Tensor:
    """Smooth grey uint8 frames `[1, T, H, W]` that move by (2, 1) pixels, with noise and a still, flat border."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((1, height + frames + 6, width + 2 * frames + 6), generator=generator) * 600
    texture = torch.nn.functional.avg_pool2d(noise, 7, 1)[0] + 128
    clip = torch.stack([texture[i : i + height, 2 * i : 2 * i + width] for i in range(frames)])
    clip = (clip + torch.randn(clip.shape, generator=generator)).clamp(0, 255).byte()
    clip[:, : height // 10] = 16
    return clip[None]


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("size", [(256, 340), (12, 14), (33, 47), (64, 85), (135, 241), (480, 854), (1079, 1919)])
def test_triton_and_eager_on_the_gpu_have_the_bits_of_the_cpu(
    compiled: ModuleType, size: tuple[int, int], parameters: FarnebackParameters
) -> None:
    frames = video(3 if size[0] < 1000 else 2, *size)
    expected = flow_of_frames(frames, parameters)
    assert expected.abs().max() > 0.5
    assert same_bits(flow_of_frames(frames.to(GPU), parameters), expected)
    assert same_bits(flow_of_frames(frames.to(GPU), parameters, stages=compiled.TRITON), expected)


def test_other_ratios_windows_and_starts_have_the_bits_of_the_cpu(compiled: ModuleType) -> None:
    parameters = FarnebackParameters(pyr_scale=0.8, levels=4, winsize=6, iterations=2, poly_n=3, poly_sigma=0.9)
    pairs = video(6, 90, 111).view(3, 1, 2, 90, 111).float() * 0.9
    initial = torch.randn((3, 1, 90, 111, 2), generator=torch.Generator().manual_seed(1)) * 3
    expected = flow_of_pairs(pairs, parameters, initial)
    assert same_bits(flow_of_pairs(pairs.to(GPU), parameters, initial.to(GPU), compiled.TRITON), expected)


def test_tiny_numbers_and_huge_ones_have_the_bits_of_the_cpu(compiled: ModuleType) -> None:
    generator = torch.Generator().manual_seed(2)
    expansions = torch.randn((2, 5, 37, 45), generator=generator) * 1e-20  # products are below the normal numbers
    flow = torch.randn((1, 2, 37, 45), generator=generator)
    flow[0, 0, :, 0], flow[0, 1, 0], flow[0, 0, 5:9], flow[0, 1, 20:22] = -1e-40, -1e-40, 3e9, -1e18
    arguments = expansions, torch.tensor([0]), flow, *(torch.from_numpy(tables.attenuation(n)) for n in (37, 45))
    expected = stages.matrices(*arguments)
    assert same_bits(compiled.matrices(*(argument.to(GPU) for argument in arguments)), expected)


def test_a_pair_has_the_same_flow_in_any_batch(compiled: ModuleType) -> None:
    backend = load_device_backend("triton", FarnebackParameters(), GPU)
    pairs = video(80, 128, 171).view(40, 2, 128, 171).to(GPU)
    together = backend(pairs)
    assert same_bits(together, torch.cat([backend(pair[None]) for pair in pairs]))
    assert same_bits(together, load_device_backend("torch", FarnebackParameters(), GPU)(pairs))


def milliseconds(work: Callable[[], object], times: int = 10) -> float:
    """Time on the device, the mean of several runs after two that are not counted."""
    for _ in range(2):
        work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / times


@pytest.mark.parametrize("warps", [4, 8, 16])
def test_the_speed_is_printed(
    compiled: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], warps: int
) -> None:
    monkeypatch.setitem(compiled.COMPILATION, "num_warps", warps)
    lines = [f"{torch.cuda.get_device_name()}, 256 x 340, {warps} warps"]
    clip = video(129, 256, 340).to(GPU)
    for name, parameters in PARAMETERS.items():
        for length in (33, 129):
            frames = clip[:, :length]
            ms = milliseconds(lambda: flow_of_frames(frames, parameters, stages=compiled.TRITON))  # noqa: B023
            lines.append(f"{name}: a clip of {length} frames: {(length - 1) / ms * 1e3:.0f} pairs/s")
        pairs = clip[:, :128].view(1, 64, 2, 256, 340)
        ms = milliseconds(lambda: flow_of_pairs(pairs, parameters, stages=compiled.TRITON))  # noqa: B023
        lines.append(f"{name}: 64 disjoint pairs: {64 / ms * 1e3:.0f} pairs/s")
    lines += stage_lines(compiled, clip[0])
    with capsys.disabled():
        print("", *lines, sep="\n  ")


def stage_lines(compiled: ModuleType, frames: Tensor) -> list[str]:
    """Time each stage on the full size; give the share of its minimal memory traffic."""
    parameters = FarnebackParameters()
    size, pairs = frames.shape[1:], len(frames) - 1
    constants, window = tables.expansion(5, 1.2), tables.window(15, False)
    borders = [torch.from_numpy(tables.attenuation(n)).to(GPU) for n in size]
    first, flow = torch.arange(pairs, device=GPU), torch.ones((pairs, 2, *size), device=GPU)
    image = compiled.level_image(frames, (0.5, 0.25), None)
    expansions = compiled.expand(image, constants)
    matrices = compiled.matrices(expansions, first, flow, *borders)
    work: dict[tuple[str, ...], Callable[[], object]] = {
        ("blur",): lambda: compiled.level_image(frames, (0.5, 0.25), None),
        ("expand_columns", "expand_rows"): lambda: compiled.expand(image, constants),
        ("matrices",): lambda: compiled.matrices(expansions, first, flow, *borders),
        ("vertical_sum",): lambda: compiled.vertical_sum(matrices, window),
        ("horizontal_sum_and_solve",): lambda: compiled.horizontal_sum_and_solve(matrices, window),
    }
    lines = []
    for kernels, stage in work.items():
        entries = [c for c in costs(size[0], size[1], parameters) if c.level == 0 and c.kernel in kernels]
        launches = entries[0].launches
        read, written, operations = (n / launches for n in per_pair(entries, len(frames) / pairs))
        seconds = milliseconds(stage) / 1e3 / pairs
        rates = f"{(read + written) / seconds / 1e9:.0f} GB/s, {operations / seconds / 1e9:.0f} GFLOP/s"
        lines.append(f"{' + '.join(kernels)}, full size: {seconds * 1e6:.2f} us a pair, {rates}")
    return lines
