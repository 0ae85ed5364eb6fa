"""Inverted lists: near rows share a list, and a query reads only the lists whose rows are nearest on average.

A list stands for its rows by their mean [mean t_1 .. mean t_M, mean |t_1|^2 .. mean |t_M|^2], whose inner product with
a query is exactly minus the mean distance of its members: one set of lists serves every weighting of the modalities.
"""

from typing import Any, TypeVar

import numpy as np
import torch

from .codes import Codes
from .library import Floats, Found, Ids, divided, faiss_threads, find_faiss
from .tuning import Trial

Array = TypeVar("Array", Floats, Ids)

LISTS = 24
"""Lists for each square root of N: to find the nearest among many small lists costs less than to read large ones."""

SMALLEST = 16
"""Rows of a list on average, at least."""

FOR_A_LIST = 6
"""Rows that the clustering sees for each list."""

STEPS = 12
"""In which the first centroids are chosen."""

ROUNDS = 2
"""Of k-means after that: more of them move few rows to another list."""

ROWS_AT_ONCE, QUERIES_AT_ONCE = 2**13, 128

MOST = 16
"""Where more than this part of the lists had to be read, exact search would be about as fast."""


def build_ivf(matrix: Floats, order: Ids, codes: Codes, trial: Trial, seed: int) -> Any | None:
    """Divide the rows into lists.

    Args:
        matrix: [N, W].
        order: All row numbers, shuffled: lists are found by the first ones.
        codes: How the lists hold the rows.
        trial: Held-out queries.
        seed: Of k-means.

    Returns:
        A faiss index over the code columns; None where too many lists would have to be read.
    """
    lists = max(1, min(round(LISTS * len(matrix) ** 0.5), len(matrix) // SMALLEST))
    sample = np.sort(order[: FOR_A_LIST * lists])
    points = np.concatenate([_coordinates(codes, matrix[part]) for part in _parts(sample)])
    centroids = _spread_out(points, lists, np.random.default_rng(seed))
    if _lists_to_read(codes, centroids, matrix, trial) > max(1, lists // MOST):
        return None
    for _ in range(ROUNDS):
        centroids = _means(points, _nearest(points, centroids)[1], centroids)
    del points
    owners = np.concatenate([_nearest(_coordinates(codes, part), centroids)[1] for part in _parts(matrix)])
    sizes = np.bincount(owners)
    if sizes.max() > len(matrix) / MOST:
        return None
    return _fill(matrix, codes, np.argsort(owners, kind="stable"), sizes[sizes > 0])


def _parts(rows: Array) -> list[Array]:
    return [rows[begin : begin + ROWS_AT_ONCE] for begin in range(0, len(rows), ROWS_AT_ONCE)]


def _coordinates(codes: Codes, rows: Floats) -> Floats:
    return np.ascontiguousarray(codes.project(rows)[:, : codes.high.start])


def _spread_out(points: Floats, lists: int, generator: np.random.Generator) -> Floats:
    """Choose points [n, c] that lie far from each other, [lists, c].

    A few at a time, in proportion to a power of their distance from those chosen before, as k-means|| (Bahmani et al.,
    2012) does, but the fourth: by the second, 1 cluster in 30 shared a list with another, and k-means leaves it so.
    """
    chosen = generator.choice(len(points), min(lists, -(-lists // STEPS)), replace=False)
    centroids = points[chosen]
    distances = _nearest(points, centroids)[0]
    while len(centroids) < lists:
        # The smallest of exponential variables with these rates: a draw without replacement.
        times = generator.exponential(size=len(points)) / np.maximum(distances.astype(np.float64) ** 2, 1e-300)
        more = points[np.argsort(times)[: min(lists - len(centroids), -(-lists // STEPS))]]
        centroids = np.concatenate([centroids, more])
        distances = np.minimum(distances, _nearest(points, more)[0])
    return centroids


def _means(points: Floats, owners: Ids, centroids: Floats) -> Floats:
    """The mean of each list's points; an empty list keeps its centroid."""
    sums = torch.zeros(centroids.shape).index_add_(0, torch.from_numpy(owners), torch.from_numpy(points)).numpy()
    sizes = np.bincount(owners, minlength=len(centroids))[:, None]
    means: Floats = np.where(sizes > 0, sums / np.maximum(sizes, 1), centroids).astype(np.float32)
    return means


def _nearest(points: Floats, centroids: Floats) -> tuple[Floats, Ids]:
    """Squared distance to the nearest centroid, and its number, of each point: [n] each."""
    faiss: Any = find_faiss()

    def search(part: Floats) -> Found:
        with faiss_threads(faiss):
            found: Found = faiss.knn(part, centroids, 1)
        return found

    distances, owners = divided(search, points)
    return distances[:, 0], owners[:, 0]


def _lists_to_read(codes: Codes, centroids: Floats, matrix: Floats, trial: Trial) -> int:
    """How many lists a query has to read, 98 times in 100, until the one with its best row is among them."""
    lists = _nearest(_coordinates(codes, matrix[trial.ids[:, 0]]), centroids)[1]
    means = np.zeros((len(centroids), codes.width), np.float32)
    means[:, : codes.high.start] = centroids
    for position, columns in enumerate(codes.coordinates):
        means[:, codes.high.start + position] = np.square(centroids[:, columns]).sum(1)
    queries, ranks = torch.from_numpy(codes.project(trial.queries)), np.empty(len(lists))
    scores = torch.empty(QUERIES_AT_ONCE, len(means))
    for begin in range(0, len(lists), QUERIES_AT_ONCE):
        part = slice(begin, begin + QUERIES_AT_ONCE)
        block = scores[: len(lists[part])]
        torch.mm(queries[part], torch.from_numpy(means).T, out=block)
        own = block.gather(1, torch.from_numpy(lists[part])[:, None])
        ranks[part] = (block > own).sum(1).numpy()
    return int(np.quantile(ranks, 0.98)) + 1


def _fill(matrix: Floats, codes: Codes, order: Ids, sizes: Ids) -> Any:
    """Lists of `sizes` rows each, of the rows in `order`; each is written once, and so takes no more than its size."""
    faiss: Any = find_faiss()
    means = faiss.IndexFlatIP(codes.width)
    index = faiss.IndexIVFScalarQuantizer(
        means, codes.width, len(sizes), faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    faiss.copy_array_to_vector(codes.ranges.reshape(-1), index.sq.trained)
    quantizer = codes.quantizer()
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        begin = int(ends[first] - sizes[first])
        last = max(first + 1, int(np.searchsorted(ends, begin + ROWS_AT_ONCE, "right")))
        ids = order[begin : ends[last - 1]]
        projected = codes.project(matrix[ids])
        coded = codes.encode(projected, quantizer)
        projected[:, codes.low] = 0
        starts = ends[first:last] - sizes[first:last] - begin
        means.add(np.add.reduceat(projected, starts) / sizes[first:last, None].astype(np.float32))
        for number, start in enumerate(starts.tolist(), first):
            stop = start + int(sizes[number])
            index.invlists.add_entries(
                number, stop - start, faiss.swig_ptr(ids[start:stop]), faiss.swig_ptr(coded[start:stop])
            )
        first = last
    index.ntotal, index.is_trained = len(matrix), True
    return index
