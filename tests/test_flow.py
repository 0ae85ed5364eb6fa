"""Flow against OpenCV and known shifts, its rendering against hand-worked numbers, and the square cut."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from amfir.cache.errors import UserError
from amfir.extract.decode import Want, decode_clip
from amfir.extract.flow import HOST_BACKENDS, FarnebackParameters, FlowBackend
from amfir.extract.flow.render import render
from amfir.extract.frames import fit, reduced_size, resize
from amfir.extract.sampling import Sampling


def grey_texture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.asarray(cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX), dtype=np.uint8)  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["opencv"])
@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -2), (4, 3), (0, 0)])
def test_a_shifted_texture_gives_its_shift(name: str, dx: int, dy: int) -> None:
    texture = grey_texture(200, 220)
    pair = np.stack([texture[20:180, 20:200], texture[20 - dy : 180 - dy, 20 - dx : 200 - dx]])
    flow = HOST_BACKENDS[name]()(pair[None])
    assert flow.dtype == np.float32
    assert flow.shape == (1, 160, 180, 2)
    inner = flow[0, 20:-20, 20:-20]
    assert np.abs(inner - (dx, dy)).max() < 0.1


def test_opencv_flow_is_opencvs() -> None:
    pairs = np.stack([np.stack([grey_texture(64, 80, 2 * i), grey_texture(64, 80, 2 * i + 1)]) for i in range(3)])
    backend: FlowBackend = HOST_BACKENDS["opencv"]()
    expected = [
        cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 15, 3, 5, 1.2, 0)  # type: ignore[call-overload]
        for a, b in pairs
    ]
    assert np.array_equal(backend(pairs), np.stack(expected))
    assert backend.version == f"opencv {cv2.__version__}"
    assert cv2.getNumThreads() == 1


def test_parameters_reach_opencv() -> None:
    parameters = FarnebackParameters(0.6, 2, 11, 2, 7, 1.5, 256)
    pairs = np.stack([grey_texture(64, 80, 0), grey_texture(64, 80, 1)])[None]
    expected = cv2.calcOpticalFlowFarneback(*pairs[0], None, 0.6, 2, 11, 2, 7, 1.5, 256)  # type: ignore[call-overload]
    assert np.array_equal(HOST_BACKENDS["opencv"](parameters)(pairs)[0], expected)


def test_no_pairs_give_no_flow() -> None:
    assert HOST_BACKENDS["opencv"]()(np.zeros((0, 2, 32, 40), np.uint8)).shape == (0, 32, 40, 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pyr_scale", 1.0),
        ("pyr_scale", 0.0),
        ("levels", -1),
        ("winsize", 1),
        ("iterations", 0),
        ("poly_n", 0),
        ("poly_sigma", 0.0),
        ("flags", 4),
    ],
)
def test_wrong_parameters_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"^{name} is {value}; Farneback flow; it must be "):
        FarnebackParameters(**{name: value})  # type: ignore[arg-type]


def test_rendering_matches_hand_worked_numbers() -> None:
    # 255 / 40 = 6.375: (1, -1) -> 134.375, 121.625, magnitude 1.41421 -> 137.0156; (3, 4) -> 147.125, 153.5, 159.875;
    # (20, -20) -> 255.5, 0.5 and above 255; (-30, 30) -> below 0, above 255.
    flow = np.array([[[0, 0], [1, -1], [3, 4]], [[20, -20], [-30, 30], [0.5, 0]]], dtype=np.float32)
    expected = [
        [[128, 128, 128], [134, 122, 137], [147, 154, 160]],
        [[255, 0, 255], [0, 255, 255], [131, 128, 131]],
    ]
    image = render(flow)
    assert image.dtype == np.uint8
    assert image.tolist() == expected


def test_rendering_rounds_ties_to_even_and_clamps() -> None:
    # With scale 1: 128.5 -> 128, 129.5 -> 130, 127.5 -> 128, 126.5 -> 126; 255.5 -> 256 -> 255; -0.5 -> 0.
    u = np.array([0.5, 1.5, -0.5, -1.5, 127.5, -128.5, 127.0, -128.0], dtype=np.float32)
    flow = np.stack([u, np.zeros_like(u)], axis=-1)[None, None]
    image = render(flow, scale=1.0)
    assert image.shape == (1, 1, 8, 3)
    assert image[0, 0, :, 0].tolist() == [128, 130, 128, 126, 255, 0, 255, 0]
    assert image[0, 0, :, 2].tolist() == [128, 130, 128, 130, 255, 255, 255, 255]


def test_crop_takes_the_centre_square() -> None:
    images = np.arange(2 * 4 * 8 * 3, dtype=np.uint8).reshape(1, 2, 4, 8, 3)
    assert np.array_equal(fit(images, 4, "crop"), images[..., 2:6, :])
    tall = images.swapaxes(2, 3)
    assert np.array_equal(fit(tall, 4, "crop"), tall[..., 2:6, :, :])


def test_crop_resizes_where_the_square_is_another_size() -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    expected = image[:, 4:16].reshape(6, 2, 6, 2, 3).mean(axis=(1, 3))
    assert np.abs(fit(image, 6, "crop") - expected).max() <= 0.5


def test_squash_keeps_the_whole_frame() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 12, 24, 1), dtype=np.uint8)
    expected = image.reshape(2, 6, 2, 6, 4, 1).mean(axis=(2, 4))
    squashed = fit(image, 6, "squash")
    assert squashed.shape == (2, 6, 6, 1)
    assert np.abs(squashed - expected).max() <= 0.5


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (240, 320, (120, 160)),
        (320, 240, (160, 120)),
        (100, 100, (120, 120)),
        (2, 10_000, (120, 480)),
        (1, 1, (120, 120)),
    ],
)
def test_the_short_side_is_given_and_the_long_one_limited(height: int, width: int, expected: tuple[int, int]) -> None:
    assert reduced_size(height, width, 120) == expected


def test_growing_is_bilinear() -> None:
    image = np.array([[0, 100], [0, 100]], dtype=np.uint8)
    assert resize(image, 2, 4)[0].tolist() == [0, 25, 75, 100]


def test_flow_of_a_decoded_clip_is_the_motion_put_in(make_clip: Callable[..., Path], tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", num_frames=20, width=160, height=128, options={"crf": "8"})
    sampled = decode_clip(path, Sampling(frames=4), {"flow": Want(128, pairs=True)}, clip_id="a")
    flow = HOST_BACKENDS["opencv"]()(sampled.arrays["flow"].reshape(-1, 2, 128, 160))
    assert np.abs(np.median(flow[:, 24:-24, 24:-24], axis=(1, 2)) - (2, 1)).max() < 0.1
