"""Pixels of a synthetic clip: textured sprites warped over a textured background, then what the clip suffers."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .synth_scenes import BACKWARD, Array, Corruption, SynthClass, Thing, Variation, poses

Image = NDArray[np.float32]
Mask = NDArray[np.bool_]
_SUPERSAMPLING = 4
# A camera that rolls by 1 rad shifts by this share of the frame's side.
_CAMERA_SHIFT = 0.3
# What interference leaves of the contrast, the level it is lifted to, and its checkerboard beside its colour bars.
_FAINT, _LIFT = 0.4, 75.0
_CHECKS = 0.55
_BAR_HUES = (0, 60, 120, 180, 240, 300, 30, 200)
_FOG = 225.0
_LUMA = np.array([[0.299], [0.587], [0.114]], np.float32)


def render(
    kind: SynthClass,
    variation: Variation,
    corruption: Corruption,
    rng: np.random.Generator,
    *,
    size: int,
    num_frames: int,
) -> NDArray[np.uint8]:
    """Draw the frames of one clip.

    Args:
        kind: The class.
        variation: How the clip differs from the others of its class.
        corruption: What the clip suffers.
        rng: Draws the background and the camera's path.
        size: Side of the frames, in pixels.
        num_frames: Number of frames.

    Returns:
        [num_frames, size, size, 3], RGB. A class whose motion is backward shows the forward one's clip from its end,
        background and harms too, so that only the order of the frames differs.
    """
    if kind.motion in BACKWARD:
        forward = replace(kind, motion=BACKWARD[kind.motion])
        return render(forward, variation, corruption, rng, size=size, num_frames=num_frames)[::-1].copy()
    camera = rng.normal(size=(num_frames, 3)) * corruption.shake * (_CAMERA_SHIFT, _CAMERA_SHIFT, 1)
    backdrop = _backdrop(rng, variation, corruption, camera, size)
    path = poses(kind.motion, variation, num_frames)
    path = np.stack([_through(camera, objects) for objects in path])
    sprite = _sprite(kind.thing, variation, size)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    for i in range(num_frames):
        frame = backdrop(i)
        for pose in path[:, i]:
            frame = _paste(frame, sprite, pose)
        frames[i] = _spoil(frame, corruption)
    if corruption.frozen:
        frames[:] = frames[num_frames // 2]
    return frames


def _backdrop(
    rng: np.random.Generator, variation: Variation, corruption: Corruption, camera: Array, size: int
) -> Callable[[int], Image]:
    """Return a function that shows the moving background of frame i."""
    canvas = _canvas(rng, size)
    drift = np.array(variation.drift)
    if corruption.background:
        drift *= corruption.background / np.hypot(*drift)
    x, y = drift[:, None] * np.linspace(-0.5, 0.5, len(camera))
    seen = _through(camera, np.stack(np.broadcast_arrays(x, y, 1.0, 0.0), axis=-1))
    return lambda i: _warp(canvas, seen[i], size, cv2.BORDER_REFLECT)


def _through(camera: Array, path: Array) -> Array:
    """Poses [frames, 4] as a camera sees them whose own shift and roll are [frames, 3]."""
    x, y, scale, angle = path.T
    cos, sin = np.cos(camera[:, 2]), np.sin(camera[:, 2])
    return np.stack(
        [cos * x - sin * y + camera[:, 0], sin * x + cos * y + camera[:, 1], scale, angle + camera[:, 2]], axis=-1
    )


def _canvas(rng: np.random.Generator, size: int) -> Image:
    """Cloudy two-coloured noise of several grain sizes, larger than the frame, float32 RGB in 0..255."""
    side = 2 * size + size // 4
    clouds = np.zeros((side, side, 1), np.float32)
    for grain in (4, 8, 16, 32, 64, 128):
        cells = rng.random((grain, grain), np.float32) - 0.5
        clouds[..., 0] += cv2.resize(cells, (side, side), interpolation=cv2.INTER_CUBIC) * (16 / grain) ** 0.3
    clouds = np.clip(0.5 + 0.42 * clouds, 0, 1)
    # Muted colours of clearly different brightness, so that grey frames show the background's motion.
    low = (rng.uniform(20, 90) + rng.uniform(-20, 20, 3)).astype(np.float32)
    high = (rng.uniform(150, 220) + rng.uniform(-20, 20, 3)).astype(np.float32)
    return np.asarray(low + clouds * (high - low), np.float32)


def _sprite(thing: Thing, variation: Variation, size: int) -> Image:
    """The object, upright and alone: float32 RGB premultiplied by the fourth channel, its opacity."""
    side = max(8, round(variation.diameter * size))
    axis = np.linspace(-1, 1, side * _SUPERSAMPLING)
    x, y = np.meshgrid(axis, axis)
    inside = SHAPES[thing.shape](x, y)[..., None]
    pattern = TEXTURES[thing.texture](x, y)[..., None]
    light, deep = _colours(thing.hue + variation.hue)
    painted = np.where(pattern, light, deep) * inside
    whole = np.concatenate([painted, inside], axis=-1).astype(np.float32)
    return np.asarray(cv2.resize(whole, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _colours(hue: float) -> tuple[Array, Array]:
    """A light colour of the hue (in turns) and a deep one of the opposite hue."""
    hsv = np.array([[[hue % 1 * 360, 0.55, 0.95], [(hue + 0.5) % 1 * 360, 0.75, 0.4]]], np.float32)
    rgb = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0] * 255
    return rgb[0], rgb[1]


def _paste(frame: Image, sprite: Image, pose: Array) -> Image:
    size = frame.shape[0]
    warped = _warp(sprite, pose, size, cv2.BORDER_CONSTANT)
    pasted: Image = frame * (1 - warped[..., 3:]) + warped[..., :3]
    return pasted


def _warp(picture: Image, pose: Array, size: int, border: int) -> Image:
    """Show a square picture in a frame of `size` pixels, its centre, scale and angle as the pose [4] says."""
    x, y, scale, angle = pose
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    place = (np.array([x, y]) + 0.5) * size - 0.5 - turn @ np.full(2, (picture.shape[0] - 1) / 2)
    moved = cv2.warpAffine(picture, np.column_stack([turn, place]), (size, size), borderMode=border)
    return np.asarray(moved, np.float32)


def _spoil(frame: Image, corruption: Corruption) -> NDArray[np.uint8]:
    """Blur, darken, cover with fog, and lay a test pattern over the picture."""
    size = frame.shape[0]
    if corruption.blur:
        frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), corruption.blur * size), np.float32)
    if corruption.dark:
        frame = frame * np.float32(1 - corruption.dark)
    if corruption.haze:
        frame = frame * np.float32(1 - corruption.haze) + np.float32(_FOG * corruption.haze)
    if corruption.interference:
        faint = _FAINT * frame @ _LUMA + np.float32(_LIFT)
        frame = faint + _test_pattern(size) * np.float32(corruption.interference)
    return np.clip(np.rint(frame), 0, 255).astype(np.uint8)


def _test_pattern(size: int) -> Image:
    """Eight colour bars without grey part and a checkerboard of single pixels, [size, size, 3] about 0.

    Flow sees grey and smooths it first, so both spare it, while they are nearly all that a network for images sees:
    clips with the pattern look like each other, and a classifier is sure and wrong about them.
    """
    hues = np.array([[[hue, 1, 1] for hue in _BAR_HUES]], np.float32)
    colours = cv2.cvtColor(hues, cv2.COLOR_HSV2RGB)[0]
    bars = (colours - colours @ _LUMA)[np.arange(size) * len(_BAR_HUES) // size]
    rows, columns = np.indices((size, size))
    checks = _CHECKS * (2.0 * ((rows + columns) % 2) - 1)
    return np.asarray(bars + checks[..., None], np.float32)


def _flower(x: Array, y: Array) -> Mask:
    petals: Array = 0.68 + 0.27 * np.abs(np.cos(3 * np.arctan2(x, -y)))
    return np.hypot(x, y) < petals


def _cross(x: Array, y: Array) -> Mask:
    return (np.minimum(np.abs(x), np.abs(y)) < 0.32) & (np.maximum(np.abs(x), np.abs(y)) < 0.95)


def _hexagon(x: Array, y: Array) -> Mask:
    reach: Array = np.maximum(np.abs(x), np.abs(x) / 2 + np.abs(y) * np.sqrt(3) / 2)
    return reach < 0.9


def _dotted(x: Array, y: Array) -> Mask:
    return np.hypot((2.4 * x) % 1 - 0.5, (2.4 * y) % 1 - 0.5) < 0.33


def _bricked(x: Array, y: Array) -> Mask:
    return ((4 * y) % 1 > 0.2) & ((2.2 * x + 0.5 * np.floor(4 * y)) % 1 > 0.12)


# Where an object is, and where it has the lighter of its colours, for x and y in -1..1. No texture is plain stripes,
# whose motion along themselves no flow can see.
SHAPES: dict[str, Callable[[Array, Array], Mask]] = {
    "disc": lambda x, y: np.hypot(x, y) < 0.95,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.84,
    "hexagon": _hexagon,
    "cross": _cross,
    "flower": _flower,
    "diamond": lambda x, y: np.abs(x) + np.abs(y) < 0.98,
}
TEXTURES: dict[str, Callable[[Array, Array], Mask]] = {
    "checkered": lambda x, y: np.sin(9 * x) * np.sin(9 * y) > 0,
    "dotted": _dotted,
    "rayed": lambda x, y: np.sin(8 * np.arctan2(y, x)) > 0,
    "ringed": lambda x, y: np.sin(17 * np.hypot(x, y)) > 0,
    "gridded": lambda x, y: np.maximum(np.cos(13 * x), np.cos(13 * y)) > 0.75,
    "bricked": _bricked,
}
