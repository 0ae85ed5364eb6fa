"""Maximum inner product over the rows of one matrix, exact or approximate; which is fastest was measured, not believed.

The matrix is shared: no backend copies it. `amfir bench search` compares them.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ...cache.errors import pick
from .approximate import Approximate
from .codes import fit_codes
from .hnsw import LARGEST, LINKS, build_hnsw
from .ivf import MOST, build_ivf
from .layout import Layout
from .library import MISSING, Floats, Found, divided, faiss_threads, find_faiss, gpu_resources
from .store import read_approximate, write_approximate
from .tuning import start_trial, tune

CROSSOVER = 3000
"""Prototypes from which faiss is faster than torch on 2 cores: `amfir bench search`, docs/benchmarks.md."""

FOR_CODES = 2**13
"""Rows by which the codes are chosen."""

SETTINGS = tuple(sorted({2**n for n in range(12)} | {3 * 2**n for n in range(10)}))
"""Lists to read or rows to keep (efSearch): what is tuned."""

GPU_MOST = 2048
"""Most neighbours that faiss finds on a GPU."""

ROWS_AT_ONCE, QUERIES_AT_ONCE = 4096, 1024
"""Of torch's products: 16 MiB of them stay in the cache until the best are taken."""


class Backend(Protocol):
    """A search of one matrix [N, W]."""

    @property
    def name(self) -> str:
        """A key of `BACKENDS`."""

    @property
    def exact(self) -> bool:
        """Whether the answers are those of comparing everything, up to rounding."""

    @property
    def note(self) -> str:
        """Why it is not the backend that was asked for; or empty."""

    def search(self, queries: Floats, k: int) -> Found:
        """Find the rows with the largest inner products.

        Args:
            queries: [NQ, W].
            k: How many; all N if there are fewer.

        Returns:
            Inner products (float32) and row numbers (int64), [NQ, min(k, N)], best first.
        """


class TorchBackend:
    """Products of blocks of queries and rows, and the best of each block."""

    name, exact = "torch", True

    def __init__(self, matrix: Floats, note: str = "") -> None:
        self.note = note
        self._rows = torch.from_numpy(matrix)

    def search(self, queries: Floats, k: int) -> Found:
        """Find the rows with the largest inner products; see `Backend`."""
        return divided(lambda part: self._search(torch.from_numpy(part), min(k, len(self._rows))), queries)

    def _search(self, queries: Tensor, k: int) -> Found:
        found = [self._best(part, k) for part in torch.split(queries, QUERIES_AT_ONCE)]
        return torch.cat([scores for scores, _ in found]).numpy(), torch.cat([ids for _, ids in found]).numpy()

    def _best(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, ids = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        products = torch.empty(len(queries) * min(ROWS_AT_ONCE, len(self._rows)))
        for number, rows in enumerate(torch.split(self._rows, ROWS_AT_ONCE)):
            block = products[: len(queries) * len(rows)].view(len(queries), len(rows))
            best = torch.mm(queries, rows.T, out=block).topk(min(k, len(rows)))
            scores, ids = torch.cat([scores, best.values], 1), torch.cat([ids, best.indices + number * ROWS_AT_ONCE], 1)
            if scores.shape[1] > k:
                scores, order = scores.topk(k)
                ids = ids.gather(1, order)
        return scores, ids


class FlatBackend:
    """Faiss's exact search, of the matrix where it lies."""

    name, exact = "flat", True

    def __init__(self, matrix: Floats, note: str = "") -> None:
        self.note = note
        self._matrix = matrix

    def search(self, queries: Floats, k: int) -> Found:
        """Find the rows with the largest inner products; see `Backend`."""
        faiss: Any = find_faiss()
        k, resources = min(k, len(self._matrix)), gpu_resources()
        if resources is not None and k <= GPU_MOST:
            found: Found = faiss.knn_gpu(resources, queries, self._matrix, k, metric=faiss.METRIC_INNER_PRODUCT)
            return found
        return divided(lambda part: self._search(faiss, part, k), queries)

    def _search(self, faiss: Any, queries: Floats, k: int) -> Found:
        with faiss_threads(faiss):
            found: Found = faiss.knn(queries, self._matrix, k, metric=faiss.METRIC_INNER_PRODUCT)
        return found


BACKENDS: dict[str, str] = {
    "torch": "exact, by torch; the fastest for few prototypes",
    "flat": "exact, by faiss",
    "ivf": "approximate, by faiss: inverted lists; for very many prototypes that form clusters",
    "hnsw": "approximate, by faiss: a graph; fast for few queries at once",
}
"""What each backend is."""

APPROXIMATE = ("ivf", "hnsw")
"""Those that may miss a row; they are written to files."""


def choose_backend(num: int) -> str:
    """Name the fastest exact backend for that many prototypes; torch, in one line, where faiss is not importable."""
    return "flat" if num >= CROSSOVER and find_faiss() is not None else "torch"


def build_backend(name: str, matrix: Floats, layout: Layout, held_out: Floats | None = None, seed: int = 0) -> Backend:
    """Make a search of the matrix; where an approximate one is not worth it, the exact one, with a note.

    Args:
        name: A key of `BACKENDS`.
        matrix: [t_1 .. t_M, |t_1|^2 .. |t_M|^2], float32 [N, W], C-contiguous; kept, not copied.
        layout: Of its columns.
        held_out: Queries [n, W] to tune an approximate backend by, of each modality alone and of mixtures.
        seed: Of an approximate backend's clustering.

    Raises:
        UserError: If the name is unknown.
    """
    pick(BACKENDS, name, "search backend")
    if name != "torch" and find_faiss() is None:
        return TorchBackend(matrix, MISSING)
    if name in APPROXIMATE:
        return _build_approximate(name, matrix, layout, held_out, seed)
    return _exact(name, matrix)


def _exact(name: str, matrix: Floats, note: str = "") -> Backend:
    return TorchBackend(matrix, note) if name == "torch" else FlatBackend(matrix, note)


def _build_approximate(name: str, matrix: Floats, layout: Layout, held_out: Floats | None, seed: int) -> Backend:
    exact = choose_backend(len(matrix))
    backend, reason = None, _hopeless(name, len(matrix))
    if not reason:
        backend, reason = _try_approximate(name, matrix, layout, held_out, seed, _exact(exact, matrix))
    return backend or _exact(exact, matrix, f"{exact} instead of {name}: {reason}")


def _hopeless(name: str, num: int) -> str:
    if num < CROSSOVER:
        return f"{num} prototypes are searched faster by comparing all"
    if name == "hnsw" and num > LARGEST:
        return f"a graph of more than {LARGEST} prototypes takes minutes and much memory; ivf does it"
    return ""


def _try_approximate(
    name: str, matrix: Floats, layout: Layout, held_out: Floats | None, seed: int, exact: Backend
) -> tuple[Approximate | None, str]:
    """An approximate backend that is good enough, or why there is none."""
    trial = start_trial(exact, matrix, layout, held_out, seed)
    order = np.random.default_rng(seed).permutation(len(matrix))
    codes = fit_codes(matrix[np.sort(order[:FOR_CODES])], layout)
    if name == "ivf":
        index = build_ivf(matrix, order, codes, trial, seed)
        settings = [setting for setting in SETTINGS if setting <= max(1, index.nlist // MOST)] if index else []
    else:
        index = build_hnsw(matrix, codes)
        settings = [setting for setting in SETTINGS if setting >= LINKS]
    if index is None:
        return None, "no lists of near prototypes were found"
    backend = Approximate(name, matrix, index, codes.lift, exact)
    reason = tune(trial, backend.search, settings, backend.set_effort)
    return (None, reason) if reason else (backend, "")


def save_backend(backend: Backend, path: Path) -> None:
    """Write an approximate backend, without the matrix, to a file; the exact ones need none."""
    if isinstance(backend, Approximate):
        write_approximate(backend.index, backend.lift, path)


def load_backend(name: str, path: Path, matrix: Floats) -> Backend:
    """Take up what `save_backend` wrote.

    Args:
        name: The backend's own name.
        path: The file; exact backends do not look at it.
        matrix: What the backend was built of.

    Raises:
        UserError: If the name is unknown, or the file is damaged or of another matrix.
    """
    pick(BACKENDS, name, "search backend")
    if name != "torch" and find_faiss() is None:
        return TorchBackend(matrix, MISSING)
    if name not in APPROXIMATE:
        return _exact(name, matrix)
    index, lift = read_approximate(name, path, matrix.shape)
    return Approximate(name, matrix, index, lift, _exact(choose_backend(len(matrix)), matrix))
