"""Harms of videos and features, against numpy and OpenCV, and the way of harmed videos through the extraction."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from amfir.cache.errors import UserError
from amfir.extract.clips import Clip
from amfir.extract.decode import decode_clip
from amfir.extract.reduce import Want
from amfir.extract.sampling import Sampling
from amfir.pipeline.corrupt import Harm, clip_generator, harm_clip, harm_frames, write_lossless
from amfir.pipeline.feature_harms import BaseStatistics, base_statistics, harm_features

from .clipmaker import moving_texture

Frames = NDArray[np.uint8]


def texture(num_frames: int = 9, width: int = 41, height: int = 27) -> list[Frames]:
    """Frames with odd sides, as some codecs refuse them."""
    return moving_texture(num_frames, width, height)


def harmed(frames: list[Frames], harm: str, level: float, clip: str = "a/1.avi", seed: int = 0) -> Frames:
    return np.stack(list(harm_frames(frames, Harm(harm, level), clip, seed)))


def read(path: Path, num_frames: int, short_side: int) -> Frames:
    """All frames as the extraction decodes them, not resized."""
    sampled = decode_clip(path, Sampling(frames=num_frames), {"rgb": Want(short_side)}, clip_id="x")
    assert sampled.num_frames == num_frames
    return np.asarray(sampled.arrays["rgb"][0], np.uint8)


def frame_by_frame(frame: Frames, sigma: float) -> NDArray[np.float64]:
    """A Gaussian blur in float64, mirrored at the edges without repeating them."""
    radius = int(np.ceil(4 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    result: NDArray[np.float64] = frame.astype(np.float64)
    for axis in (0, 1):
        pad = [(radius, radius) if axis == a else (0, 0) for a in range(3)]
        padded = np.pad(result, pad, mode="reflect")
        size = frame.shape[axis]
        shifted = [weights[i] * padded.take(range(i, i + size), axis) for i in range(2 * radius + 1)]
        result = np.asarray(np.sum(shifted, 0))
    return result


@pytest.mark.parametrize("name", ["clip.mkv", "clip.avi", "clip"])
def test_written_frames_are_read_back_bit_by_bit_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (27, 41, 3), dtype=np.uint8) for i in range(12)]
    assert write_lossless(tmp_path / name, noise, Fraction(30000, 1001)) == 12
    assert np.array_equal(read(tmp_path / name, 12, 27), np.stack(noise))


def test_a_harm_of_level_zero_leaves_the_decoded_clip_as_it_is(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    source = make_clip(tmp_path / "source.mp4", num_frames=10, width=64, height=48, b_frames=2)
    for harm in ("noise", "blur", "dark", "drop"):
        assert harm_clip(Clip("a/source.mp4", source, "a"), tmp_path / "harmed.mp4", Harm(harm, 0.0)) == 10
        assert np.array_equal(read(tmp_path / "harmed.mp4", 10, 48), read(source, 10, 48)), harm


def test_a_phones_picture_is_written_upright(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    source = make_clip(tmp_path / "source.mp4", num_frames=4, width=64, height=48, rotation=90)
    harm_clip(Clip("a/source.mp4", source, "a"), tmp_path / "harmed.mp4", Harm("noise", 0.0))
    assert read(tmp_path / "harmed.mp4", 4, 48).shape == (4, 64, 48, 3)
    assert np.array_equal(read(tmp_path / "harmed.mp4", 4, 48), read(source, 4, 48))


def test_the_harmed_file_holds_what_the_harm_makes_of_the_decoded_frames(
    tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    source = make_clip(tmp_path / "source.mp4", num_frames=8, width=64, height=48)
    clip = Clip("a/source.mp4", source, "a")
    for harm, level in (("noise", 0.2), ("blur", 0.05), ("dark", 0.7), ("drop", 0.6)):
        harm_clip(clip, tmp_path / "harmed.mkv", Harm(harm, level), seed=3)
        expected = harmed(list(read(source, 8, 48)), harm, level, clip.id, seed=3)
        assert np.array_equal(read(tmp_path / "harmed.mkv", 8, 48), expected), harm


def test_noise_has_the_deviation_that_the_level_says_is_rounded_and_clipped() -> None:
    grey = [np.full((60, 80, 3), 128, np.uint8)] * 4
    noise = harmed(grey, "noise", 0.1).astype(np.float64) - 128
    # 57,600 values: the deviation is known to 0.3 %, the mean to 0.11.
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.5)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05
    dark = harmed([np.zeros((60, 80, 3), np.uint8)], "noise", 0.1)
    assert (dark == 0).mean() == pytest.approx(0.5, abs=0.03)
    draws = clip_generator(0, "a/1.avi", "noise").standard_normal((60, 80, 3), dtype=np.float32)
    assert np.array_equal(harmed(grey, "noise", 0.1)[0], np.clip(np.rint(128 + 25.5 * draws), 0, 255))


@pytest.mark.parametrize("level", [0.05, 0.1])
def test_blur_is_the_gaussian_of_a_share_of_the_short_side(level: float) -> None:
    frames = texture()
    expected = frame_by_frame(frames[0], level * 27)
    # OpenCV cuts the kernel at 3 deviations in 8 bits.
    assert np.abs(harmed(frames, "blur", level)[0] - expected).max() <= 2
    assert np.array_equal(harmed(frames, "blur", level)[3], cv2.GaussianBlur(frames[3], (0, 0), level * 27))


def test_darkness_leaves_few_grey_levels() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2)
    dark = harmed([ramp], "dark", 0.75)[0]
    assert np.array_equal(dark, np.rint(ramp * 0.25))
    assert len(np.unique(dark)) == 65  # 0 ... round(63.75) = 64


def test_lost_frames_repeat_the_last_one_that_was_not_lost() -> None:
    frames = texture(num_frames=200, width=8, height=8)
    kept = clip_generator(0, "a/1.avi", "drop").random(200) >= 0.6
    shown = 0
    for number, frame in enumerate(harmed(frames, "drop", 0.6)):
        shown = number if kept[number] or number == 0 else shown
        assert np.array_equal(frame, frames[shown])
    assert kept.mean() == pytest.approx(0.4, abs=0.1)
    assert all(np.array_equal(frame, frames[0]) for frame in harmed(frames, "drop", 1.0))


def test_a_higher_level_loses_the_same_frames_and_more() -> None:
    frames = [np.full((2, 2, 3), number, np.uint8) for number in range(100)]
    few, many = (set(harmed(frames, "drop", level)[:, 0, 0, 0].tolist()) for level in (0.3, 0.7))
    assert many < few


@pytest.mark.parametrize("harm", ["noise", "drop"])
def test_a_clips_harm_depends_on_its_id_and_the_seed_only(harm: str) -> None:
    frames = texture(num_frames=20, width=16, height=16)
    assert np.array_equal(harmed(frames, harm, 0.5), harmed(frames, harm, 0.5))
    assert not np.array_equal(harmed(frames, harm, 0.5), harmed(frames, harm, 0.5, clip="a/2.avi"))
    assert not np.array_equal(harmed(frames, harm, 0.5), harmed(frames, harm, 0.5, seed=1))


def test_levels_and_names_that_mean_nothing_are_refused() -> None:
    with pytest.raises(UserError, match=r"^level is 1.5; harm 'drop'; it must be between 0 and 1$"):
        Harm("drop", 1.5)
    with pytest.raises(UserError, match=r"^level is nan; harm 'noise'; it must be between 0 and inf$"):
        Harm("noise", float("nan"))
    with pytest.raises(UserError, match=r"^unknown harm of videos 'nois'; did you mean 'noise'\?"):
        harmed(texture(2), "nois", 0.5)


# --- Features -------------------------------------------------------------------------------------------------------


IDS = ["a/1.avi", "a/2.avi", "b/1.avi"]


def planted(views: int = 1, num_frames: int = 8, dim: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, views, num_frames, dim, generator=generator, dtype=torch.float32).half()


def statistics(dim: int = 5) -> BaseStatistics:
    return BaseStatistics(torch.arange(dim).float(), 1 + torch.arange(dim).float())


def test_base_statistics_are_those_of_the_base_clips_frames_even_far_from_zero() -> None:
    values = 1000 + planted(views=2).float()
    base = base_statistics(values, torch.tensor([0, 2]))
    frames = values[[0, 2], 0].reshape(-1, 5).double().numpy()
    assert np.allclose(base.mean, frames.mean(0), atol=1e-4)
    assert np.allclose(base.deviation, frames.std(0), rtol=1e-4)


def test_noise_on_features_follows_the_deviation_of_each_dimension() -> None:
    values = torch.zeros(3, 1, 4000, 5)
    noise = harm_features(values, IDS, Harm("noise", 0.5), statistics(), "rgb")
    assert torch.allclose(noise.std((0, 1, 2)), 0.5 * statistics().deviation, rtol=0.05)
    other = harm_features(values, IDS, Harm("noise", 0.5), statistics(), "flow")
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1])) < 0.02
    again = harm_features(values[1:], IDS[1:], Harm("noise", 0.5), statistics(), "rgb")
    assert torch.equal(again, noise[1:])


def test_blur_of_features_is_the_mean_over_the_frames_nearby() -> None:
    values = planted(views=2)
    blurred = harm_features(values, IDS, Harm("blur", 0.25), statistics(), "rgb")
    for t in range(8):
        near = values[:, :, max(0, t - 2) : t + 3].float().mean(2)
        assert torch.allclose(blurred[:, :, t], near, atol=1e-6)


def test_dark_features_are_drawn_to_the_base_mean() -> None:
    values = planted()
    dark = harm_features(values, IDS, Harm("dark", 0.75), statistics(), "rgb")
    assert torch.allclose(dark, 0.25 * values.float() + 0.75 * torch.arange(5).float(), atol=1e-6)


def test_lost_features_repeat_the_last_ones_in_all_modalities_at_once() -> None:
    values = torch.arange(50.0).view(1, 1, 50, 1).repeat(3, 1, 1, 5)
    rgb, flow = (harm_features(values, IDS, Harm("drop", 0.5), statistics(), name) for name in ("rgb", "flow"))
    assert torch.equal(rgb, flow)
    for clip, name in zip(rgb[:, 0, :, 0].tolist(), IDS, strict=True):
        kept = clip_generator(0, name, "lost frames").random((1, 50))[0] >= 0.5
        assert clip == [max(s for s in range(t + 1) if kept[s] or s == 0) for t in range(50)]


@pytest.mark.parametrize("harm", ["noise", "blur", "dark", "drop"])
def test_features_of_level_zero_stay_as_they_are(harm: str) -> None:
    values = planted(views=2)
    assert torch.allclose(harm_features(values, IDS, Harm(harm, 0.0), statistics(), "rgb"), values.float(), atol=1e-6)
