"""Farneback flow in torch against OpenCV, a brute-force version in double precision, and itself in other layouts."""

import math
import shutil
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.extract.flow import FarnebackParameters, farneback, stages, tables
from amfir.extract.flow.compiled import CompiledFarneback
from amfir.extract.flow.farneback import flow_of_frames, flow_of_pairs
from amfir.extract.flow.render import render
from amfir.extract.flow.torch_backend import TorchFarneback

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
DEFAULTS = FarnebackParameters()
GAUSSIAN = FarnebackParameters(0.5, 5, 15, 3, 7, 1.5, 256)
USE_INITIAL_FLOW = 4


def video(height: int, width: int, length: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth texture that moves by fractions of pixels, turns and grows: `[T, H, W]`."""
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    texture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2.5), None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    frames = []
    for t in range(length):
        warp = cv2.getRotationMatrix2D((width / 2, height / 2), 0.6 * t, 1 + 0.004 * t)
        warp[:, 2] += np.array([1.3, -0.7]) * t
        warped = cv2.warpAffine(texture, warp, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
        frames.append(warped)
    return np.stack(frames).round().clip(0, 255).astype(np.uint8)


def opencv(
    frames: NDArray[np.generic], p: FarnebackParameters, initial: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    rest = (p.pyr_scale, p.levels, p.winsize, p.iterations, p.poly_n, p.poly_sigma)
    flags = p.flags if initial is None else p.flags | USE_INITIAL_FLOW
    starts = [None] * len(frames) if initial is None else list(initial.copy())
    pairs = zip(pairwise(frames), starts, strict=False)
    return np.stack([cv2.calcOpticalFlowFarneback(*pair, start, *rest, flags) for pair, start in pairs])  # type: ignore[call-overload]


def ours(frames: NDArray[np.generic], p: FarnebackParameters = DEFAULTS) -> NDArray[np.float32]:
    return flow_of_frames(torch.from_numpy(frames)[None], p)[0].numpy()


def distance(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    assert a.shape == b.shape
    return np.asarray(np.linalg.norm(a - b, axis=-1))


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


@pytest.mark.parametrize("parameters", [DEFAULTS, GAUSSIAN], ids=["defaults", "gaussian"])
def test_flow_is_opencvs_at_full_size(parameters: FarnebackParameters) -> None:
    frames = video(256, 340, 4)
    flow, expected = ours(frames, parameters), opencv(frames, parameters)
    assert np.abs(expected).max() > 3
    errors = distance(flow, expected)
    assert errors.mean() <= 1e-5
    assert np.quantile(errors, 0.999) <= 1e-2
    assert np.mean(render(flow) != render(expected)) <= 1e-4


@pytest.mark.parametrize("size", [(12, 14), (13, 200), (33, 64), (64, 33), (97, 131), (130, 129)])
@pytest.mark.parametrize("parameters", [DEFAULTS, GAUSSIAN], ids=["defaults", "gaussian"])
def test_flow_is_opencvs_at_every_size(size: tuple[int, int], parameters: FarnebackParameters) -> None:
    frames = video(*size, 2)
    assert distance(ours(frames, parameters), opencv(frames, parameters)).max() <= 1e-4


@pytest.mark.parametrize(
    "parameters",
    [
        FarnebackParameters(pyr_scale=0.8, levels=5),
        FarnebackParameters(pyr_scale=0.3),
        FarnebackParameters(levels=0),
        FarnebackParameters(levels=1),
        FarnebackParameters(winsize=3),
        FarnebackParameters(winsize=2),
        FarnebackParameters(winsize=14),
        FarnebackParameters(winsize=8, flags=256),
        FarnebackParameters(winsize=40),
        FarnebackParameters(iterations=1),
        FarnebackParameters(iterations=10),
        FarnebackParameters(poly_n=7, poly_sigma=1.5),
        FarnebackParameters(poly_n=1, poly_sigma=0.5),
        FarnebackParameters(poly_n=2, poly_sigma=1e-8),
    ],
    ids=lambda p: "-".join(f"{value:g}" for value in vars(p).values()),
)
def test_flow_is_opencvs_for_all_parameters(parameters: FarnebackParameters) -> None:
    frames = video(120, 151, 2)
    errors = distance(ours(frames, parameters), opencv(frames, parameters))
    assert errors.mean() <= 1e-5
    assert np.quantile(errors, 0.999) <= 1e-2


def test_frames_may_be_float() -> None:
    frames = video(50, 70).astype(np.float32) * np.float32(0.37) + np.float32(11.1)
    assert distance(ours(frames), opencv(frames, DEFAULTS)).max() <= 1e-4
    whole = video(50, 70)
    assert np.array_equal(ours(whole), ours(whole.astype(np.float32)))


@pytest.mark.parametrize("level", [0, 7, 255])
def test_constant_frames_do_not_move(level: int) -> None:
    flow = ours(np.full((2, 41, 67), level, np.uint8))
    assert np.array_equal(flow, np.zeros_like(flow))


def test_a_broken_pixel_spoils_its_surroundings_only() -> None:
    frames = video(60, 70, 2).astype(np.float32)
    frames[0, 5, 6] = np.nan
    flow = ours(frames, FarnebackParameters(levels=0, iterations=2))
    assert np.isnan(flow[0, :5, :5]).all()
    assert np.isfinite(flow[0, 40:, :]).all()
    assert np.isfinite(flow[0, :, 40:]).all()


def test_still_frames_and_black_bars_are_opencvs() -> None:
    frames = video(96, 128)
    frames[:, :12], frames[:, -12:], frames[:, :, :10] = 0, 0, 0
    frames[2] = frames[1]
    errors = distance(ours(frames), opencv(frames, DEFAULTS))
    assert errors.mean() <= 1e-5
    assert np.quantile(errors, 0.999) <= 1e-2


@pytest.mark.parametrize(
    "parameters",
    [
        FarnebackParameters(iterations=1),
        FarnebackParameters(0.5, 5, 15, 1, 7, 1.5, 256),
        FarnebackParameters(0.7, 2, iterations=1),
        FarnebackParameters(levels=0),
    ],
)
@pytest.mark.parametrize("size", [(80, 96), (75, 101)])
def test_an_initial_flow_is_used_as_in_opencv(size: tuple[int, int], parameters: FarnebackParameters) -> None:
    frames = video(*size)
    noise = np.random.default_rng(1).normal(size=(*size, 4)).astype(np.float32) * 60
    initial = np.stack(np.split(np.asarray(cv2.GaussianBlur(noise, (0, 0), 4), np.float32), 2, axis=2))
    flow = flow_of_frames(torch.from_numpy(frames)[None], parameters, torch.from_numpy(initial)[None])[0].numpy()
    assert distance(flow, ours(frames, parameters)).max() > 1e-2
    errors = distance(flow, opencv(frames, parameters, initial))
    assert errors.mean() <= 1e-5
    assert np.quantile(errors, 0.999) <= 1e-2


@pytest.mark.parametrize("parameters", [FarnebackParameters(), FarnebackParameters(0.5, 3, 4, 2, 3, 0.9, 256)])
def test_flow_of_a_tiny_pair_is_that_of_loops_in_double_precision(parameters: FarnebackParameters) -> None:
    frames = video(12, 15, 2, seed=3)
    assert distance(ours(frames, parameters)[0], flow_by_loops(frames.astype(np.float64), parameters)).max() <= 1e-4


def flow_by_loops(frames: NDArray[np.float64], p: FarnebackParameters) -> NDArray[np.float64]:
    """Farneback's method on one level, pixel by pixel; the polynomials are weighted least-squares fits."""
    binomial = np.array([0.25, 0.5, 0.25])
    smooth = [np.asarray(cv2.sepFilter2D(frame, -1, binomial, binomial), np.float64) for frame in frames]
    first, second = (polynomials(frame, p.poly_n, p.poly_sigma) for frame in smooth)
    flow = np.zeros((*frames.shape[1:], 2))
    for _ in range(p.iterations):
        systems = np.zeros((*frames.shape[1:], 5))
        for y, x in np.ndindex(*frames.shape[1:]):
            systems[y, x] = system(first, second, x, y, *flow[y, x])
        radius = p.winsize // 2
        padded = np.pad(systems, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
        distance = np.arange(-radius, radius + 1)
        taps = np.exp(-(distance**2) / (2 * (0.3 * radius) ** 2)) if p.flags else np.ones(len(distance))
        weights = np.outer(taps, taps) / (taps.sum() ** 2 if p.flags else p.winsize**2)
        for y, x in np.ndindex(*frames.shape[1:]):
            block = padded[y : y + 2 * radius + 1, x : x + 2 * radius + 1]
            yy, xy, xx, hy, hx = np.einsum("ij,ijk->k", weights, block)
            flow[y, x] = np.array([yy * hx - xy * hy, xx * hy - xy * hx]) / (yy * xx - xy**2 + 1e-3)
    return flow


def polynomials(image: NDArray[np.float64], n: int, sigma: float) -> NDArray[np.float64]:
    """Coefficients `[H, W, 5]` of y, x, y^2, x^2 and xy, fitted to each pixel's neighbourhood."""
    y, x = (grid.ravel() for grid in np.mgrid[-n : n + 1, -n : n + 1])
    basis = np.stack([np.ones_like(x), y, x, y * y, x * x, x * y], axis=1)
    root = np.exp(-(x**2 + y**2) / (4 * sigma**2))
    padded = np.pad(image, n, mode="edge")
    blocks = [padded[i : i + 2 * n + 1, j : j + 2 * n + 1].ravel() for i, j in np.ndindex(*image.shape)]
    fit = np.linalg.lstsq(basis * root[:, None], np.stack(blocks, axis=1) * root[:, None], rcond=None)[0]
    return np.asarray(fit[1:].T.reshape(*image.shape, 5))


def system(
    first: NDArray[np.float64], second: NDArray[np.float64], x: int, y: int, dx: float, dy: float
) -> tuple[float, ...]:
    """One pixel's entries g_yy, g_xy, g_xx, h_y and h_x of the normal equations G d = h."""
    height, width = first.shape[:2]
    left, top = math.floor(x + dx), math.floor(y + dy)
    ly, lx, yy, xx, xy = first[y, x]
    a = np.array([[yy, xy / 2], [xy / 2, xx]])
    b = np.array([ly, lx]) / 2
    if 0 <= left < width - 1 and 0 <= top < height - 1:
        ax, ay = x + dx - left, y + dy - top
        corners = second[top : top + 2, left : left + 2]
        ly, lx, yy, xx, xy = np.einsum("i,j,ijk->k", [1 - ay, ay], [1 - ax, ax], corners)
        a = (a + np.array([[yy, xy / 2], [xy / 2, xx]])) / 2
        b -= np.array([ly, lx]) / 2
    b += a @ (dy, dx)
    for distance in (x, y, width - 1 - x, height - 1 - y):
        scale = (0.14, 0.14, 0.4472, 0.4472, 0.4472, 1.0)[min(distance, 5)]
        a, b = a * scale, b * scale
    g, h = a.T @ a, a.T @ b
    return g[0, 0], g[0, 1], g[1, 1], h[0], h[1]


def test_an_expansion_recovers_a_polynomial() -> None:
    y, x = (torch.from_numpy(grid).float() for grid in np.mgrid[:30, :40])
    image = 7 + 0.5 * y - 0.25 * x + 0.125 * y * y - 0.0625 * x * x + 0.03125 * x * y
    coefficients = stages.expand(image[None], tables.expansion(5, 1.2))[0, :, 5:-5, 5:-5].double()
    y, x = y[5:-5, 5:-5], x[5:-5, 5:-5]
    linear = torch.stack([0.5 + 0.25 * y + 0.03125 * x, -0.25 - 0.125 * x + 0.03125 * y])
    assert (coefficients[:2] - linear).abs().max() < 1e-4
    assert (coefficients[2:] - torch.tensor([0.125, -0.0625, 0.03125])[:, None, None]).abs().max() < 1e-4


def test_constants_of_an_expansion_are_the_known_ones() -> None:
    constants = tables.expansion(5, 1.2)
    known = (0.6944863935039712, -0.3474535282052342, 0.2413017418562312, 0.4823113379104387)
    assert (constants.ig11, constants.ig03, constants.ig33, constants.ig55) == pytest.approx(known, rel=1e-6)


@pytest.mark.parametrize("parameters", [DEFAULTS, FarnebackParameters(0.8, 5), FarnebackParameters(0.45, 2)])
def test_levels_are_opencvs_blur_and_resize(parameters: FarnebackParameters) -> None:
    image = video(301, 403, 1)[0].astype(np.float32)
    pyramid = tables.pyramid(301, 403, parameters.pyr_scale, parameters.levels)
    assert len(pyramid) > 2
    for level in pyramid[1:]:
        sigma = (1 / level.scale - 1) / 2
        blurred = cv2.GaussianBlur(image, (2 * len(level.blur) - 1,) * 2, sigma)
        expected = cv2.resize(blurred, (level.width, level.height))
        resize = farneback._grid(pyramid[0], level, CPU)
        actual = stages.level_image(torch.from_numpy(image)[None], level.blur, resize)[0].numpy()
        assert np.abs(actual - expected).max() < 1e-3


@pytest.mark.parametrize(
    ("size", "pyr_scale", "levels", "expected"),
    [
        ((256, 340), 0.5, 5, [(256, 340), (128, 170), (64, 85), (32, 42)]),
        ((256, 340), 0.5, 1, [(256, 340), (128, 170)]),
        ((64, 63), 0.5, 3, [(64, 63)]),
        ((64, 64), 0.5, 3, [(64, 64), (32, 32)]),
        ((12, 14), 0.8, 3, [(12, 14)]),
    ],
)
def test_no_level_has_a_side_under_32(
    size: tuple[int, int], pyr_scale: float, levels: int, expected: list[tuple[int, int]]
) -> None:
    assert [(level.height, level.width) for level in tables.pyramid(*size, pyr_scale, levels)] == expected


def test_blurs_have_the_sizes_of_five_standard_deviations() -> None:
    # sigma = (1 / scale - 1) / 2 = 0, 0.5, 1.5, 3.5, 7.5: 3, 3, 9, 19 and 39 taps, of which half are listed.
    assert [len(tables.blur_taps(0.5**k)) for k in range(5)] == [2, 2, 5, 10, 20]


def test_resize_tables_match_hand_worked_numbers() -> None:
    # Growing 2 to 4: the centres lie at -0.25, 0.25, 0.75 and 1.25. Shrinking 4 to 2: at 0.5 and 2.5.
    growing, shrinking = tables.bilinear(2, 4), tables.bilinear(4, 2)
    assert (growing.low.tolist(), growing.high.tolist()) == ([0, 0, 0, 1], [0, 1, 1, 1])
    assert growing.weight.tolist() == [0, 0.25, 0.75, 0]
    assert (shrinking.low.tolist(), shrinking.high.tolist()) == ([0, 2], [1, 3])
    assert shrinking.weight.tolist() == [0.5, 0.5]
    # 5 to 2: the intervals are [0, 2.5) and [2.5, 5).
    area = tables.area(5, 2)
    assert area.index.tolist() == [[0, 1, 2], [2, 3, 4]]
    assert area.weight == pytest.approx(np.array([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]]))


@pytest.mark.parametrize("size_out", [42, 40, 17, 84, 83])
def test_areas_are_averaged_as_in_opencv(size_out: int) -> None:
    flow = np.random.default_rng(0).normal(size=(84, 84, 2)).astype(np.float32)
    area = tables.area(84, size_out)
    actual = stages.shrink(torch.from_numpy(flow).movedim(-1, 0)[None], area, area)[0].movedim(0, -1).numpy()
    assert np.abs(actual - cv2.resize(flow, (size_out, size_out), interpolation=cv2.INTER_AREA)).max() < 1e-6


@pytest.mark.parametrize("winsize", [2, 3, 14, 15])
def test_windows_are_boxes_and_gaussians(winsize: int) -> None:
    radius = winsize // 2
    gaussian, box = tables.window(winsize, True), tables.window(winsize, False)
    kernel = cv2.getGaussianKernel(2 * radius + 1, 0.3 * radius)[radius:, 0]
    assert gaussian.taps == pytest.approx(kernel.tolist(), rel=1e-5)
    assert (gaussian.scale, box.taps) == (1.0, (1.0,) * (radius + 1))
    assert box.scale == pytest.approx(1 / winsize**2, rel=1e-7)


def test_both_layouts_give_the_same_bits() -> None:
    frames = torch.from_numpy(np.stack([video(40, 51, 4, seed) for seed in range(2)]))
    initial = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 40, 51, 2)).astype(np.float32))
    pairs = torch.stack([frames[:, :-1], frames[:, 1:]], dim=2)
    assert same_bits(flow_of_pairs(pairs), flow_of_frames(frames))
    assert same_bits(flow_of_pairs(pairs, GAUSSIAN, initial), flow_of_frames(frames, GAUSSIAN, initial))


@pytest.mark.parametrize("pairs_at_once", [1, 2, 3, 5, 6, 7, 100])
def test_neither_batches_nor_chunks_change_a_bit(pairs_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = torch.from_numpy(np.stack([video(34, 37, 4, seed) for seed in range(5)]))
    initial = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 3, 34, 37, 2)).astype(np.float32))
    alone = torch.cat(
        [flow_of_frames(clip[None], DEFAULTS, start[None]) for clip, start in zip(frames, initial, strict=True)]
    )
    monkeypatch.setitem(farneback.PIXELS_AT_ONCE, "cpu", pairs_at_once * 34 * 37 + 5)
    assert same_bits(flow_of_frames(frames, DEFAULTS, initial), alone)


@pytest.mark.parametrize(
    ("batch", "length", "capacity"), [(5, 3, 7), (5, 3, 2), (1, 10, 4), (4, 1, 3), (0, 3, 4), (3, 0, 4)]
)
def test_chunks_cover_every_pair_once_within_the_capacity(batch: int, length: int, capacity: int) -> None:
    seen = np.zeros((batch, length), int)
    for clips, pairs in farneback._chunks(batch, length, capacity):
        seen[clips, pairs] += 1
        assert seen[clips, pairs].size <= capacity
    assert (seen == 1).all()


@pytest.mark.parametrize("shape", [(0, 3), (2, 1), (2, 0)])
def test_no_pairs_give_no_flow(shape: tuple[int, int]) -> None:
    flow = flow_of_frames(torch.zeros((*shape, 20, 30), dtype=torch.uint8))
    assert flow.shape == (shape[0], max(shape[1] - 1, 0), 20, 30, 2)
    assert flow_of_pairs(torch.zeros((2, 0, 2, 20, 30), dtype=torch.uint8)).shape == (2, 0, 20, 30, 2)
    assert TorchFarneback(DEFAULTS, CPU)(torch.zeros((0, 2, 20, 30), dtype=torch.uint8)).shape == (0, 20, 30, 2)


def test_frames_of_a_line_are_refused() -> None:
    with pytest.raises(UserError, match=r"^frames have 1 x 9 pixels; Farneback flow; each side needs 2$"):
        flow_of_frames(torch.zeros((1, 2, 1, 9), dtype=torch.uint8))


def test_frames_of_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"torch.int64, expected uint8 or float32$"):
        flow_of_frames(torch.zeros((1, 2, 9, 9), dtype=torch.int64))


def test_weights_of_the_centre_alone_are_refused() -> None:
    with pytest.raises(UserError, match=r"^poly_sigma is 0\.01; Farneback flow; "):
        tables.expansion(5, 0.01)


def test_the_torch_backend_is_the_pairs_layout() -> None:
    frames = torch.from_numpy(video(40, 50))
    pairs = torch.stack([frames[:-1], frames[1:]], dim=1)
    backend = TorchFarneback(GAUSSIAN, CPU)
    assert same_bits(backend(pairs), flow_of_pairs(pairs[None], GAUSSIAN)[0])
    assert (backend.name, backend.version) == ("torch", f"torch {torch.__version__}, definition 1")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of parts of torch that its own compiler still uses
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="there is no C++ compiler for torch.compile")
@pytest.mark.timeout(1200)  # ten C++ files to compile, which a busy machine takes minutes for
def test_compiled_stages_have_the_bits_of_the_eager_ones() -> None:
    # Two levels and a window other than the default one; the second size reuses what the first one compiled.
    parameters = FarnebackParameters(levels=1, winsize=4, iterations=1, poly_n=2)
    backend = CompiledFarneback(parameters, CPU)
    for size in ((64, 70), (97, 83)):
        frames = torch.from_numpy(video(*size, 4))
        pairs = torch.stack([frames[:-1], frames[1:]], dim=1)
        assert same_bits(backend(pairs), flow_of_pairs(pairs[None], parameters)[0])
    assert backend.version == f"torch {torch.__version__} compiled, definition 1"
