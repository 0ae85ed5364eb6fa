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
    known = f"did you mean {near[0]!r}?" if len(registry) > 20 and near else f"known: {', '.join(sorted(registry))}"
    if near and len(registry) <= 20:
        known = f"did you mean {near[0]!r}? {known}"
    raise UserError(f"unknown {what} {name!r}; {known}")
