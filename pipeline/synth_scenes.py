"""What a synthetic clip shows: its class, how the clip varies within the class, and what it suffers.

Everything here is numbers; `synth_render` turns them into pixels. Lengths are fractions of the frame's side, times
fractions of the clip, angles radians, so a scene does not depend on the size or length of the clip.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from math import lcm

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Thing:
    """An object, which a single frame tells from the others."""

    texture: str
    """A key of `synth_render.TEXTURES`."""
    shape: str
    """A key of `synth_render.SHAPES`."""
    hue: float
    """Place of its light colour on the colour circle, in turns."""


@dataclass(frozen=True)
class SynthClass:
    """An object and the way it moves."""

    thing: Thing
    motion: str
    """A key of `MOTIONS`, `ORDERED` or `BACKWARD`."""

    @property
    def name(self) -> str:
        """The class name, for example "checkered-disc-circling"."""
        return f"{self.thing.texture}-{self.thing.shape}-{self.motion}"


@dataclass(frozen=True)
class Variation:
    """How one clip differs from the others of its class."""

    start: float
    """Time at which the motion enters the clip."""
    speed: float
    """Factor on the motion's pace."""
    offset: tuple[float, float]
    """Shift of the whole path, x and y."""
    diameter: float
    """Size of the object."""
    hue: float
    """Rotation of the object's colours, in turns of the colour circle."""
    drift: tuple[float, float]
    """Velocity of the background, in sides a clip."""


@dataclass(frozen=True)
class Corruption:
    """What one clip suffers; 0 is unharmed."""

    interference: float
    """Strength of a test pattern over a faint grey picture, in grey levels; the same pattern in every such clip."""
    blur: float
    """Standard deviation of a Gaussian blur."""
    dark: float
    """Share of the light that is lost."""
    haze: float
    """Share of the picture that a bright fog covers."""
    shake: float
    """Standard deviation of the camera's roll, in radians; it shifts as well."""
    frozen: float
    """1 if the recording hangs: every frame is the middle one."""
    background: float
    """Speed of the background, in sides a clip."""

    @property
    def names(self) -> tuple[str, ...]:
        """The harms present."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) > 0)


# Ranges of the harms. The first four hurt single frames most, the last three the flow.
HARMS: dict[str, tuple[float, float]] = {
    "interference": (100.0, 120.0),
    "blur": (0.025, 0.04),
    "dark": (0.86, 0.94),
    "haze": (0.8, 0.9),
    "shake": (0.12, 0.2),
    "frozen": (1.0, 1.0),
    "background": (2.0, 3.5),
}
# How often each harm comes, independently of the others: half of the clips stay clean, since the weights add up to 1.
HARM_WEIGHTS = {
    "interference": 0.4,
    "blur": 0.08,
    "dark": 0.06,
    "haze": 0.16,
    "shake": 0.05,
    "frozen": 0.17,
    "background": 0.08,
}
HARM_PROBABILITIES = {name: 1 - 0.5**weight for name, weight in HARM_WEIGHTS.items()}


def draw_variation(rng: np.random.Generator) -> Variation:
    """Draw how a clip varies; the draw does not depend on the class."""
    direction = rng.uniform(0, 2 * np.pi)
    pace = rng.uniform(0.01, 0.06)
    return Variation(
        start=rng.uniform(0, 0.1),
        speed=rng.uniform(0.85, 1.15),
        offset=(rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08)),
        diameter=rng.uniform(0.4, 0.55),
        hue=rng.uniform(-0.05, 0.05),
        drift=(pace * np.cos(direction), pace * np.sin(direction)),
    )


def draw_corruption(rng: np.random.Generator) -> Corruption:
    """Draw what a clip suffers; each harm comes with its own probability, whatever the others do."""
    present = {name: bool(rng.random() < p) for name, p in HARM_PROBABILITIES.items()}
    strength = {name: rng.uniform(low, high) for name, (low, high) in HARMS.items()}
    return Corruption(**{name: strength[name] if present[name] else 0.0 for name in HARMS})


def poses(motion: str, variation: Variation, num_frames: int) -> Array:
    """Where the objects of a clip are in each frame.

    Args:
        motion: A key of `MOTIONS` or `ORDERED`.
        variation: How the clip varies.
        num_frames: Length of the clip.

    Returns:
        [objects, num_frames, 4]: x and y from the centre of the frame, scale, angle.
    """
    time = np.linspace(0, 1, num_frames)
    path = (MOTIONS | ORDERED)[motion](variation.start + variation.speed * time)
    path[..., :2] += variation.offset
    return path


def _path(x: Array | float = 0.0, y: Array | float = 0.0, scale: Array | float = 1.0) -> Array:
    upright = 0.0
    return np.stack(np.broadcast_arrays(x, y, scale, upright), axis=-1)[None].astype(np.float64)


def _circling(t: Array) -> Array:
    return _path(0.17 * np.cos(6 * t), 0.17 * np.sin(6 * t))


def _crossing(t: Array) -> Array:
    return _path(0.7 * (t - 0.55))


def _growing(t: Array) -> Array:
    return _path(scale=0.4 + 1.4 * t)


def _bouncing(t: Array) -> Array:
    return _path(0.5 * (0.55 - t), 0.15 - 0.3 * np.abs(np.sin(5 * t)))


def _sinking(t: Array) -> Array:
    return _path(0.0, 0.7 * (t - 0.55))


def _meeting(t: Array) -> Array:
    return _mirrored(0.5 - 0.35 * t)


def _joining(t: Array) -> Array:
    return _mirrored(0.75 - 0.6 * t)


def _mirrored(gap: Array) -> Array:
    return np.concatenate([_path(-gap, 0.0, 0.75), _path(gap, 0.0, 0.75)])


def _entering(t: Array) -> Array:
    return _path(0.85 * (t - 1))


def _falling(t: Array) -> Array:
    return _path(0.0, 0.85 * (t - 1))


# From a time of about 0 at the start of a clip to about 1 at its end, to poses [objects, frames, 4].
MOTIONS: dict[str, Callable[[Array], Array]] = {
    "circling": _circling,
    "crossing": _crossing,
    "growing": _growing,
    "bouncing": _bouncing,
    "sinking": _sinking,
    "meeting": _meeting,
}

# Motions whose start and end look different to a network for images, wherever in the frame they are: a clip and its
# reverse then show it the same frames in orders that it can tell. Not so crossing, circling and bouncing.
ORDERED: dict[str, Callable[[Array], Array]] = {
    "growing": _growing,
    "joining": _joining,
    "entering": _entering,
    "falling": _falling,
}
BACKWARD: dict[str, str] = {"shrinking": "growing", "parting": "joining", "leaving": "entering", "rising": "falling"}
"""Motion -> the one of `ORDERED` that it is from its end."""

THINGS: list[Thing] = [
    Thing("checkered", "disc", 0 / 12),
    Thing("dotted", "square", 1 / 12),
    Thing("rayed", "hexagon", 7 / 12),
    Thing("ringed", "cross", 3 / 12),
    Thing("gridded", "flower", 5 / 12),
    Thing("bricked", "diamond", 6 / 12),
]


def _classes() -> list[SynthClass]:
    """List all pairs of an object and a motion, in threes: a pair, then another object, then another motion.

    So every three classes hold two that differ only in appearance, two only in motion and two in both. The first nine
    classes show every object and every motion: later ones are new combinations.
    """
    motions, count = list(MOTIONS), len(THINGS)
    found = []
    for lap in (0, 3):
        for i in (0, 2, 4, 1, 3, 5):
            for step, turn in ((0, 0), (1, 0), (0, 1)):
                found.append(SynthClass(THINGS[(i + step) % count], motions[(i + lap + turn) % count]))
    return found


def _order_classes() -> list[SynthClass]:
    """List all pairs of an object and an ordered motion, each forward, then backward.

    The first six pairs show every object and every motion; the last four of twelve differ in both.
    """
    forward, backward = list(ORDERED), {ahead: back for back, ahead in BACKWARD.items()}
    lap = lcm(len(THINGS), len(ORDERED))  # both indices would repeat after it
    found = []
    for pair in range(len(THINGS) * len(ORDERED)):
        thing, motion = THINGS[pair % len(THINGS)], forward[(pair + pair // lap) % len(ORDERED)]
        found += [SynthClass(thing, motion), SynthClass(thing, backward[motion])]
    return found


CLASSES: list[SynthClass] = _classes()

ORDER_CLASSES: list[SynthClass] = _order_classes()
"""Twos that differ only in temporal order."""
