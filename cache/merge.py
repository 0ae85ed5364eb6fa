"""Merging files of a stream: the new one is whole before the old ones go, and what is in both counts once."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from .files import file_errors, remove_file
from .segment import write_file
from .sidecar import DamageError, VanishedError
from .spec import StreamSpec
from .view import View, view_files

_MERGED_ROWS = 1024
_MERGED_BYTES = 256 << 20


def merge_segments(segments: Sequence[tuple[Path, int]], spec: StreamSpec, new_path: Callable[[], Path]) -> None:
    """Merge segments of one writer into as few as do not get too large.

    Segments that another process packed meanwhile, or that are damaged, stay as they are, and so do those that would
    share their file.

    Args:
        segments: Path and number of rows and failures of each, the oldest first.
        spec: The stream's spec.
        new_path: Gives a name never used before.

    Raises:
        UserError: If the folder cannot be written.
        MachineError: If the disk is full or fails.
    """
    for group in _groups(segments, spec):
        path = new_path()
        try:
            with file_errors(path.parent):
                merge_view(view_files(group, spec), spec, path)
        except (DamageError, VanishedError):
            continue


def merge_view(view: View, spec: StreamSpec, path: Path, align: int = 1) -> None:
    """Merge the files of a view into one, each clip once, sorted by clip id; what cannot be merged changes nothing.

    Args:
        view: The files.
        spec: The stream's spec.
        path: The new file.
        align: Bytes whose multiples its features start at.

    Raises:
        DamageError: If a row does not match its checksum.
        VanishedError: If another process removed a file meanwhile.
        UserError: If the folder cannot be written.
        MachineError: If the disk is full or fails.
    """
    write_file(path, spec, view.merged(spec), view.features(), align)
    for merged in view.paths:
        remove_file(merged)


def _groups(segments: Sequence[tuple[Path, int]], spec: StreamSpec) -> list[list[Path]]:
    most = min(_MERGED_ROWS, _MERGED_BYTES // (2 * math.prod(spec.row_shape)))
    groups: list[list[Path]] = [[]]
    total = 0
    for path, count in segments:
        if total + count > most:
            groups.append([])
            total = 0
        groups[-1].append(path)
        total += count
    return [group for group in groups if len(group) > 1]
