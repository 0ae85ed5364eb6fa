"""Frame positions against hand-worked numbers and their own rules."""

import math

import numpy as np
import pytest

from amfir.cache.errors import UserError
from amfir.extract.sampling import Sampling, frame_positions, successors


@pytest.mark.parametrize(
    ("num_frames", "frames", "expected"),
    [
        (16, 8, [1, 3, 5, 7, 9, 11, 13, 15]),
        (8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (300, 8, [18, 56, 93, 131, 168, 206, 243, 281]),
        (3, 8, [0, 0, 0, 1, 1, 2, 2, 2]),
        (1, 4, [0, 0, 0, 0]),
        (10, 1, [5]),
    ],
)
def test_first_view_takes_the_centres(num_frames: int, frames: int, expected: list[int]) -> None:
    positions = frame_positions(num_frames, Sampling(frames=frames), "a.mp4")
    assert positions.dtype == np.int64
    assert positions.tolist() == [expected]


def test_random_views_stay_inside_their_segments() -> None:
    n, t = 103, 8
    positions = frame_positions(n, Sampling(frames=t, views=200), "a.mp4")
    assert positions.shape == (200, t)
    for segment in range(t):
        drawn = positions[1:, segment]
        assert drawn.min() >= math.floor(segment * n / t)
        assert drawn.max() <= math.floor((segment + 1) * n / t)
        assert len(set(drawn.tolist())) >= 12  # of 13: the whole segment is drawn from


def test_random_views_of_a_short_clip_repeat_frames() -> None:
    positions = frame_positions(2, Sampling(frames=5, views=50), "a.mp4")
    assert set(positions.ravel().tolist()) == {0, 1}
    assert np.all(np.diff(positions, axis=1) >= 0)


def test_positions_depend_on_clip_view_and_seed_only() -> None:
    sampling = Sampling(frames=8, views=3)
    first = frame_positions(500, sampling, "x/a.mp4")
    frame_positions(500, sampling, "x/b.mp4")
    assert np.array_equal(first, frame_positions(500, sampling, "x/a.mp4"))
    # A view does not depend on how many others there are.
    assert np.array_equal(first[:2], frame_positions(500, Sampling(frames=8, views=2), "x/a.mp4"))
    assert not np.array_equal(first[1], first[2])
    assert not np.array_equal(first[1:], frame_positions(500, sampling, "y/a.mp4")[1:])
    assert not np.array_equal(first[1:], frame_positions(500, Sampling(frames=8, views=3, seed=1), "x/a.mp4")[1:])


def test_random_positions_are_the_same_in_every_process_and_version() -> None:
    positions = frame_positions(1000, Sampling(frames=4, views=2, seed=7), "walk/1.mp4")
    assert positions[1].tolist() == [19, 490, 506, 960]


def test_names_that_are_not_utf8_have_positions() -> None:
    assert frame_positions(10, Sampling(views=2), "a\udcff.mp4").shape == (2, 8)


def test_successors_go_forward_in_time() -> None:
    first, second = successors(np.array([[0, 3, 8], [9, 9, 1]]), 10)
    assert first.tolist() == [[0, 3, 8], [8, 8, 1]]
    assert second.tolist() == [[1, 4, 9], [9, 9, 2]]


def test_successors_of_two_frames() -> None:
    first, second = successors(np.array([0, 1]), 2)
    assert (first.tolist(), second.tolist()) == ([0, 0], [1, 1])


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"views": 0}, {"frames": -3}, {"seed": -1}])
def test_wrong_counts_are_refused(wrong: dict[str, int]) -> None:
    (name, value), *_ = wrong.items()
    with pytest.raises(UserError, match=rf"^{name} is {value}; frame sampling; it must be at least"):
        Sampling(**wrong)
