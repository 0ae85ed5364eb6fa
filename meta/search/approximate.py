"""What approximate searches share: candidates from faiss, put into their exact order by the matrix."""

from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from .library import Floats, Found, Ids, divided, faiss_threads, find_faiss, on_gpu

SPARE = 8
"""Candidates beside the k wanted: the codes order them roughly."""

AT_ONCE = 32
"""Queries whose candidates are gathered at once."""


class Exact(Protocol):
    """An exact search of the same matrix."""

    def search(self, queries: Floats, k: int) -> Found:
        """The k rows with the largest inner products, best first."""


class Approximate:
    """Candidates of a faiss index over codes, then their inner products with the matrix itself."""

    exact: ClassVar = False
    note: ClassVar = ""

    def __init__(self, name: str, matrix: Floats, index: Any, lift: Floats, fallback: Exact) -> None:
        self.name, self.index, self.lift = name, index, lift
        self.fallback = fallback
        # faiss has no graphs on a GPU.
        self._searcher = on_gpu(index) if name == "ivf" else index
        self._lift = torch.from_numpy(lift).T
        self._matrix = matrix

    def set_effort(self, effort: int) -> None:
        """How much is looked at: lists to read, or rows to keep while walking."""
        for index in (self.index, self._searcher):
            if self.name == "ivf":
                index.nprobe = effort
            else:
                index.hnsw.efSearch = effort

    def search(self, queries: Floats, k: int) -> Found:
        """Search; a query for which the index knows fewer than k candidates is searched exactly.

        Args:
            queries: [NQ, W].
            k: Rows wanted; all where there are fewer.

        Returns:
            Inner products and row numbers, [NQ, min(k, N)], best first.
        """
        k = min(k, len(self._matrix))
        scores, ids = divided(lambda part: self._search(part, k), queries)
        missing = np.flatnonzero(ids[:, -1] < 0)
        if len(missing):
            scores[missing], ids[missing] = self.fallback.search(queries[missing], k)
        return scores, ids

    def candidates(self, queries: Floats, k: int) -> Ids:
        """Row numbers [NQ, at least min(k, N)] as the codes order them, for those who measure them anyway.

        A query for which the index knows too few is searched exactly.
        """
        _, ids = divided(lambda part: self._look_up(part, k), queries)
        missing = np.flatnonzero(ids[:, -1] < 0)
        if len(missing):
            ids[missing] = self.fallback.search(queries[missing], ids.shape[1])[1]
        return ids

    def _search(self, queries: Floats, k: int) -> Found:
        return self._order(queries, self._look_up(queries, k)[1], k)

    def _look_up(self, queries: Floats, k: int) -> Found:
        lifted = (torch.from_numpy(queries) @ self._lift).numpy()
        with faiss_threads(find_faiss()):
            found: Found = self._searcher.search(lifted, min(k + SPARE + k // 8, len(self._matrix)))
        return found

    def _order(self, queries: Floats, candidates: Ids, k: int) -> Found:
        """The best k of candidates [NQ, C] by the matrix; -1 is no candidate."""
        scores = np.empty((len(queries), k), np.float32)
        ids = np.empty((len(queries), k), np.int64)
        rows = np.empty((AT_ONCE * candidates.shape[1], queries.shape[1]), np.float32)
        for begin in range(0, len(queries), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            chosen = candidates[part]
            taken = rows[: chosen.size]
            # Into memory that is already there; -1 reads row 0, and is left out below.
            np.take(self._matrix, chosen.reshape(-1), 0, out=taken, mode="clip")
            points = torch.from_numpy(taken).view(*chosen.shape, -1)
            products = torch.bmm(points, torch.from_numpy(queries[part])[:, :, None])[:, :, 0]
            best = products.masked_fill_(torch.from_numpy(chosen < 0), -torch.inf).topk(k)
            scores[part], ids[part] = best.values.numpy(), np.take_along_axis(chosen, best.indices.numpy(), 1)
        return scores, ids
