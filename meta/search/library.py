"""faiss, where it is installed: imported at one place, on as many threads as torch has."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..threads import map_threads, one_thread

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Found = tuple[Floats, Ids]

MISSING = "faiss is not importable: torch searches; for large searches, pip install 'amfir[faiss]'"

FEWEST_FOR_BLAS = 16
"""Queries from which faiss multiplies matrices. By its own number (400 or so with AVX-512) 250 take 5 times longer."""

FEWEST_FOR_A_THREAD = 32
"""Queries that are worth a thread of their own; fewer are searched together, the prototypes divided."""


@cache
def find_faiss() -> Any | None:
    """The module faiss, or None; where it is missing this is said once, in one line."""
    try:
        # Its absence may be any ImportError: of the module, or of a library that its wheel does not find. Built for
        # another numpy, it fails with an AttributeError.
        faiss = importlib.import_module("faiss")
    except (ImportError, AttributeError):
        print(MISSING, file=sys.stderr)
        return None
    faiss.cvar.distance_compute_blas_threshold = FEWEST_FOR_BLAS
    return faiss


def divided(search: Callable[[Floats], Found], queries: Floats) -> Found:
    """Search with a part of the queries on each of torch's threads.

    Two OpenMP libraries meet in this process, torch's and faiss's. Neither divides its work here: threads that wait for
    each other cost twice the time on a busy machine.

    Args:
        search: Of queries [n, W]; may use all of torch's threads where it is called once.
        queries: [NQ, W].
    """
    parts = min(torch.get_num_threads(), len(queries) // FEWEST_FOR_A_THREAD)
    if parts < 2:
        return search(queries)
    with one_thread():
        found = map_threads(search, np.array_split(queries, parts))
    return np.concatenate([scores for scores, _ in found]), np.concatenate([ids for _, ids in found])


@contextmanager
def faiss_threads(faiss: Any) -> Iterator[None]:
    """Give faiss as many threads as torch has here; its number belongs to the calling thread."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(torch.get_num_threads())
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


@cache
def gpu_resources() -> Any | None:
    """What faiss needs to use a GPU, or None without one or with the faiss that cannot."""
    faiss = find_faiss()
    if faiss is None or not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() == 0:
        return None
    return faiss.StandardGpuResources()


def on_gpu(index: Any) -> Any:
    """The index on the first GPU; itself where there is none."""
    resources, faiss = gpu_resources(), find_faiss()
    return index if resources is None or faiss is None else faiss.index_cpu_to_gpu(resources, 0, index)
