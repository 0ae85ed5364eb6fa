"""The colour wheel, against the published algorithm written as a loop, and against colours worked out by hand."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from amfir.extract.flow.wheel import colour, colour_wheel, legend


def published_wheel() -> list[tuple[int, int, int]]:
    """The 55 colours, segment by segment, in whole numbers."""
    colours = [(255, 255 * i // 15, 0) for i in range(15)]
    colours += [(255 - 255 * i // 6, 255, 0) for i in range(6)]
    colours += [(0, 255, 255 * i // 4) for i in range(4)]
    colours += [(0, 255 - 255 * i // 11, 255) for i in range(11)]
    colours += [(255 * i // 13, 0, 255) for i in range(13)]
    colours += [(255, 0, 255 - 255 * i // 6) for i in range(6)]
    return colours


def published_colour(u: float, v: float) -> list[int]:
    """The colour of one vector whose maximum is 1."""
    wheel = published_wheel()
    radius = math.hypot(u, v)
    place = (math.atan2(-v, -u) / math.pi + 1) / 2 * (len(wheel) - 1)
    below = int(place)
    found = []
    for channel in range(3):
        here, following = wheel[below][channel] / 255, wheel[(below + 1) % len(wheel)][channel] / 255
        value = (1 - (place - below)) * here + (place - below) * following
        value = 1 - radius * (1 - value) if radius <= 1 else value * 0.75
        found.append(int(255 * value))
    return found


def one(u: float, v: float, max_pixels: float = 1.0) -> list[int]:
    return list(colour(np.array([[[u, v]]]), max_pixels)[0, 0])


def test_the_wheel_is_the_published_one() -> None:
    np.testing.assert_array_equal(colour_wheel(), np.array(published_wheel()))


def test_colours_are_the_published_ones() -> None:
    rng = np.random.default_rng(0)
    flow = rng.normal(0, 0.7, (9, 11, 2))
    expected = [[published_colour(u, v) for u, v in row] for row in flow]
    # A rounding of the sums apart, the levels are the same.
    assert np.abs(colour(flow, 1.0).astype(int) - np.array(expected)).max() <= 1
    assert np.mean(colour(flow, 1.0) == np.array(expected)) > 0.99


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ((0, 0), [255, 255, 255]),
        ((1, 0), [255, 0, 0]),
        ((0.5, 0), [255, 127, 127]),
        ((2, 0), [191, 0, 0]),
        ((0, 1), [255, 229, 0]),
        ((-1, 0), [0, 209, 255]),
        ((0, -1), [88, 0, 255]),
    ],
)
def test_red_is_right_yellow_down_blue_left_violet_up(vector: tuple[float, float], expected: list[int]) -> None:
    assert one(*vector) == expected


def test_motion_to_the_right_is_red_whatever_the_sign_of_its_zero() -> None:
    assert one(1.0, -0.0)[0] == one(1.0, 0.0)[0] == 255
    assert one(1.0, -0.0)[1] == 0


def test_only_the_ratio_to_the_maximum_counts() -> None:
    assert one(6.0, -8.0, 20.0) == one(0.3, -0.4)
    assert one(6.0, -8.0, 10.0) != one(6.0, -8.0, 20.0)


def test_any_number_of_axes_goes_in_front() -> None:
    flow: NDArray[np.float32] = np.random.default_rng(1).normal(size=(2, 3, 4, 5, 2)).astype(np.float32)
    colours = colour(flow, 2.0)
    assert colours.shape == (2, 3, 4, 5, 3)
    assert colours.dtype == np.uint8
    np.testing.assert_array_equal(colours[1, 2], colour(flow[1, 2], 2.0))


def test_the_legend_shows_each_direction_in_its_colour() -> None:
    wheel, inside = legend(101)
    assert wheel.shape == (101, 101, 3)
    assert list(wheel[50, 50]) == [255, 255, 255]
    for row, column, (u, v) in ((50, 100, (1, 0)), (100, 50, (0, 1)), (50, 0, (-1, 0)), (0, 50, (0, -1))):
        assert inside[row, column]
        assert np.abs(wheel[row, column].astype(int) - one(u, v)).max() <= 5
    assert not inside[0, 0]
    assert abs(inside.sum() / (math.pi * 50.5**2) - 1) < 0.02
