"""A progress bar on stderr with the time that is left."""

import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm


class Bar:
    """A bar on a terminal; elsewhere (a log file, a pipe) nothing but tqdm's lines, one in ten seconds.

    It appears with the first update: a command that is refused before says so in one line.

    Args:
        unit: What is counted.
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._bar: Any = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, ready: int, total: int, *, before: int = 0, note: str = "") -> None:
        """Show that `ready` of `total` are finished.

        Args:
            ready: Finished, those of an earlier run included.
            total: Of these.
            before: How many of them an earlier run finished; they say nothing about the time that is left.
            note: Follows the figures.
        """
        if self._bar is None:
            self._bar = _begin(self._unit)
        self._bar.total = total
        self._bar.initial = before
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(ready - self._bar.n)


def _begin(unit: str) -> Any:
    interval_seconds = 0.1 if sys.stderr.isatty() else 10.0
    # Without smoothing the rate is the mean since the start, which leaves out what was there before (`initial`).
    return tqdm(unit=unit, mininterval=interval_seconds, smoothing=0, file=sys.stderr, dynamic_ncols=True)
