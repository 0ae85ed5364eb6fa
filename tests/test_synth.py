import re
import tomllib
from dataclasses import fields, replace
from itertools import chain, combinations, pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from amfir.cache.errors import UserError
from amfir.pipeline.synth import clip_frames, clip_scene, generate, split_classes
from amfir.pipeline.synth_render import SHAPES, TEXTURES, render
from amfir.pipeline.synth_scenes import (
    CLASSES,
    HARM_PROBABILITIES,
    HARM_WEIGHTS,
    HARMS,
    MOTIONS,
    THINGS,
    Corruption,
    SynthClass,
    Variation,
    draw_corruption,
    poses,
)

Frames = NDArray[np.uint8]
CLEAN = Corruption(**dict.fromkeys(HARMS, 0.0))
PLAIN = Variation(start=0.05, speed=1.0, offset=(0.0, 0.0), diameter=0.4, hue=0.0, drift=(0.03, 0.0))


def draw(
    kind: SynthClass, corruption: Corruption = CLEAN, variation: Variation = PLAIN, num_frames: int = 12
) -> Frames:
    return render(kind, variation, corruption, np.random.default_rng(3), size=96, num_frames=num_frames)


def decode(path: Path) -> Frames:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def speed_map(frames: Frames) -> NDArray[np.float64]:
    """Length of the optical flow between neighbouring frames, in pixels: [frames - 1, size, size]."""
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    empty = np.zeros((*frames.shape[1:3], 2), np.float32)
    flows = [cv2.calcOpticalFlowFarneback(a, b, empty, 0.5, 3, 15, 3, 5, 1.2, 0) for a, b in pairwise(grey)]
    return np.asarray(np.linalg.norm(np.stack(flows), axis=-1), np.float64)


def speed_seen(frames: Frames) -> NDArray[np.float64]:
    return np.asarray(speed_map(frames).mean(axis=(1, 2)), np.float64)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synth") / "new" / "clips"
    generate(root, classes=7, clips_per_class=2, seed=4, size=48, num_frames=5, fps=10)
    return root


def test_clips_lie_in_a_folder_per_class(clips: Path) -> None:
    names = [kind.name for kind in CLASSES[:7]]
    assert {path.name for path in clips.iterdir()} == {*names, "split.toml"}
    assert {path.name for path in clips.glob("*/*")} == {"000.mp4", "001.mp4"}
    assert len(list(clips.glob("*/*"))) == 14


def test_clips_have_the_asked_size_length_and_pace(clips: Path) -> None:
    path = clips / "checkered-disc-circling" / "000.mp4"
    assert decode(path).shape == (5, 48, 48, 3)
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 10


def test_decoded_clips_show_what_was_drawn(clips: Path) -> None:
    for i, kind in enumerate(CLASSES[:7]):
        drawn = clip_frames(i, 1, seed=4, size=48, num_frames=5)
        shown = decode(clips / kind.name / "001.mp4")
        wrong = np.abs(np.median(drawn, axis=(1, 2)) - np.median(shown, axis=(1, 2)))
        assert wrong.max() < 12
        assert np.corrcoef(drawn.mean(-1).ravel(), shown.mean(-1).ravel())[0, 1] > 0.9


def test_same_seed_gives_the_same_bytes(clips: Path, tmp_path: Path) -> None:
    paths = generate(tmp_path, classes=7, clips_per_class=2, seed=4, size=48, num_frames=5, fps=10)
    assert tree(tmp_path) == tree(clips)
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        f"{kind.name}/{clip:03d}.mp4" for kind in CLASSES[:7] for clip in (0, 1)
    ]


def test_encoding_a_clip_again_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [generate(tmp_path / str(i), classes=2, clips_per_class=1, seed=4)[0] for i in range(6)]
    assert len({path.read_bytes() for path in paths}) == 1


def test_another_seed_gives_other_bytes(clips: Path, tmp_path: Path) -> None:
    generate(tmp_path, classes=7, clips_per_class=2, seed=5, size=48, num_frames=5, fps=10)
    ours, theirs = tree(tmp_path), tree(clips)
    assert ours.keys() == theirs.keys()
    assert all(ours[name] != theirs[name] for name in ours if name.endswith(".mp4"))


def test_a_clip_does_not_depend_on_how_many_are_made(clips: Path, tmp_path: Path) -> None:
    generate(tmp_path, classes=2, clips_per_class=1, seed=4, size=48, num_frames=5, fps=10)
    name = "checkered-disc-circling/000.mp4"
    assert (tmp_path / name).read_bytes() == (clips / name).read_bytes()


def test_clips_of_a_class_differ(clips: Path) -> None:
    for folder in clips.glob("*-*"):
        first, second = (decode(path) for path in sorted(folder.iterdir()))
        assert np.abs(first.astype(int) - second).mean() > 5


def test_clips_of_a_class_have_backgrounds_of_their_own() -> None:
    clean = [clip for clip in range(12) if not clip_scene(0, clip, 0)[1].names]
    strips = [clip_frames(0, clip, seed=0, size=64, num_frames=2)[0, :12].astype(float) for clip in clean]
    tints = np.array([(strip - strip.mean(-1, keepdims=True)).mean((0, 1)) for strip in strips])
    assert len(clean) > 3
    assert tints.std(axis=0).min() > 3


def test_progress_counts_the_clips(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    generate(tmp_path, classes=2, clips_per_class=2, size=32, num_frames=2, progress=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_split_file_names_each_class_once(clips: Path) -> None:
    parts = tomllib.loads((clips / "split.toml").read_text())["classes"]
    assert list(parts) == ["train", "val", "test"]
    assert sorted(chain(*parts.values())) == sorted(kind.name for kind in CLASSES[:7])


@pytest.mark.parametrize(
    ("classes", "sizes"), [(2, (1, 0, 1)), (7, (3, 0, 4)), (14, (6, 3, 5)), (24, (12, 3, 9)), (36, (18, 6, 12))]
)
def test_split_sizes(classes: int, sizes: tuple[int, int, int]) -> None:
    parts = split_classes([kind.name for kind in CLASSES[:classes]])
    assert tuple(len(part) for part in parts.values()) == sizes
    assert len({name for part in parts.values() for name in part}) == classes


@pytest.mark.parametrize("classes", [6, 14, 24, 36])
def test_every_part_holds_each_kind_of_difference(classes: int) -> None:
    kinds = {kind.name: kind for kind in CLASSES}
    for part in split_classes(list(kinds)[:classes]).values():
        pairs = [(kinds[a], kinds[b]) for a, b in combinations(part, 2)]
        differences = {(a.thing != b.thing, a.motion != b.motion) for a, b in pairs}
        assert differences == ({(True, False), (False, True), (True, True)} if part else set())


def test_classes_are_all_pairs_of_object_and_motion() -> None:
    assert {(kind.thing, kind.motion) for kind in CLASSES} == {
        (thing, motion) for thing in THINGS for motion in MOTIONS
    }
    assert len({kind.name for kind in CLASSES}) == len(CLASSES) == 36
    assert {kind.thing for kind in CLASSES[:9]} == set(THINGS)
    assert {kind.motion for kind in CLASSES[:9]} == set(MOTIONS)


def test_classes_that_differ_in_appearance_move_alike() -> None:
    disc, square = CLASSES[0], CLASSES[1]
    assert disc.motion == square.motion
    # Both are drawn over the same background, so pixels differ on the objects only.
    first, second = draw(disc).astype(int), draw(square).astype(int)
    apart = np.abs(first - second).max(axis=-1) > 20
    ys, xs = (np.array([where.mean() for where in places]) for places in zip(*map(np.nonzero, apart), strict=True))
    path = poses(disc.motion, PLAIN, 12)[0]
    np.testing.assert_allclose(xs, (path[:, 0] + 0.5) * 96 - 0.5, atol=1.5)
    np.testing.assert_allclose(ys, (path[:, 1] + 0.5) * 96 - 0.5, atol=1.5)
    assert 0.04 < apart.mean() < 0.2


def test_classes_that_differ_in_motion_look_alike() -> None:
    circling, crossing = CLASSES[0], CLASSES[2]
    assert circling.thing == crossing.thing
    assert np.abs(poses(circling.motion, PLAIN, 12) - poses(crossing.motion, PLAIN, 12)).max() > 0.1
    cuts = []
    for kind in (circling, crossing):
        x, y = np.rint((poses(kind.motion, PLAIN, 12)[0, 6, :2] + 0.5) * 96 - 0.5).astype(int)
        cuts.append(draw(kind)[6, y - 12 : y + 12, x - 12 : x + 12].astype(int))
    first, second = (cut.reshape(-1, 3) for cut in cuts)
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.7
    np.testing.assert_allclose(first.mean(0), second.mean(0), atol=15)


@pytest.mark.parametrize("motion", MOTIONS)
def test_objects_move_and_stay_in_view(motion: str) -> None:
    for start, speed in ((0.0, 0.85), (0.1, 1.15)):
        path = poses(motion, replace(PLAIN, start=start, speed=speed), 24)
        assert path.shape == (2 if motion == "meeting" else 1, 24, 4)
        assert np.abs(path[..., :2]).max() < 0.55
        steps = np.abs(np.diff(path, axis=1)).max(axis=-1) * 160
        assert 1 < steps.mean() < 12


def test_shapes_and_textures_are_told_apart() -> None:
    x, y = np.meshgrid(np.linspace(-1, 1, 101), np.linspace(-1, 1, 101))
    for table in (SHAPES, TEXTURES):
        masks = [mask(x, y) for mask in table.values()]
        assert all(0.25 < mask.mean() < 0.85 for mask in masks)
        assert all((a != b).mean() > 0.05 for a, b in combinations(masks, 2))
    assert {thing.shape for thing in THINGS} == set(SHAPES)
    assert {thing.texture for thing in THINGS} == set(TEXTURES)


def test_half_of_the_clips_are_clean_and_each_harm_has_its_rate() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_corruption(rng).names for _ in range(8000)]
    assert sum(HARM_WEIGHTS.values()) == pytest.approx(1)
    assert np.mean([not names for names in drawn]) == pytest.approx(0.5, abs=0.03)
    for name, rate in HARM_PROBABILITIES.items():
        assert np.mean([name in names for names in drawn]) == pytest.approx(rate, abs=0.02)
    both = np.mean(["interference" in names and "background" in names for names in drawn])
    assert both == pytest.approx(HARM_PROBABILITIES["interference"] * HARM_PROBABILITIES["background"], abs=0.01)


def test_corruption_is_a_function_of_seed_class_and_clip() -> None:
    scenes = {(k, c, s): clip_scene(k, c, s) for k in range(4) for c in range(4) for s in range(2)}
    assert all(clip_scene(*key) == scene for key, scene in scenes.items())
    assert len({scene[0] for scene in scenes.values()}) == len(scenes)
    clean = np.mean([not clip_scene(k, c, 0)[1].names for k in range(24) for c in range(10)])
    assert clean == pytest.approx(0.5, abs=0.1)


def test_every_harm_has_a_range_and_a_weight() -> None:
    assert [field.name for field in fields(Corruption)] == list(HARMS) == list(HARM_WEIGHTS)


def harmed(name: str) -> Frames:
    return draw(CLASSES[0], replace(CLEAN, **{name: HARMS[name][0]}))


def test_blur_darkness_and_haze_take_contrast_but_leave_the_motion() -> None:
    clean = draw(CLASSES[0])
    edges = {name: float(cv2.Laplacian(harmed(name)[0], cv2.CV_64F).var()) for name in ("blur", "dark", "haze")}
    assert max(edges.values()) < 0.1 * cv2.Laplacian(clean[0], cv2.CV_64F).var()
    assert harmed("dark").mean() < 0.2 * clean.mean()
    assert harmed("haze").mean() > 190
    for name in ("dark", "haze"):
        assert np.corrcoef(speed_map(harmed(name)).ravel(), speed_map(clean).ravel())[0, 1] > 0.6


def test_interference_changes_the_colours_and_little_of_the_smoothed_grey() -> None:
    frames, clean = harmed("interference").astype(np.float32), draw(CLASSES[0]).astype(np.float32)
    grey = np.array([0.299, 0.587, 0.114], np.float32)
    smooth = [cv2.GaussianBlur(frame @ grey, (3, 3), 0) for frame in frames]
    faint = [0.4 * cv2.GaussianBlur(frame @ grey, (3, 3), 0) + 75 for frame in clean]
    assert np.abs(np.array(smooth) - np.array(faint))[:, 2:-2, 2:-2].mean() < 4
    assert np.abs(frames - clean).mean() > 40


def test_a_frozen_recording_shows_one_frame() -> None:
    frames = harmed("frozen")
    np.testing.assert_array_equal(frames, np.broadcast_to(frames[len(frames) // 2], frames.shape))


@pytest.mark.parametrize("name", ["shake", "background"])
def test_shaking_and_fast_backgrounds_fill_the_flow(name: str) -> None:
    assert speed_seen(harmed(name)).mean() > 2 * speed_seen(draw(CLASSES[0])).mean()
    assert harmed(name)[0].std() == pytest.approx(draw(CLASSES[0])[0].std(), rel=0.3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"classes": 1}, "cannot make 1 synthetic classes; choose 2 to 36"),
        ({"classes": 37}, "cannot make 37 synthetic classes; choose 2 to 36"),
        ({"clips_per_class": 0}, "clips per class is 0 in the synthetic clips; choose 1 or more"),
        ({"seed": -1}, "seed is -1 in the synthetic clips; choose 0 or more"),
        ({"size": 30}, "frame size is 30 in the synthetic clips; choose 32 or more"),
        ({"size": 161}, "frame size 161 is odd, which H.264 cannot store; choose 162"),
        ({"num_frames": 1}, "frames per clip is 1 in the synthetic clips; choose 2 or more"),
        ({"fps": 0}, "frames per second is 0 in the synthetic clips; choose 1 or more"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(
    wrong: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        generate(tmp_path / "clips", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "clips").exists()


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clips").write_text("notes")
    with pytest.raises(UserError, match="is a file; choose another directory"):
        generate(tmp_path / "clips", classes=2, clips_per_class=1, size=32, num_frames=2)
    assert (tmp_path / "clips").read_text() == "notes"


def test_other_clips_are_not_mixed_in(tmp_path: Path) -> None:
    generate(tmp_path, classes=3, clips_per_class=1, size=32, num_frames=2)
    with pytest.raises(UserError, match=r"already holds other clips, such as .*; choose an empty directory"):
        generate(tmp_path, classes=2, clips_per_class=1, size=32, num_frames=2)
