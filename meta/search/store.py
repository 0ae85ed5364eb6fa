"""An approximate index in one faiss file: how queries are lifted, the codes, and the tuned setting."""

from pathlib import Path
from typing import Any

import numpy as np

from ...cache.errors import UserError
from .library import Floats, find_faiss

KINDS = {"ivf": "IndexIVFScalarQuantizer", "hnsw": "IndexHNSWSQ"}
"""The faiss class of each approximate backend."""


def write_approximate(index: Any, lift: Floats, path: Path) -> None:
    """Write a faiss index, with the linear map [C, W] of its queries."""
    faiss: Any = find_faiss()
    linear = faiss.LinearTransform(lift.shape[1], lift.shape[0], False)
    faiss.copy_array_to_vector(lift.reshape(-1), linear.A)
    linear.is_trained = True
    faiss.write_index(faiss.IndexPreTransform(linear, index), str(path))


def read_approximate(name: str, path: Path, shape: tuple[int, ...]) -> tuple[Any, Floats]:
    """Read what `write_approximate` wrote, inverted lists memory-mapped.

    Args:
        name: A key of `KINDS`.
        path: The file.
        shape: [N, W] of the matrix that it has to be the index of.

    Returns:
        The faiss index, and the map [C, W].

    Raises:
        UserError: If it cannot be read or is not of that kind or matrix.
    """
    faiss: Any = find_faiss()
    try:
        whole = faiss.read_index(str(path), faiss.IO_FLAG_MMAP if name == "ivf" else 0)
        index = faiss.downcast_index(whole.index)
        linear = faiss.downcast_VectorTransform(whole.chain.at(0))
        lift: Floats = faiss.vector_to_array(linear.A).reshape(linear.d_out, linear.d_in)
        fits = type(index).__name__ == KINDS[name] and (index.ntotal, linear.d_in) == shape and linear.d_out == index.d
        if not fits or index.metric_type != faiss.METRIC_INNER_PRODUCT or (name == "ivf" and not _knows(index)):
            raise ValueError(f"not an {name} index of {shape[0]} x {shape[1]} numbers")
    except (RuntimeError, ValueError, AttributeError, MemoryError) as error:
        reason = str(error).splitlines()[-1][-120:] if str(error) else type(error).__name__
        raise UserError(f"the search index {path} is damaged or foreign ({reason}); build it again") from error
    # The index belongs to the whole, which would free it.
    whole.this.disown()
    return index, lift


def _knows(index: Any) -> bool:
    """Whether the lists hold each row once."""
    faiss: Any = find_faiss()
    lists, seen = index.invlists, np.zeros(index.ntotal, bool)
    if lists.compute_ntotal() != index.ntotal:
        return False
    if hasattr(faiss.downcast_InvertedLists(lists), "prefetch_nthread"):
        # It would read ahead on 32 threads of its own.
        faiss.downcast_InvertedLists(lists).prefetch_nthread = 0
    for number in range(index.nlist):
        size = lists.list_size(number)
        if size:
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            if ids.min() < 0 or ids.max() >= len(seen):
                return False
            seen[ids] = True
    return bool(seen.all())
