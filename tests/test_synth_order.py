"""Synthetic classes in pairs that differ only in temporal order."""

import json
import re
import tomllib
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from amfir.cache.errors import UserError
from amfir.pipeline.cli import cli
from amfir.pipeline.synth import clip_frames, clip_scene, generate, split_classes
from amfir.pipeline.synth_render import render
from amfir.pipeline.synth_scenes import (
    BACKWARD,
    CLASSES,
    HARMS,
    ORDER_CLASSES,
    ORDERED,
    THINGS,
    Corruption,
    SynthClass,
    Variation,
    draw_variation,
    poses,
)

NAMES = [kind.name for kind in ORDER_CLASSES]
TWINS = list(zip(ORDER_CLASSES[::2], ORDER_CLASSES[1::2], strict=True))


def drawn(kind: SynthClass, corruption: dict[str, float], num_frames: int = 8) -> NDArray[np.uint8]:
    variation = draw_variation(np.random.default_rng(5))
    harms = Corruption(**(dict.fromkeys(HARMS, 0.0) | corruption))
    return render(kind, variation, harms, np.random.default_rng(3), size=48, num_frames=num_frames)


@pytest.mark.parametrize("harm", [None, *HARMS])
def test_equal_draws_give_twins_the_same_frames_in_reverse(harm: str | None) -> None:
    corruption = {harm: HARMS[harm][0]} if harm else {}
    for ahead, back in TWINS[:4]:
        forward, backward = drawn(ahead, corruption), drawn(back, corruption)
        assert sorted(frame.tobytes() for frame in forward) == sorted(frame.tobytes() for frame in backward)
        np.testing.assert_array_equal(backward, forward[::-1])
        assert np.array_equal(backward, forward) == (harm == "frozen")


def test_twins_share_object_and_path_and_every_pair_is_another() -> None:
    for ahead, back in TWINS:
        assert (ahead.thing, ahead.motion) == (back.thing, BACKWARD[back.motion])
    assert {(ahead.thing, ahead.motion) for ahead, _ in TWINS} == {
        (thing, move) for thing in THINGS for move in ORDERED
    }
    assert len(set(NAMES)) == len(NAMES) == 2 * len(THINGS) * len(ORDERED)
    assert {ahead.motion for ahead, _ in TWINS[:6]} == set(ORDERED)
    assert {ahead.thing for ahead, _ in TWINS[:6]} == set(THINGS)
    for (one, _), (other, _) in combinations(TWINS[8:12], 2):
        assert one.thing != other.thing
        assert one.motion != other.motion


@pytest.mark.parametrize("motion", ORDERED)
def test_ever_more_is_seen_whatever_the_draw(motion: str) -> None:
    """Nothing of the ordered motions looks the same from both ends: what is seen of the objects grows."""
    for start in (0.0, 0.1):
        for speed in (0.85, 1.15):
            for shift in (-0.08, 0.08):
                path = poses(motion, Variation(start, speed, (shift, shift), 0.45, 0.0, (0.03, 0.0)), 24)
                seen = np.ones(path.shape[:2])
                for axis in (0, 1):
                    centre, half = path[..., axis], 0.225 * path[..., 2]
                    seen *= (np.minimum(centre + half, 0.5) - np.maximum(centre - half, -0.5)).clip(0)
                total = seen.sum(0)
                assert total[-8:].mean() > 2 * total[:8].mean()


def test_backgrounds_drift_in_all_directions_alike() -> None:
    rng = np.random.default_rng(0)
    drifts = np.array([draw_variation(rng).drift for _ in range(4000)])
    quarters = np.histogram(np.arctan2(drifts[:, 1], drifts[:, 0]), bins=4, range=(-np.pi, np.pi))[0]
    assert quarters.min() > 900
    assert np.abs(drifts.mean(0)).max() < 0.002


def test_twins_get_draws_of_their_own() -> None:
    assert clip_scene(0, 0, 0) != clip_scene(1, 0, 0)
    first, second = (clip_frames(k, 0, seed=0, size=32, num_frames=4, kinds=ORDER_CLASSES) for k in (0, 1))
    assert not np.array_equal(first[::-1], second)


@pytest.mark.parametrize(("classes", "sizes"), [(4, (2, 0, 2)), (10, (4, 2, 4)), (24, (12, 4, 8)), (48, (24, 6, 18))])
def test_both_of_a_pair_are_in_one_part_of_the_split(classes: int, sizes: tuple[int, int, int]) -> None:
    parts = split_classes(NAMES[:classes], 2)
    assert tuple(len(part) for part in parts.values()) == sizes
    part_of = {name: part for part, names in parts.items() for name in names}
    assert list(part_of) == NAMES[:classes]
    for ahead, back in TWINS[: classes // 2]:
        assert part_of[ahead.name] == part_of[back.name]


def test_the_command_writes_pairs_and_their_split(tmp_path: Path) -> None:
    arguments = ["data", "synth", "--classes", "4", "--clips", "2", "--size", "32", "--frames", "3", "--order-pairs"]
    folder, again = tmp_path / "clips", tmp_path / "again"
    result = CliRunner().invoke(cli, [*arguments, str(folder), "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["clips"] == 8
    assert {path.parent.name for path in folder.glob("*/*.mp4")} == set(NAMES[:4])
    assert tomllib.loads((folder / "split.toml").read_text())["classes"] == {
        "train": ["checkered-disc-growing", "checkered-disc-shrinking"],
        "val": [],
        "test": ["dotted-square-joining", "dotted-square-parting"],
    }
    generate(again, classes=6, clips_per_class=1, size=32, num_frames=3, order_pairs=True)
    for name in NAMES[:4]:
        assert (again / name / "000.mp4").read_bytes() == (folder / name / "000.mp4").read_bytes()
    split = tomllib.loads((again / "split.toml").read_text())["classes"]
    assert [len(part) for part in split.values()] == [2, 0, 4]
    described = CliRunner().invoke(cli, ["data", "synth", "--help"]).stdout
    assert "shrinking" in described
    assert "amfir data synth order-clips --order-pairs" in described


def test_files_show_what_was_drawn_for_their_class(tmp_path: Path) -> None:
    paths = generate(tmp_path, classes=4, clips_per_class=1, size=48, num_frames=4, order_pairs=True)
    for number, path in enumerate(paths):
        with av.open(str(path)) as container:
            shown = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)
        wrong = [
            np.abs(clip_frames(number, 0, seed=0, size=48, num_frames=4, kinds=kinds) - shown).mean()
            for kinds in (ORDER_CLASSES, CLASSES)
        ]
        assert wrong[0] < min(12, wrong[1])


@pytest.mark.parametrize("classes", [2, 5, 50])
def test_classes_that_make_no_pairs_are_refused(classes: int, tmp_path: Path) -> None:
    message = f"cannot make {classes} synthetic classes in pairs; choose an even number, 4 to 48"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        generate(tmp_path / "clips", classes=classes, order_pairs=True)
    assert not (tmp_path / "clips").exists()
