"""The two errors that end a command with one line instead of a traceback, and the lookup that raises one."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """Input that the user can mend; the command line ends with exit code 2.

    The message reads "what is wrong; where; how to mend it", on one line.
    """


class MachineError(Exception):
    """The machine failed (disk full, no memory); the command line ends with exit code 1."""


def pick(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return `registry[name]`.

    Args:
        registry: Named values.
        name: The name the user gave.
        what: What the names stand for, in the error ("backbone", "fusion").

    Raises:
        UserError: If the name is unknown; the message suggests the nearest names.
    """
    if name in registry:
        return registry[name]
    near = get_close_matches(name, registry, n=1, cutoff=0.4)
    listed = ", ".join(sorted(registry)[:20]) + (f" ... ({len(registry)} in all)" if len(registry) > 20 else "")
    known = f"known: {listed}"
    if near:
        known = f"did you mean {near[0]!r}?" + (f" {known}" if len(registry) <= 20 else "")
    raise UserError(f"unknown {what} {name!r}; {known}")
