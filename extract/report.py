"""What a job did, and how far it is."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..cache.rows import Failure
from .plan import LISTED_FAILURES, Plan


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    total: int
    """Clips of the job, as far as they are counted."""
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
    """Clips whose file is not the one that their cached features came from, of 10,000 looked at; those are kept, a new
    cache is needed."""
    seconds: float
    """Wall time."""
    failures: list[Failure] = field(default_factory=list)
    """Why clips failed, in this job or an earlier one, by clip, the first 1,000; a reason that both streams share is
    listed once."""

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
        self._failures: dict[tuple[str, str, str], Failure] = {}
        self._failed = plan.standing
        self._done = 0

    def complete(self) -> None:
        """Count a clip that has all its streams now."""
        with self._lock:
            self._done += 1

    def fail(self, failures: Sequence[Failure], *, counted: bool = False) -> None:
        """Count a clip as failed.

        Args:
            failures: Of its streams.
            counted: Whether it is counted already, since another stream of it failed in an earlier job.
        """
        with self._lock:
            self._note(failures)
            self._failed += not counted

    def progress(self) -> Progress:
        """Return the present state."""
        with self._lock:
            return Progress(self._plan.clips, self._done, self._plan.skipped, self._failed, self._seconds())

    def report(self) -> ExtractReport:
        """Return the final state."""
        return ExtractReport(
            clips=self._plan.clips,
            done=self._done,
            skipped=self._plan.skipped,
            failed=self._failed,
            changed=self._plan.changed,
            seconds=self._seconds(),
            failures=self._listed(),
        )

    def _listed(self) -> list[Failure]:
        """Return this job's failures, then as many of those that stand as there is room for, sorted."""
        self._note(self._plan.failures)
        return [self._failures[key] for key in sorted(self._failures)]

    def _note(self, failures: Sequence[Failure]) -> None:
        for failure in failures:
            if len(self._failures) < LISTED_FAILURES:
                self._failures.setdefault((failure.clip_id, failure.reason, failure.message), failure)

    def _seconds(self) -> float:
        return time.monotonic() - self._started
