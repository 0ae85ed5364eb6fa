"""Packing of items of many clips into batches of one fixed size."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Slot = TypeVar("Slot")

OPEN_SHAPES = 32
"""Shapes of which unfinished batches are kept; a data set with many more runs part of its batches half empty."""


@dataclass(frozen=True)
class Batch(Generic[Slot]):
    """Items for one run of a network."""

    items: NDArray[Any]
    """`[B, ...]`, the last ones zero if there are fewer slots."""
    slots: list[Slot]
    """What each item belongs to; at most B."""


class Batcher(Generic[Slot]):
    """Packs items of equal shape into batches of one fixed size.

    The size never changes, since features depend on it in their last bits; they do not depend on an item's place in
    the batch, nor on the other items.

    Args:
        size: Items of a batch (B).
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._open: dict[tuple[int, ...], Batch[Slot]] = {}

    def add(self, items: NDArray[Any], slots: list[Slot]) -> Iterator[Batch[Slot]]:
        """Take items `[N, ...]` with a slot each, and yield the batches that get full."""
        shape = items.shape[1:]
        for item, slot in zip(items, slots, strict=True):
            if shape not in self._open:
                if len(self._open) == OPEN_SHAPES:
                    yield self._open.pop(next(iter(self._open)))
                self._open[shape] = Batch(np.zeros((self._size, *shape), items.dtype), [])
            batch = self._open[shape]
            batch.items[len(batch.slots)] = item
            batch.slots.append(slot)
            if len(batch.slots) == self._size:
                yield self._open.pop(shape)

    def rest(self) -> Iterator[Batch[Slot]]:
        """Yield the items that wait for others, if there are any, padded with zeros."""
        while self._open:
            yield self._open.pop(next(iter(self._open)))
