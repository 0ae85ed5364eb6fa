"""What a job did, and how far it is."""

import threading
import time
from dataclasses import dataclass, field

from ..cache import Failure
from .plan import Plan


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    total: int
    """Clips of the job."""
    done: int
    """Clips that lacked features and have them all now."""
    skipped: int
    """Clips that had all features before."""
    failed: int
    """Clips that will lack features in at least one of the wanted streams."""
    seconds: float
    """Since the job began."""


@dataclass(frozen=True)
class ExtractReport:
    """What a job did."""

    clips: int
    """Clips of the job: done + skipped + failed."""
    done: int
    """Clips that lacked features and have them all now."""
    skipped: int
    """Clips that had all features before."""
    failed: int
    """Clips without features in at least one of the wanted streams."""
    changed: int
    """Clips whose file is not the one that their cached features came from; those are kept, a new cache is needed."""
    seconds: float
    """Wall time."""
    failures: list[Failure] = field(default_factory=list)
    """Why clips failed, in this job or an earlier one, by clip; a reason that both streams share is listed once."""

    @property
    def clips_per_second(self) -> float:
        """Clips done by wall time."""
        return self.done / self.seconds if self.seconds > 0 else 0.0


class Tally:
    """Counts the clips of a job; the decoders' results and the networks' threads report to it.

    Args:
        plan: The job's clips.
        started: `time.monotonic()` at the job's begin.
    """

    def __init__(self, plan: Plan, started: float) -> None:
        self._plan = plan
        self._started = started
        self._lock = threading.Lock()
        self._missing = {task.clip.id: len(task.streams) for task in plan.tasks}
        self._failures: dict[tuple[str, str, str], Failure] = {}
        self._failed: set[str] = set()
        self._done = 0
        for failure in plan.standing:
            self._note(failure)

    def complete(self, clip_id: str) -> None:
        """Count a stream of a clip as extracted."""
        with self._lock:
            self._settle(clip_id)

    def fail(self, failure: Failure) -> None:
        """Count a stream of a clip as failed."""
        with self._lock:
            self._note(failure)
            self._settle(failure.clip_id)

    def progress(self) -> Progress:
        """Return the present state."""
        with self._lock:
            return Progress(self._plan.clips, self._done, self._plan.skipped, len(self._failed), self._seconds())

    def report(self) -> ExtractReport:
        """Return the final state."""
        return ExtractReport(
            clips=self._plan.clips,
            done=self._done,
            skipped=self._plan.skipped,
            failed=len(self._failed),
            changed=self._plan.changed,
            seconds=self._seconds(),
            failures=[self._failures[key] for key in sorted(self._failures)],
        )

    def _note(self, failure: Failure) -> None:
        self._failed.add(failure.clip_id)
        self._failures.setdefault((failure.clip_id, failure.reason, failure.message), failure)

    def _settle(self, clip_id: str) -> None:
        self._missing[clip_id] -= 1
        if self._missing[clip_id] == 0 and clip_id not in self._failed:
            self._done += 1

    def _seconds(self) -> float:
        return time.monotonic() - self._started
