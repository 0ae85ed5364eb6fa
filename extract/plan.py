"""What is left to do: the clips of a job against what the cache holds.

A list may have millions of clips, most of them done, and is never kept. It is read once to count and to refuse what is
wrong with it; and once more, while the job goes on, for the clips that are to be done, unless these are few.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..cache.errors import UserError
from ..cache.index import StreamIndex, digests
from ..cache.rows import Failure
from ..cache.store import Store
from ..cache.verify import discard_damaged
from .clips import Checked, Clip
from .source import source_of
from .worker import Task

KEPT_TASKS = 10_000
"""Clips to be done that are kept from the first pass; if there are more, there is a second one."""
BLOCK = 8192
"""Clips that are looked up at a time."""
LISTED_FAILURES = 1000
"""Failures that a job keeps in memory; the cache lists all."""
CHECKED_SOURCES = 10_000
"""Files of finished clips that are looked at, evenly spread over the list, to see whether they have changed."""


@dataclass
class Plan:
    """A job's clips, counted by what has to be done with them."""

    tasks: Callable[[], Iterator[Task]]
    """Yields the clips that are to be done."""
    clips: int = 0
    """All clips."""
    todo: int = 0
    """Clips with streams to be extracted."""
    skipped: int = 0
    """Clips that have all streams."""
    standing: int = 0
    """Clips of which a stream failed in an earlier job, and is not tried again; another stream may be to do."""
    changed: int = 0
    """Clips, of those looked at, whose file is not the one that their features came from."""
    failures: list[Failure] = field(default_factory=list)
    """The first of the failures that stand."""


def make_plan(
    clips: Iterable[Clip],
    cache: Path,
    streams: tuple[str, ...],
    *,
    retry_failed: bool,
    listed: Callable[[int], None] | None = None,
) -> Plan:
    """Compare a job's clips with a cache; damaged segments are removed from it first.

    Args:
        clips: The job's clips; gone through twice.
        cache: The cache's directory; need not exist.
        streams: The wanted streams.
        retry_failed: Whether failures of earlier jobs are forgotten.
        listed: Called now and then with the number of clips counted so far.

    Raises:
        UserError: If two clips share an id, or the directory is something else than a cache.
    """
    again = list(clips) if isinstance(clips, Iterator) else clips
    lookup = _Lookup(_read_indices(cache, streams), retry_failed)
    kept: list[Task] = []
    plan = Plan(lambda: iter(kept) if len(kept) == plan.todo else _tasks(again, lookup))
    census = _Census(plan, lookup)
    for block in _blocks(again):
        found = lookup.find(block)
        todo = [*_todo(block, found)]
        if isinstance(clips, Checked):
            clips.require(task.clip for task in todo)
        kept += todo[: KEPT_TASKS - len(kept)]
        census.count(block, found, len(todo))
        if listed and plan.clips >= BLOCK:  # a short list is counted before a bar could be looked at
            listed(plan.clips)
    if repeated := census.repeated():
        name = next(clip.id for clip in again if digests([clip.id]).tobytes() in repeated)
        raise UserError(f"clip {name!r} is listed twice; in the list of clips; name each clip once")
    plan.failures = _standing_failures(cache, streams, census.standing_ids)
    return plan


@dataclass(frozen=True)
class _Found:
    """What the cache says about a block of n clips."""

    keys: NDArray[np.uint64]
    """Digests `[n, 2]`."""
    rows: dict[str, NDArray[np.int64]]
    """Stream -> place `[n]` in its table of finished clips, or -1."""
    wanted: dict[str, NDArray[np.bool_]]
    """Stream -> whether it is to be done `[n]`."""
    standing: NDArray[np.bool_]
    """Whether a failure stands `[n]`."""

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Whether there are features in all streams `[n]`."""
        there: NDArray[np.bool_] = np.all([found >= 0 for found in self.rows.values()], axis=0)
        return there


class _Lookup:
    """Looks clips up in the indices of the wanted streams."""

    def __init__(self, indices: Mapping[str, StreamIndex | None], retry_failed: bool) -> None:
        self.indices = indices
        self._retry_failed = retry_failed

    def find(self, block: list[Clip]) -> _Found:
        keys = digests([clip.id for clip in block])
        rows, wanted = {}, {}
        standing = np.zeros(len(block), np.bool_)
        for stream, index in self.indices.items():
            rows[stream] = index.done.find(keys) if index else np.full(len(block), -1, np.int64)
            missing = rows[stream] < 0
            stands = missing & False
            if index and not self._retry_failed:
                stands = missing & (index.failed.find(keys) >= 0)
            wanted[stream] = missing & ~stands
            standing |= stands
        return _Found(keys, rows, wanted, standing)


class _Census:
    """The first pass: counts clips into a plan, and notices ids that come twice."""

    def __init__(self, plan: Plan, lookup: _Lookup) -> None:
        self.standing_ids: set[str] = set()
        self._plan = plan
        self._lookup = lookup
        self._keys: list[NDArray[np.uint64]] = []
        done = max((len(index.done) for index in lookup.indices.values() if index), default=0)
        self._stride = done // CHECKED_SOURCES + 1
        self._finished = 0

    def count(self, block: list[Clip], found: _Found, todo: int) -> None:
        """Count a block of clips, so many of which are to be done."""
        self._keys.append(found.keys)
        plan = self._plan
        plan.clips += len(block)
        plan.todo += todo
        plan.standing += int(found.standing.sum())
        plan.skipped += int(found.complete.sum())
        for i in np.flatnonzero(found.standing)[: LISTED_FAILURES - len(self.standing_ids)].tolist():
            self.standing_ids.add(block[i].id)
        self._check_sources(block, found.rows)

    def repeated(self) -> set[bytes]:
        """Return the digests that came more than once."""
        if not self._keys:
            return set()
        keys = np.concatenate(self._keys)
        keys = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
        return {key.tobytes() for key in keys[1:][(keys[1:] == keys[:-1]).all(axis=1)]}

    def _check_sources(self, block: list[Clip], rows: dict[str, NDArray[np.int64]]) -> None:
        """Count clips whose file differs from those that their rows came from; a missing file is no sign of it."""
        finished = np.flatnonzero(np.logical_or.reduce([found >= 0 for found in rows.values()]))
        start = -self._finished % self._stride
        self._finished += len(finished)
        for i in finished[start :: self._stride].tolist():
            if isinstance(block[i].path, str):  # a request for each would cost more than it tells
                continue
            source = source_of(block[i])
            old = [
                tuple(index.done.sources[rows[stream][i]].tolist())
                for stream, index in self._lookup.indices.items()
                if index and rows[stream][i] >= 0
            ]
            self._plan.changed += source != (0, 0) and any(source != was for was in old)


def _tasks(clips: Iterable[Clip], lookup: _Lookup) -> Iterator[Task]:
    """The second pass: yield the clips that are to be done; the list may have changed since the first."""
    for block in _blocks(clips):
        yield from _todo(block, lookup.find(block))


def _todo(block: list[Clip], found: _Found) -> Iterator[Task]:
    """Yield the clips of a block that are to be done."""
    for i in np.flatnonzero(np.logical_or.reduce(list(found.wanted.values()))).tolist():
        streams = tuple(stream for stream, wanted in found.wanted.items() if wanted[i])
        yield Task(block[i], streams, standing=bool(found.standing[i]))


def _blocks(clips: Iterable[Clip]) -> Iterator[list[Clip]]:
    iterator = iter(clips)
    while block := list(islice(iterator, BLOCK)):
        yield block


def _read_indices(cache: Path, streams: tuple[str, ...]) -> dict[str, StreamIndex | None]:
    """Return what each stream holds; None for a stream that does not exist yet."""
    # A job that was killed in its first moments leaves nothing but temporary files.
    if not cache.is_dir() or all(entry.suffix == ".tmp" for entry in cache.iterdir()):
        return dict.fromkeys(streams)
    if not (cache / "cache.json").exists():
        raise UserError(f"the folder holds other files and no cache; --cache {cache}; name an empty or a new folder")
    store = Store(cache)
    present = set(store.streams())
    for stream in present.intersection(streams):
        discard_damaged(cache, stream)
    return {stream: store.index(stream) if stream in present else None for stream in streams}


def _standing_failures(cache: Path, streams: tuple[str, ...], clip_ids: set[str]) -> list[Failure]:
    """Return the cached failures of some clips."""
    if not clip_ids:
        return []
    store = Store(cache)
    present = set(store.streams()).intersection(streams)
    found = (failure for stream in sorted(present) for failure in store.failures(stream))
    return [failure for failure in found if failure.clip_id in clip_ids]
