"""Where imported features lie: a folder of files, or one HDF5 file. Clips are read one by one, by their name there."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..cache.errors import UserError
from .feature_files import KEYED, READERS, ArrayError, read_array, read_dataset
from .feature_process import ReadingProcess
from .source_folder import first_few, list_folder

_HDF5_SUFFIXES = frozenset({".h5", ".hdf5", ".hdf", ".he5"})
_ID_BYTES = 1 << 28


class FeatureSource(Protocol):
    """Clips that somebody else computed the features of."""

    @property
    def names(self) -> Sequence[str]:
        """What the clips are called in the source (file names with their suffix, dataset paths), as they lie in it."""
        ...

    def clip_id(self, name: str) -> str:
        """Return the id of the clip of that name."""
        ...

    def read(self, name: str) -> NDArray[Any]:
        """Return a clip's array, as it was stored.

        Raises:
            ArrayError: If it cannot be read.
        """
        ...

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and mtime_ns of the file that holds the clip; zeros if it cannot be looked at."""
        ...


def open_features(place: Path, key: str | None = None, ids: str | None = None) -> FeatureSource:
    """Open a folder or an HDF5 file.

    Args:
        place: The folder or the file.
        key: Name of the array: in each file of a folder, in each group of an HDF5 file, or, with `ids`, the one array
            of all clips.
        ids: HDF5 dataset with the ids of the clips of one big array.

    Raises:
        UserError: If there is no such place, or it holds nothing that could be features.
    """
    if place.is_dir():
        return FolderFeatures(place, key, ids)
    if not place.exists():
        raise UserError(f"no such features: {str(place)!r}; FEATURES; name a folder of arrays or an HDF5 file")
    if place.suffix.lower() not in _HDF5_SUFFIXES:
        raise UserError(
            f"{str(place)!r} is neither a folder nor an HDF5 file ({', '.join(sorted(_HDF5_SUFFIXES))}); FEATURES; "
            "name the folder that the files lie in"
        )
    return TableFeatures(place, key, ids) if ids is not None else GroupFeatures(place, key)


class FolderFeatures:
    """A file a clip; the id is the path below the folder without its suffix, so that all modalities' files agree.

    Hidden files and other suffixes are passed over. Links are followed; a folder inside itself is entered once.

    Args:
        root: The folder.
        key: Name of the array in each file.
        ids: Refused: it is for HDF5.

    Raises:
        UserError: If there are no files of a suffix that is read, or an option changes nothing.
    """

    def __init__(self, root: Path, key: str | None, ids: str | None = None) -> None:
        self._root, self._key, self._process = root, key, ReadingProcess()
        self.names = sorted(_walk(os.path.join(os.path.abspath(root), ""), "", frozenset()))
        suffixes = {os.path.splitext(name)[1].lower() for name in self.names}
        if not self.names:
            raise UserError(f"no {', '.join(READERS)} files; in {root}; name the folder that the features lie in")
        if ids is not None:
            raise UserError(f"--ids {ids} says nothing about a folder; {root}; leave it out")
        if key is not None and not suffixes & KEYED:
            raise UserError(f"--key {key} says nothing about .npy files; in {root}; leave it out")

    def clip_id(self, name: str) -> str:
        """Return the path without its suffix."""
        return os.path.splitext(name)[0]

    def read(self, name: str) -> NDArray[Any]:
        """Return the array of a file."""
        # scipy crashes on some damaged files, and HDF5 may.
        read = self._process.read if name.lower().endswith(".mat") else read_array
        return read(self._root / name, self._key)

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and mtime_ns of the clip's file."""
        return _stamp(self._root / name)


class GroupFeatures:
    """An HDF5 file with a dataset a clip; the id is its path, or, with a key, the path of the group that holds it.

    Args:
        path: The file.
        key: Name of the dataset in each clip's group; None: every dataset is a clip.

    Raises:
        UserError: If the file is damaged, or has no dataset (of that name).
    """

    def __init__(self, path: Path, key: str | None) -> None:
        self._path, self._file = path, _open_hdf5(path)
        self._suffix = "" if key is None else f"/{key}"
        datasets = _datasets(self._file, path)
        self.names = sorted(name for name in datasets if f"/{name}".endswith(self._suffix) and name != key)
        if not self.names:
            held = f"; it holds {first_few(datasets)}" if datasets else ""
            raise UserError(f"no dataset{f' called {key!r} in a group' if key else ''}; in {path}{held}; check --key")

    def clip_id(self, name: str) -> str:
        """Return the path of the dataset, or of its group."""
        return name.removesuffix(self._suffix)

    def read(self, name: str) -> NDArray[Any]:
        """Return a dataset."""
        return _read(lambda: read_dataset(self._file[name]))

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and mtime_ns of the HDF5 file."""
        return _stamp(self._path)


class TableFeatures:
    """An HDF5 file with one dataset of all clips, [N, T, D] or [N, D], and one of their N ids.

    Args:
        path: The file.
        key: Name of the dataset; None: the only one beside the ids.
        ids: Name of the dataset of ids: texts, or whole numbers.

    Raises:
        UserError: If the file is damaged, or these datasets are missing, or the ids are no N different ones.
    """

    def __init__(self, path: Path, key: str | None, ids: str) -> None:
        self._path, file = path, _open_hdf5(path)
        datasets = _datasets(file, path)
        others = [name for name in datasets if name != ids]
        key = key or (others[0] if len(others) == 1 else None)
        for name, option in ((ids, "--ids"), (key, "--key")):
            if name not in datasets:
                said = f"no dataset {name!r}" if name else f"{len(others)} datasets beside the ids"
                raise UserError(f"{said}; in {path} ({first_few(datasets)}); name one with {option}")
        assert key is not None
        self._data = file[key]
        found = _read_ids(file[ids], path, ids)
        rows = self._data.shape[0] if self._data.shape else 0
        if len(found) != rows:
            raise UserError(f"{len(found)} ids for {rows} clips; {ids!r} and {key!r} in {path}; give each clip one id")
        if rows and (most := Counter(found).most_common(1)[0])[1] > 1:
            raise UserError(f"id {most[0]!r} occurs {most[1]} times; {ids!r} in {path}; give each clip its own")
        self._rows = {name: row for row, name in enumerate(found)}
        self.names = found

    def clip_id(self, name: str) -> str:
        """Return the id that the file gives."""
        return name

    def read(self, name: str) -> NDArray[Any]:
        """Return the clip's part of the dataset."""
        return _read(lambda: read_dataset(self._data, self._rows[name]))

    def stamp(self, name: str) -> tuple[int, int]:
        """Return size and mtime_ns of the HDF5 file."""
        return _stamp(self._path)


def _walk(folder: str, prefix: str, ancestors: frozenset[tuple[int, int] | str]) -> list[str]:
    """Return the files of known suffixes below a folder, as paths that begin with `prefix`."""
    listing = list_folder(folder)
    if listing.identity in ancestors:
        return []
    found = []
    for name, is_folder in listing.entries:
        if is_folder:
            found += _walk(f"{folder}{name}/", f"{prefix}{name}/", ancestors | {listing.identity})
        elif os.path.splitext(name)[1].lower() in READERS:
            found.append(prefix + name)
    return found


def _open_hdf5(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except PermissionError as error:
        raise UserError(f"cannot read the file ({error.strerror}); {path}; mend its permissions") from error
    except Exception as error:  # h5py reports damage in several ways
        what = " ".join(str(error).split())
        raise UserError(f"no readable HDF5 file ({what}); {path}; copy or write it again") from error


def _datasets(file: Any, path: Path) -> list[str]:
    """Return the paths of all datasets; links to other files are not followed."""
    import h5py

    found: list[str] = []
    try:
        file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    except Exception as error:  # as above
        what = " ".join(str(error).split())
        raise UserError(f"damaged HDF5 file ({what}); {path}; copy or write it again") from error
    if odd := [name for name in found if not isinstance(name, str)]:
        raise UserError(f"the name {odd[0]!r} is not UTF-8; in {path}; rename the dataset or its group")
    return found


def _read_ids(dataset: Any, path: Path, name: str) -> list[str]:
    import h5py

    kind = dataset.dtype.kind
    is_text = h5py.check_string_dtype(dataset.dtype) is not None
    if dataset.ndim != 1 or not (is_text or kind in "iu") or dataset.size * dataset.dtype.itemsize > _ID_BYTES:
        raise UserError(
            f"{name!r} is {dataset.dtype} {dataset.shape}; in {path}; --ids wants a list of texts or numbers"
        )
    try:
        return [str(value) for value in (dataset.asstr()[()] if is_text else dataset[()])]
    except Exception as error:  # damage, or texts that are no UTF-8
        raise UserError(f"the ids cannot be read ({error}); {name!r} in {path}; write them as UTF-8") from error


def _read(read: Any) -> NDArray[np.generic]:
    try:
        return np.asarray(read())
    except ArrayError:
        raise
    except Exception as error:  # h5py reports damage in several ways
        raise ArrayError("bad-array", str(error) or type(error).__name__) from error


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return (0, 0)
    return status.st_size, status.st_mtime_ns
