"""Synthetic clips: textured objects that move over textured backgrounds, made to try the method on without a download.

A demonstration and a test bed, not a benchmark: it was shaped so that appearance and motion each tell some classes
apart and so that single clips spoil one of the two, and no accuracy on it says anything about real videos.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from ..cache.errors import UserError
from .synth_render import render
from .synth_scenes import CLASSES, ORDER_CLASSES, Corruption, SynthClass, Variation, draw_corruption, draw_variation

_VARIATION, _CORRUPTION, _PIXELS = range(3)
# The same machine writes the same bytes: one thread, and no macroblock tree, whose rounding varies from run to run.
_X264 = {
    "crf": "17",
    "preset": "veryfast",
    "g": "12",
    "threads": "1",
    "x264-params": "mbtree=0:cpu-independent=1",
}


def generate(
    directory: Path,
    *,
    classes: int = 24,
    clips_per_class: int = 10,
    seed: int = 0,
    size: int = 160,
    num_frames: int = 24,
    fps: int = 12,
    order_pairs: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write clips as `directory/CLASS/NNN.mp4`, and the class split beside them as `directory/split.toml`.

    Clips of a class differ in background, colours, size, start and speed. Half of them are clean; the others suffer
    one or more of interference, blur, darkness, haze, a shaking camera, a recording that hangs, a fast background.
    A clip's content depends on the seed, its class and its number only, not on how many others are made.

    Args:
        directory: Created if missing; clips already there under the same names are replaced.
        classes: Number of classes, the first so many of a fixed list.
        clips_per_class: Number of clips of each class.
        seed: Another seed, other clips of the same classes.
        size: Side of the square frames, in pixels, even.
        num_frames: Frames of a clip.
        fps: Frames per second.
        order_pairs: Take the classes of a list of pairs, the same object on the same path forward and backward: only
            the order of the frames tells the two apart.
        progress: Called after each clip with the number of clips written and of all.

    Returns:
        The paths of the clips, class by class.

    Raises:
        UserError: If a count or size is out of range, or the directory is a file or holds other clips.
    """
    kinds = ORDER_CLASSES if order_pairs else CLASSES
    _check(classes, clips_per_class, seed, size, num_frames, fps, order_pairs)
    names = [kind.name for kind in kinds[:classes]]
    paths = [directory / name / f"{clip:03d}.mp4" for name in names for clip in range(clips_per_class)]
    _prepare(directory, names, paths)
    for done, path in enumerate(paths):
        where = divmod(done, clips_per_class)
        frames = clip_frames(*where, seed=seed, size=size, num_frames=num_frames, kinds=kinds)
        _encode(path, frames, fps)
        if progress:
            progress(done + 1, len(paths))
    (directory / "split.toml").write_text(_split_toml(names, 2 if order_pairs else 3), encoding="utf-8")
    return paths


def clip_frames(
    class_index: int, clip: int, *, seed: int, size: int, num_frames: int, kinds: Sequence[SynthClass] = CLASSES
) -> NDArray[np.uint8]:
    """Return the frames of one clip before they are encoded: [num_frames, size, size, 3], RGB."""
    variation, corruption = clip_scene(class_index, clip, seed)
    rng = np.random.default_rng([seed, class_index, clip, _PIXELS])
    return render(kinds[class_index], variation, corruption, rng, size=size, num_frames=num_frames)


def clip_scene(class_index: int, clip: int, seed: int) -> tuple[Variation, Corruption]:
    """Return how one clip varies and what it suffers: a pure function of its class, its number and the seed."""
    return (
        draw_variation(np.random.default_rng([seed, class_index, clip, _VARIATION])),
        draw_corruption(np.random.default_rng([seed, class_index, clip, _CORRUPTION])),
    )


def split_classes(names: list[str], group: int = 3) -> dict[str, list[str]]:
    """Divide the classes: half for training, an eighth for validation, the rest for the test.

    The classes come in threes (`synth_scenes`) which are kept whole, so each part of three classes or more holds two
    that differ only in appearance, two only in motion and two in both. Up to twelve classes leave none for validation.
    Those that differ only in order come in twos: both are in one part.

    Args:
        names: The classes, groups in a row.
        group: Classes of a group.
    """
    train = len(names) // (2 * group) * group or len(names) // 2
    val = train + group * round(len(names) / (8 * group))
    return {"train": names[:train], "val": names[train:val], "test": names[val:]}


def _check(
    classes: int, clips_per_class: int, seed: int, size: int, num_frames: int, fps: int, order_pairs: bool
) -> None:
    if order_pairs and (classes % 2 or not 4 <= classes <= len(ORDER_CLASSES)):
        raise UserError(
            f"cannot make {classes} synthetic classes in pairs; choose an even number, 4 to {len(ORDER_CLASSES)}"
        )
    if not order_pairs and not 2 <= classes <= len(CLASSES):
        raise UserError(f"cannot make {classes} synthetic classes; choose 2 to {len(CLASSES)}")
    for what, value, least in (
        ("clips per class", clips_per_class, 1),
        ("seed", seed, 0),
        ("frame size", size, 32),
        ("frames per clip", num_frames, 2),
        ("frames per second", fps, 1),
    ):
        if value < least:
            raise UserError(f"{what} is {value} in the synthetic clips; choose {least} or more")
    if size % 2:
        raise UserError(f"frame size {size} is odd, which H.264 cannot store; choose {size + 1}")


def _prepare(directory: Path, names: list[str], paths: list[Path]) -> None:
    try:
        for name in names:
            (directory / name).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"cannot write clips below {error.filename}, which is a file; choose another directory"
        ) from None
    others = sorted(set(directory.glob("*/*.mp4")) - set(paths))
    if others:
        raise UserError(f"{directory} already holds other clips, such as {others[0].name}; choose an empty directory")


def _encode(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=_X264)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _split_toml(names: list[str], group: int) -> str:
    lines = ["# Class split of the synthetic clips beside this file.", "[classes]"]
    for part, members in split_classes(names, group).items():
        lines.append(f"{part} = [")
        lines += [f'    "{name}",' for name in members]
        lines.append("]")
    return "\n".join(lines) + "\n"
