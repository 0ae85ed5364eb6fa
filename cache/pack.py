"""Merging a stream's segments into one file whose features open memory-mapped."""

import secrets
from functools import partial
from pathlib import Path

from .files import file_errors, new_name
from .folder import packed_folder
from .merge import merge_view
from .spec import StreamSpec
from .store import Store
from .view import load_view, settled

_PAGE_BYTES = 4096


def pack(root: Path) -> None:
    """Merge the files of each stream into one, each clip once, sorted by clip id.

    Jobs may read and write meanwhile: a reader keeps what it has open, and segments written meanwhile stay. The merged
    files are removed when the new one is whole; killed in between, both are there, and reading takes each clip once.

    Args:
        root: The cache directory.

    Raises:
        UserError: If the cache is damaged or cannot be written; nothing is changed then.
        MachineError: If the disk is full or fails; nothing is changed then.
    """
    store = Store(root)
    for name in store.streams():
        settled(store.root, partial(_pack_stream, store.root, store.spec(name)))


def _pack_stream(root: Path, spec: StreamSpec) -> None:
    view = load_view(root, spec)
    folder = packed_folder(root, spec.modality)
    if not view.paths or (len(view.paths) == 1 and view.paths[0].parent == folder):
        return
    # A new name every time: two packs at once write two files, and neither loses rows that only it has merged.
    path = folder / f"{new_name(secrets.token_hex(4), 0)}.h5"
    with file_errors(folder):
        folder.mkdir(exist_ok=True)
        merge_view(view, spec, path, align=_PAGE_BYTES)
