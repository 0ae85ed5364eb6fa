"""What is left to do: the clips of a job against what the cache holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..cache import Failure, Store, discard_damaged
from ..cache.errors import UserError
from .clips import Clip
from .worker import Task, source_of


@dataclass(frozen=True)
class Plan:
    """A job's clips, by what has to be done with them."""

    clips: int
    """All clips."""
    tasks: list[Task]
    """Clips with streams to be extracted."""
    skipped: int
    """Clips that have all streams."""
    standing: list[Failure]
    """Failures of earlier jobs that stand; their clips may have tasks for another stream."""
    changed: int
    """Clips whose file is not the one that their features came from."""


def make_plan(clips: Iterable[Clip], cache: Path, streams: tuple[str, ...], *, retry_failed: bool) -> Plan:
    """Compare a job's clips with a cache; damaged segments are removed from it first.

    Args:
        clips: The job's clips.
        cache: The cache's directory; need not exist.
        streams: The wanted streams.
        retry_failed: Whether failures of earlier jobs are forgotten.

    Raises:
        UserError: If two clips share an id, or the directory is something else than a cache.
    """
    done, failures = _read_cache(cache, streams)
    tasks: list[Task] = []
    standing: list[Failure] = []
    skipped = changed = 0
    seen: set[str] = set()
    for clip in clips:
        if clip.id in seen:
            raise UserError(f"clip {clip.id!r} is listed twice; in the list of clips; name each clip once")
        seen.add(clip.id)
        missing = [stream for stream in streams if clip.id not in done[stream]]
        old = {} if retry_failed else {s: failures[s][clip.id] for s in missing if clip.id in failures[s]}
        standing += old.values()
        if wanted := tuple(stream for stream in missing if stream not in old):
            tasks.append(Task(clip, wanted))
        skipped += not missing
        changed += _changed(clip, [done[stream][clip.id] for stream in streams if clip.id in done[stream]])
    return Plan(len(seen), tasks, skipped, standing, changed)


def _read_cache(
    cache: Path, streams: tuple[str, ...]
) -> tuple[dict[str, dict[str, tuple[int, int]]], dict[str, dict[str, Failure]]]:
    """Return for each stream the sources of its rows, and its failures, by clip id."""
    done: dict[str, dict[str, tuple[int, int]]] = {stream: {} for stream in streams}
    failures: dict[str, dict[str, Failure]] = {stream: {} for stream in streams}
    # A job that was killed in its first moments leaves nothing but temporary files.
    if not cache.is_dir() or all(entry.suffix == ".tmp" for entry in cache.iterdir()):
        return done, failures
    store = Store(cache)
    for stream in set(streams) & set(store.streams()):
        discard_damaged(cache, stream)
        done[stream] = store.done(stream)
        failures[stream] = {failure.clip_id: failure for failure in store.failures(stream)}
    return done, failures


def _changed(clip: Clip, sources: list[tuple[int, int]]) -> bool:
    """Return whether a clip's file differs from those that its rows came from; a missing file is no sign of it."""
    if not sources:
        return False
    source = source_of(clip)
    return source != (0, 0) and any(source != old for old in sources)
