"""Finding damaged files, and making room for what replaces them."""

from dataclasses import dataclass
from pathlib import Path

from .errors import UserError
from .files import file_errors, remove_file
from .folder import open_cache, read_spec, stream_files, stream_names
from .segment import read_features, read_index
from .sidecar import DamageError, VanishedError, check_file, mark_damaged, unmark_damaged, verify_file
from .spec import StreamSpec
from .view import require_fingerprint


@dataclass(frozen=True)
class Damage:
    """One damaged file."""

    path: Path
    """The file."""
    what: str
    """What is wrong with it."""


def verify(root: Path) -> list[Damage]:
    """Hash every file of a cache, and only then open it and check each of its rows.

    Damaged files are marked, so that readers refuse them and the next extraction replaces them.

    Args:
        root: The cache directory.

    Returns:
        The damage, stream by stream; empty if all is well.

    Raises:
        UserError: If `root` is no cache, or cannot be read.
        MachineError: If the disk fails.
    """
    root = Path(root)
    open_cache(root)
    damages = []
    with file_errors(root, "read"):
        for name in stream_names(root):
            spec = _verify_spec(root, name)
            found = [spec] if isinstance(spec, Damage) else []
            found += [damage for path in stream_files(root, name) if (damage := _verify_file(path, spec)) is not None]
            damages += found
    return damages


def discard_damaged(root: Path, modality: str) -> list[str]:
    """Remove the files of a stream that the cheap check or the mark of `verify` calls damaged.

    Args:
        root: The cache directory, which need not exist yet.
        modality: The stream, which need not exist yet.

    Returns:
        The names of the removed files; their clips have to be made anew.

    Raises:
        UserError: If the cache cannot be written.
        MachineError: If the disk fails.
    """
    removed = []
    with file_errors(Path(root)):
        for path in stream_files(Path(root), modality):
            try:
                check_file(path)
            except DamageError:
                remove_file(path)
                removed.append(path.name)
            except VanishedError:
                continue
    return removed


def _verify_spec(root: Path, name: str) -> StreamSpec | Damage:
    try:
        return read_spec(root, name)
    except UserError as error:
        return Damage(root / name / "spec.json", str(error))


def _verify_file(path: Path, spec: StreamSpec | Damage) -> Damage | None:
    try:
        verify_file(path)
        unmark_damaged(path)
        index = read_index(path)
        if isinstance(spec, StreamSpec):
            require_fingerprint(path, index.fingerprint, spec)
        for _ in read_features(path, index):
            pass
    except DamageError as damage:
        mark_damaged(path)
        return Damage(path, damage.what)
    except VanishedError:
        pass
    return None
