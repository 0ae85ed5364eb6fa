"""Farneback flow in torch on CUDA: the bits of the CPU, whatever the settings that let others round more coarsely."""

import pytest
import torch
from torch import Tensor

from amfir.extract.flow import FarnebackParameters, farneback
from amfir.extract.flow.compiled import CompiledFarneback
from amfir.extract.flow.farneback import flow_of_frames, flow_of_pairs
from amfir.extract.flow.torch_backend import TorchFarneback

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

PARAMETERS = {
    "defaults": FarnebackParameters(),
    "gaussian": FarnebackParameters(0.5, 5, 15, 3, 7, 1.5, 256),
    "odd": FarnebackParameters(0.8, 4, 14, 2, 3, 0.9, 0),
}


def video(batch: int, length: int, height: int, width: int) -> Tensor:
    """Smooth grey uint8 frames `[B, T, H, W]` that move by (2, 1) pixels, between black bars."""
    noise = torch.randn(
        (batch, height + length + 6, width + 2 * length + 6), generator=torch.Generator().manual_seed(0)
    )
    texture = torch.nn.functional.avg_pool2d(noise * 600, 7, 1) + 128
    frames = torch.stack([texture[:, t : t + height, 2 * t : 2 * t + width] for t in range(length)], dim=1)
    frames[..., :2, :], frames[..., -3:] = 0, 0
    return frames.clamp(0, 255).byte()


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.cpu().view(torch.int32), b.cpu().view(torch.int32))


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
@pytest.mark.parametrize("size", [(256, 340), (97, 131), (12, 14)])
def test_eager_flow_has_the_bits_of_the_cpu(size: tuple[int, int], parameters: FarnebackParameters) -> None:
    frames = video(2, 3, *size)
    assert same_bits(flow_of_frames(frames.cuda(), parameters), flow_of_frames(frames, parameters))


def test_eager_flow_has_the_bits_of_the_cpu_from_an_initial_flow_and_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = video(3, 4, 120, 90)
    initial = torch.randn((3, 3, 120, 90, 2), generator=torch.Generator().manual_seed(1)) * 3
    expected = flow_of_frames(frames, initial=initial)
    assert same_bits(flow_of_frames(frames.cuda(), initial=initial.cuda()), expected)
    monkeypatch.setattr(farneback, "PIXELS_AT_ONCE_ELSEWHERE", 4 * 120 * 90)
    assert same_bits(flow_of_frames(frames.cuda(), initial=initial.cuda()), expected)


def test_coarser_matrix_products_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = video(1, 2, 64, 80)
    expected = flow_of_frames(frames)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert same_bits(flow_of_frames(frames.cuda()), expected)


def test_memory_is_bounded_by_the_chunk() -> None:
    backend = TorchFarneback(FarnebackParameters(), torch.device("cuda"))
    peaks = []
    for count in (400, 800):
        pairs = torch.zeros((count, 2, 256, 340), dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        flow = backend(pairs)
        peaks.append(torch.cuda.max_memory_allocated() - before - flow.nbytes)
        del flow, pairs
    assert peaks[1] <= peaks[0] * 1.05
    assert peaks[0] < 5 * 2**30


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of parts of torch that its own compiler still uses
@pytest.mark.parametrize("name", ["defaults", "gaussian"])
def test_compiled_flow_has_the_bits_of_the_cpu(name: str) -> None:
    parameters = PARAMETERS[name]
    backend = CompiledFarneback(parameters, torch.device("cuda"))
    for size in ((256, 340), (97, 131)):
        frames = video(1, 5, *size)[0]
        pairs = torch.stack([frames[:-1], frames[1:]], dim=1)
        assert same_bits(backend(pairs), flow_of_pairs(pairs[None], parameters)[0])
