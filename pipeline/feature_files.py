"""One array of numbers from a file that somebody else wrote: .npy, .npz, .mat, .pt. Nothing in it is ever run."""

import io
import math
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..cache.errors import UserError
from ..extract.reasons import DecodeError
from ..extract.source import open_clip

MAX_BYTES = 1 << 30
"""Size of the largest array that is read; a damaged or a hostile header can claim any."""

REASONS: dict[str, str] = {
    "bad-array": "The file is cut off, damaged, or not of the format that its suffix says; copy or write it again.",
    "pickled": "The file holds pickled Python objects, which could run anything when they are read, so they are not; "
    "save plain numbers (np.save of a float array, torch.save of a tensor).",
    "which-array": "The file does not hold exactly one array, or not the one that --key names; name it with --key.",
    "not-numbers": "The array holds no real numbers (texts, records, complex numbers, sparse or quantised ones); save "
    "it as floats.",
    "wrong-shape": "The array has not the axes or the width of the stream's other clips; save it like those, or import "
    "it into another cache.",
    "huge-array": "The array takes more than 1 GiB; save fewer frames a clip, or narrower ones.",
    "not-finite": "Values are NaN or infinite; mend what computed them.",
    "out-of-range": "Values are larger than float16 holds (65504), in which the cache stores them; scale all clips.",
}
"""Reason code -> what it means and what to do; of imported clips, beside those of `extract.reasons`."""

_MAT_ERRORS = "scipy is not installed; .mat files; pip install 'amfir[mat]'"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_MAT_HDF5_OFFSET = 512
_PICKLE_MAGIC = b"\x80"


class ArrayError(Exception):
    """A clip whose array cannot be imported.

    Args:
        reason: A key of `REASONS`, or of `extract.reasons.REASONS`.
        message: What is the matter with this very clip.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = " ".join(message.split())


def read_array(path: Path, key: str | None) -> NDArray[Any]:
    """Read the array of a file, in the dtype it was stored in.

    Args:
        path: A file with a suffix of `READERS`.
        key: Name of the array, where the format names arrays; None: the only one.

    Returns:
        Real numbers of any shape and byte order.

    Raises:
        ArrayError: If there is no such array, or nothing readable.
        UserError: If the format's package is not installed.
    """
    try:
        with open_clip(path) as file:
            return READERS[path.suffix.lower()](file, path, key)
    except DecodeError as error:
        raise ArrayError(error.reason, error.message) from error
    except (ArrayError, UserError):
        raise
    except OSError as error:
        raise ArrayError("unreadable" if error.errno else "bad-array", str(error)) from error
    except Exception as error:  # on a damaged file the formats' packages raise whatever comes up
        raise ArrayError("bad-array", str(error) or type(error).__name__) from error


def require_real(dtype: "np.dtype[Any]", num_bytes: int) -> None:
    """Refuse an array before it is read.

    Raises:
        ArrayError: If it holds other things than real numbers, or is too large.
    """
    if dtype.hasobject:
        raise ArrayError("pickled", "the array holds Python objects")
    if dtype.kind not in "biuf":
        raise ArrayError("not-numbers", f"the array holds {dtype}")
    if num_bytes > MAX_BYTES:
        raise ArrayError("huge-array", f"the array takes {num_bytes} bytes")


def choose(names: Sequence[str], key: str | None) -> str:
    """Return which of a file's arrays is meant.

    Raises:
        ArrayError: If that is not clear.
    """
    shown = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
    if key is None and len(names) != 1:
        raise ArrayError("which-array", f"the file holds {len(names)} arrays: {shown}" if names else "no array in it")
    if key is not None and key not in names:
        raise ArrayError("which-array", f"no array {key!r}; the file holds {shown or 'none'}")
    return names[0] if key is None else key


def read_dataset(dataset: Any, index: int | None = None) -> NDArray[Any]:
    """Read an HDF5 dataset, or its part at `index` of the first axis.

    Raises:
        ArrayError: If it holds no real numbers, is too large, or keeps them in other files.
    """
    shape = dataset.shape if index is None else dataset.shape[1:]
    if shape is None:
        raise ArrayError("wrong-shape", "the dataset is empty")
    require_real(dataset.dtype, math.prod(shape) * dataset.dtype.itemsize)
    # Where the other file is missing, HDF5 would give zeros without a word.
    if dataset.is_virtual or dataset.external:
        raise ArrayError("bad-array", "the dataset keeps its numbers in other files; copy them into this one")
    return np.asarray(dataset[()] if index is None else dataset[index])


def _read_npy(file: BinaryIO, path: Path, key: str | None) -> NDArray[Any]:
    return _parse_npy(file, path.stat().st_size)


def _parse_npy(file: Any, size: int) -> NDArray[Any]:
    """Read the .npy of `size` bytes that a file begins with."""
    magic = file.read(np.lib.format.MAGIC_LEN)
    if magic.startswith(_PICKLE_MAGIC):
        raise ArrayError("pickled", "the file is a pickle, not an array")
    version = np.lib.format.read_magic(io.BytesIO(magic))
    if version == (1, 0):
        shape, in_columns, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, in_columns, dtype = np.lib.format.read_array_header_2_0(file)
    else:  # 3.0 came for the names of records that are no Latin-1
        raise ArrayError("not-numbers", f"an array of records (format {version[0]}.{version[1]})")
    count = math.prod(shape)
    num_bytes = count * dtype.itemsize
    require_real(dtype, num_bytes)
    if file.tell() + num_bytes != size:
        raise ArrayError("bad-array", f"{size} bytes are not those of a header and an array of shape {shape}, {dtype}")
    return np.ndarray(shape, dtype, file.read(num_bytes), order="F" if in_columns else "C")


def _read_npz(file: BinaryIO, path: Path, key: str | None) -> NDArray[Any]:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        info = members[choose(list(members), key)]
        if info.file_size > MAX_BYTES:
            raise ArrayError("huge-array", f"the array takes {info.file_size} bytes")
        with archive.open(info) as member:
            return _parse_npy(member, info.file_size)


def _read_mat(file: BinaryIO, path: Path, key: str | None) -> NDArray[Any]:
    file.seek(_MAT_HDF5_OFFSET)
    is_hdf5 = file.read(len(_HDF5_MAGIC)) == _HDF5_MAGIC
    file.seek(0)
    array = _read_mat73(path, key) if is_hdf5 else _read_mat5(file, key)
    # MATLAB knows no vectors: a column is one, since a clip of frames one value wide is none.
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _read_mat5(file: BinaryIO, key: str | None) -> NDArray[Any]:
    try:
        import scipy.io
    except ImportError as error:
        raise UserError(_MAT_ERRORS) from error
    held = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(file)}
    name = choose(list(held), key)
    shape, kind = held[name]
    if kind in ("cell", "struct", "object", "opaque", "function", "char", "sparse", "unknown"):
        raise ArrayError("not-numbers", f"{name!r} is a {kind}")
    require_real(np.dtype(np.float64), 8 * math.prod(shape))
    file.seek(0)
    array = np.asarray(scipy.io.loadmat(file, variable_names=[name])[name])
    require_real(array.dtype, array.nbytes)
    return array


def _read_mat73(path: Path, key: str | None) -> NDArray[Any]:
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        name = choose([name for name in file if not name.startswith("#")], key)
        if not isinstance(file[name], h5py.Dataset):
            raise ArrayError("not-numbers", f"{name!r} is a struct, or a sparse array")
        # MATLAB writes the last axis first.
        return read_dataset(file[name]).T


def _read_pt(file: BinaryIO, path: Path, key: str | None) -> NDArray[Any]:
    import pickle

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how a file that is refused below could be loaded
            held = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ArrayError("pickled", "more than plain tensors, or no file of torch.save at all") from error
    if isinstance(held, Mapping):
        names = {str(name): value for name, value in held.items() if isinstance(value, torch.Tensor)}
        held = names[choose(list(names), key)]
    if not isinstance(held, torch.Tensor):
        raise ArrayError("which-array", f"the file holds a {type(held).__name__}, not a tensor or a dict of tensors")
    if held.layout != torch.strided or held.is_quantized or held.is_complex() or held.is_nested:
        raise ArrayError("not-numbers", f"a tensor of {held.dtype}, {held.layout}")
    wide = held.dtype.is_floating_point and held.dtype not in (torch.float16, torch.float32, torch.float64)
    require_real(np.dtype(np.float64), 8 * held.numel())  # an expanded tensor is larger than its file
    return np.asarray((held.float() if wide else held).detach().numpy())


READERS: dict[str, Callable[[BinaryIO, Path, str | None], NDArray[Any]]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".mat": _read_mat,
    ".pt": _read_pt,
    ".pth": _read_pt,
}
"""Suffix -> how a file is read, given open and by its path, with the key or None."""

KEYED = frozenset(READERS) - {".npy"}
"""Suffixes of the formats that name their arrays."""
