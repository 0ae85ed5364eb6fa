"""Chunks of clips, and what becomes of those that an actor was lost with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..cache import Failure, Store, StreamSpec, StreamWriter, digests
from .worker import Task

MAX_DEATHS = 2
"""Actors that a clip may cost while they work on nothing else."""


@dataclass(frozen=True)
class Chunk:
    """Clips that an actor gets in one call."""

    tasks: list[Task]
    """The clips."""
    suspect: bool = False
    """Whether an actor was lost with it; the next one gets it alone, so that no other chunk comes under suspicion."""
    deaths: int = 0
    """Actors that were lost while they worked on this one clip alone."""

    @property
    def deadly(self) -> bool:
        """Whether its only clip is given up."""
        return self.deaths >= MAX_DEATHS


def lost(chunk: Chunk) -> list[Chunk]:
    """Return a lost actor's chunk in halves, so that a clip that kills actors is alone in the end."""
    if len(chunk.tasks) == 1:
        return [Chunk(chunk.tasks, suspect=True, deaths=chunk.deaths + chunk.suspect)]
    middle = len(chunk.tasks) // 2
    return [Chunk(tasks, suspect=True) for tasks in (chunk.tasks[:middle], chunk.tasks[middle:])]


def unwritten(chunk: Chunk, cache: Path) -> Chunk:
    """Return what is left of a chunk whose actor may have written some of its rows."""
    store = Store(cache)
    keys = digests([task.clip.id for task in chunk.tasks])
    streams = {stream for task in chunk.tasks for stream in task.streams}
    places = {stream: store.index(stream).done.find(keys) for stream in streams}
    left = []
    for i, task in enumerate(chunk.tasks):
        missing = tuple(stream for stream in task.streams if places[stream][i] < 0)
        if missing:
            left.append(replace(task, streams=missing))
    return replace(chunk, tasks=left)


def give_up(task: Task, cache: Path, specs: Mapping[str, StreamSpec]) -> Failure:
    """Write into the cache that a clip kills actors, and return the failure."""
    clip = task.clip
    message = f"{MAX_DEATHS} processes died while they worked on this clip alone, and others before"
    # The size and the time of the clip stay unknown: to look at it might kill this process, too.
    failure = Failure(clip.id, clip.label, "decoder-died", message, 0, 0)
    for stream in task.streams:
        with StreamWriter(cache, specs[stream]) as writer:
            writer.add_failure(failure)
    return failure
