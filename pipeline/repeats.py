"""Ids that occur twice in a list too long to be kept: 8 bytes of memory an id, and a second look at suspects."""

from array import array
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np

Place = TypeVar("Place")


def first_repeat(
    hashes: "array[int]", entries: Callable[[], Iterable[tuple[str, Place]]]
) -> tuple[str, Place, Place] | None:
    """Find an id that occurs twice.

    Args:
        hashes: `hash(id)` of every id, 64 bits each; other ids may share one by chance.
        entries: Gives the ids again, each with the place where it stands. Called only if hashes are equal.

    Returns:
        The id and its first two places, or None.
    """
    ordered = np.sort(np.frombuffer(hashes, dtype=np.int64))
    suspects = set(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]).tolist())
    if not suspects:
        return None
    places: dict[str, Place] = {}
    for clip_id, place in entries():
        if hash(clip_id) in suspects:
            if clip_id in places:
                return clip_id, places[clip_id], place
            places[clip_id] = place
    return None
