"""The cache directory: what lies where, and how streams come to be in it.

- ROOT/cache.json marks a cache.
- ROOT/MODALITY/spec.json is a stream's spec and its fingerprint.
- ROOT/MODALITY/segments/NAME.h5 is what the jobs wrote, in the order of time.
- ROOT/MODALITY/packed/NAME.h5 is what `pack` merged; there are two only until the next pack.
- ROOT/MODALITY/index.bin says which clips the files hold; made from them again at need.
"""

import errno
import json
import os
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path

from .errors import UserError
from .files import DEBRIS_SECONDS, file_errors, list_files, sweep
from .sidecar import write_json
from .spec import MODALITY_NAME, StreamSpec, differences

FORMAT = 1


def open_cache(root: Path) -> None:
    """Check that `root` is a cache of this format.

    Raises:
        UserError: If it is not.
    """
    try:
        data = json.loads((root / "cache.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no amfir cache (cache.json is missing); in {root}; make one with `amfir extract`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cache.json is unreadable ({error}); in {root}; restore it or name another cache") from None
    if data != {"format": FORMAT}:
        raise UserError(
            f"a cache of format {data!r:.80}, this version reads {{'format': {FORMAT}}}; in {root}; "
            "use the version of amfir that made it, or name another cache"
        )


def create_stream(root: Path, spec: StreamSpec) -> None:
    """Make the cache and the stream where they do not exist yet; any number of jobs may do so at once.

    Raises:
        UserError: If the stream exists with another spec, or the folder cannot be written.
        MachineError: If the disk is full or fails.
    """
    with file_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "cache.json").exists():
            write_json(root / "cache.json", {"format": FORMAT})
        open_cache(root)
        _sweep_root(root, spec.modality)
        if not (root / spec.modality / "spec.json").exists():
            _create_stream_folder(root, spec)
        require_spec(root, read_spec(root, spec.modality), spec)
        sweep(root / spec.modality)
        for folder in (segments_folder(root, spec.modality), packed_folder(root, spec.modality)):
            folder.mkdir(exist_ok=True)
            sweep(folder)


def stream_names(root: Path) -> list[str]:
    """Return the names of the cache's streams, sorted."""
    return sorted(
        folder.name
        for folder in root.iterdir()
        if MODALITY_NAME.fullmatch(folder.name) and ((folder / "spec.json").exists() or (folder / "segments").is_dir())
    )


def read_spec(root: Path, name: str) -> StreamSpec:
    """Return a stream's spec.

    Raises:
        UserError: If the stream or its spec is missing, or the spec was edited.
    """
    path = root / name / "spec.json"
    if name not in stream_names(root):
        known = ", ".join(stream_names(root)) or "none"
        raise UserError(f"no stream {name!r}; in {root} (streams: {known}); run `amfir extract` with --streams {name}")
    mend = "restore it, or extract again to another --cache directory"
    try:
        data = json.loads(path.read_bytes())
        spec, fingerprint = StreamSpec.from_json(data["spec"]), data["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError, UserError):
        raise UserError(f"the spec of stream {name!r} is missing or unreadable; in {path}; {mend}") from None
    if fingerprint != spec.fingerprint or spec.modality != name:
        raise UserError(f"the spec of stream {name!r} was edited, it does not match its fingerprint; in {path}; {mend}")
    return spec


def require_spec(root: Path, cached: StreamSpec, asked: StreamSpec) -> None:
    """Refuse a spec other than the cache's.

    Raises:
        UserError: Naming each difference with both sides.
    """
    if cached.fingerprint != asked.fingerprint:
        both = ", ".join(differences(cached, asked))
        mend = "use another --cache directory, or the cache's settings"
        raise UserError(f"stream {cached.modality!r} was made with another spec: {both}; in {root}; {mend}")


def segments_folder(root: Path, name: str) -> Path:
    """Return the folder of a stream's segments."""
    return root / name / "segments"


def packed_folder(root: Path, name: str) -> Path:
    """Return the folder of a stream's packed files."""
    return root / name / "packed"


def index_path(root: Path, name: str) -> Path:
    """Return the file of a stream's merged index."""
    return root / name / "index.bin"


def stream_files(root: Path, name: str) -> list[Path]:
    """Return a stream's files, the one to believe first: packed from the newest, then segments from the oldest."""
    while True:
        # A writer that merges its segments adds the new file before it removes the old ones. A list that is made
        # meanwhile may lack both, but then a second list has the new file. One that is gone by then stays in the list,
        # and whoever reads it begins again.
        segments = _both(list_files(segments_folder(root, name)), list_files(segments_folder(root, name)))
        # A pack adds its file before it removes the segments: look at the segments first, and at the packed files until
        # they stand still, and no row can slip through between the two lists.
        packed = list_files(packed_folder(root, name))
        if packed == list_files(packed_folder(root, name)):
            return packed[::-1] + segments


def _both(first: list[Path], second: list[Path]) -> list[Path]:
    return first if first == second else sorted({*first, *second})


def _create_stream_folder(root: Path, spec: StreamSpec) -> None:
    # A folder can be renamed onto an empty folder only: of several jobs one wins, and none ever sees half a stream.
    temporary = root / f".{spec.modality}.{secrets.token_hex(4)}.tmp"
    try:
        (temporary / "segments").mkdir(parents=True)
        write_json(temporary / "spec.json", {"spec": spec.to_json(), "fingerprint": spec.fingerprint})
        os.rename(temporary, root / spec.modality)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep_root(root: Path, modality: str) -> None:
    oldest = time.time() - DEBRIS_SECONDS
    for debris in [*root.glob("cache.json.????????.tmp"), *root.glob(f".{modality}.????????.tmp")]:
        with suppress(FileNotFoundError):
            if debris.stat().st_mtime < oldest:
                shutil.rmtree(debris) if debris.is_dir() else debris.unlink()
