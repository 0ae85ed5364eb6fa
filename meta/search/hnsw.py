"""A graph of near rows that a search walks along.

Neighbours of a row are those by distance with equal weights, in which the squared norms have no part; a query's own
weights count only when the graph is searched. So the codes hold no norms until the graph is there.
"""

from typing import Any

from .codes import Codes
from .library import Floats, faiss_threads, find_faiss

LINKS = 16
"""Of a row on each level; twice as many on the lowest."""

EFFORT = 64
"""Rows looked at to place a row: efConstruction."""

ROWS_AT_ONCE = 2**13

LARGEST = 200_000
"""Rows: a graph of more takes minutes to build and, with its links, more memory than lists do."""


def build_hnsw(matrix: Floats, codes: Codes) -> Any:
    """Link the rows of the matrix [N, W]; a faiss index over the code columns."""
    faiss: Any = find_faiss()
    index = faiss.IndexHNSWSQ(codes.width, faiss.ScalarQuantizer.QT_8bit, LINKS)
    store = faiss.downcast_index(index.storage)
    faiss.copy_array_to_vector(codes.ranges.reshape(-1), store.sq.trained)
    store.is_trained = index.is_trained = True
    index.hnsw.efConstruction = EFFORT
    starts = range(0, len(matrix), ROWS_AT_ONCE)
    for begin in starts:
        points = codes.project(matrix[begin : begin + ROWS_AT_ONCE])
        points[:, codes.high.start :] = 0
        with faiss_threads(faiss):
            index.add(points)
    quantizer = codes.quantizer()
    stored = faiss.rev_swig_ptr(store.codes.data(), len(matrix) * codes.width).reshape(len(matrix), codes.width)
    for begin in starts:
        rows = matrix[begin : begin + ROWS_AT_ONCE]
        stored[begin : begin + len(rows)] = codes.encode(codes.project(rows), quantizer)
    store.metric_type = index.metric_type = faiss.METRIC_INNER_PRODUCT
    if hasattr(index.hnsw, "is_similarity"):
        # From faiss 1.15 on, a constructor or a reader derives it from the metric, but no assignment does.
        index.hnsw.is_similarity = True
    return index
