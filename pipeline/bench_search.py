"""The speed of searches among many prototypes, as ratios within one run: torch, faiss exact, faiss approximate."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache.errors import UserError, pick
from ..meta.search.backends import APPROXIMATE, BACKENDS, build_backend, choose_backend
from ..meta.search.index import PrototypeIndex
from ..meta.search.library import find_faiss
from .fresh import in_fresh_process, peak_mib
from .progress import Bar

KINDS = ("clustered", "random")
"""Vectors to search: in clusters, which lists can follow, and without any structure, where nothing but all will do."""

MODALITIES = ("rgb", "flow")

REPEATS = 3
"""Of each search; the fastest counts."""

BLOCK = 8192
"""Prototypes made at once."""


@dataclass(frozen=True)
class Vectors:
    """Prototypes of two modalities, made block by block, so that only the index holds them all."""

    kind: str
    """A member of `KINDS`."""
    num: int
    dim: int = 128
    clusters: int = 20_000
    """Both modalities of a prototype are of one cluster."""
    effective: int = 24
    """Dimensions in which clusters and their members vary; a rotation spreads them over all `dim`."""

    @property
    def size(self) -> int:
        """Bytes of the vectors themselves, as float32."""
        return 4 * len(MODALITIES) * self.dim * self.num

    def blocks(self) -> Iterator[dict[str, Tensor]]:
        """The prototypes: modality -> [n, dim]."""
        maps = self._maps()
        for number in range(-(-self.num // BLOCK)):
            yield self._block(number, maps)

    def queries(self, number: int, seed: int) -> dict[str, Tensor]:
        """Points near prototypes, or as random as these: modality -> [number, dim]."""
        generator = torch.Generator().manual_seed(2 * seed + 1)
        if self.kind == "random":
            return {name: torch.randn(number, self.dim, generator=generator) for name in MODALITIES}
        maps = self._maps()
        block = self._block(seed % -(-self.num // BLOCK), maps)
        rows = torch.randint(len(block[MODALITIES[0]]), (number,), generator=generator)
        noise = {name: 0.15 * torch.randn(number, self.effective, generator=generator) for name in MODALITIES}
        return {name: block[name][rows] + noise[name] @ maps[name][1] for name in MODALITIES}

    def _maps(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Cluster means [clusters, effective] and the rotation [effective, dim] of each modality."""
        maps = {}
        for seed, name in enumerate(MODALITIES):
            generator = torch.Generator().manual_seed(seed)
            means = torch.randn(self.clusters, self.effective, generator=generator)
            maps[name] = means, torch.linalg.qr(torch.randn(self.dim, self.effective, generator=generator)).Q.T
        return maps

    def _block(self, number: int, maps: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(2 * number)
        count = min(BLOCK, self.num - number * BLOCK)
        if self.kind == "random":
            return {name: torch.randn(count, self.dim, generator=generator) for name in MODALITIES}
        clusters = torch.randint(self.clusters, (count,), generator=generator)
        spread = {name: 0.3 * torch.randn(count, self.effective, generator=generator) for name in MODALITIES}
        return {name: (maps[name][0][clusters] + spread[name]) @ maps[name][1] for name in MODALITIES}


@dataclass(frozen=True)
class Questions:
    """What is asked of each index."""

    number: int = 1000
    held_out: int = 500
    """Queries by which approximate backends tune themselves."""
    k: int = 10


def bench_search(sizes: Sequence[int], backends: Sequence[str], questions: Questions) -> dict[str, Any]:
    """Search prototypes with each backend: each modality alone, and both with each query's own weights.

    Args:
        sizes: Numbers of prototypes.
        backends: Keys of `BACKENDS`; approximate ones are held against the exact one that `auto` takes.
        questions: What is asked.

    Returns:
        queries, k, threads, and vectors: kind -> size -> {"auto": name, "backends": name -> figures}; figures are those
        of `measure_exact` and `measure_approximate`, with peak_mib (of a process that did little else) and memory: what
        the process took beyond what it had before the vectors, as a multiple of their size.

    Raises:
        UserError: If a backend is unknown, or there is nothing to measure.
    """
    if not sizes or not backends:
        raise UserError("nothing to measure; --sizes, --backends; give some of each")
    if min(sizes) < 1:
        raise UserError(f"{min(sizes)} prototypes cannot be searched; --sizes; give numbers of at least 1")
    for name in backends:
        pick(BACKENDS, name, "search backend")
    exact = tuple(name for name in BACKENDS if name in backends and name not in APPROXIMATE)
    cases = [(kind, size) for kind in KINDS for size in sizes]
    found: dict[str, Any] = {kind: {} for kind in KINDS}
    with Bar("size") as bar:
        for ready, (kind, size) in enumerate(cases, 1):
            vectors = Vectors(kind, size)
            figures = _alone(measure_exact, vectors, questions, exact) if exact else {}
            for name in (name for name in APPROXIMATE if name in backends):
                figures |= _alone(measure_approximate, vectors, questions, name)
            found[kind][str(size)] = {"auto": choose_backend(size), "backends": figures}
            bar.update(ready, len(cases), note=f"{kind} {size}")
    return {"queries": questions.number, "k": questions.k, "threads": torch.get_num_threads(), "vectors": found}


def _alone(
    measure: Callable[..., dict[str, dict[str, Any]]], vectors: Vectors, questions: Questions, what: Any
) -> dict[str, dict[str, Any]]:
    figures, peak = in_fresh_process(measure, vectors, questions, what)
    return {name: {**each, "peak_mib": peak} for name, each in figures.items()}


def measure_exact(vectors: Vectors, questions: Questions, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Time exact backends, in turn, on the same prototypes.

    Returns:
        name -> seconds (of a search with each modality's weights and with mixed ones), index_seconds (of
        `PrototypeIndex.search`, which finds AMI's weights), build_seconds, memory, note.
    """
    before = _before()
    first, seconds = _build(vectors, questions, names[0])
    indices = {name: replace(first, backend=build_backend(name, first.matrix, first.space.layout)) for name in names}
    times = _race(indices, vectors, questions)
    memory = (peak_mib() - before) * 2**20 / vectors.size
    return {
        name: {**times[name], "build_seconds": seconds, "memory": memory, "note": index.backend.note}
        for name, index in indices.items()
    }


def measure_approximate(vectors: Vectors, questions: Questions, name: str) -> dict[str, dict[str, Any]]:
    """Time an approximate backend, and the exact one that it stands for, in turn.

    Returns:
        name -> what `measure_exact` tells, and used (the backend: an exact one where the approximate was not good
        enough), exact_seconds, speedup, index_speedup, recall_1, recall_10, and least_recall_1 (the worst of each
        modality alone and of both).
    """
    before = _before()
    index, seconds = _build(vectors, questions, name)
    memory = (peak_mib() - before) * 2**20 / vectors.size
    exact = choose_backend(len(index.matrix))
    reference = replace(index, backend=build_backend(exact, index.matrix, index.space.layout))
    times = _race({name: index, "exact": reference}, vectors, questions)
    lifted = _lift(index, vectors, questions)
    pairs = [
        (index.backend.search(each, questions.k)[1], reference.backend.search(each, questions.k)[1]) for each in lifted
    ]
    first = [float((ours[:, 0] == true[:, 0]).mean()) for ours, true in pairs]
    found = [(ours[:, :, None] == true[:, None]).any(1).mean() for ours, true in pairs]
    figures = {
        **times[name],
        "build_seconds": seconds,
        "memory": memory,
        "note": index.backend.note,
        "used": index.backend.name,
        "exact_seconds": times["exact"]["seconds"],
        "speedup": times["exact"]["seconds"] / times[name]["seconds"],
        "index_speedup": times["exact"]["index_seconds"] / times[name]["index_seconds"],
        "recall_1": float(np.mean(first)),
        "least_recall_1": min(first),
        "recall_10": float(np.mean(found)),
    }
    return {name: figures}


def _before() -> float:
    """Memory in MiB with all libraries there."""
    find_faiss()
    return peak_mib()


def _build(vectors: Vectors, questions: Questions, name: str) -> tuple[PrototypeIndex, float]:
    """The index, and the seconds that it took, those of making vectors not counted."""
    making = 0.0

    def blocks() -> Iterator[dict[str, Tensor]]:
        nonlocal making
        each = vectors.blocks()
        while True:
            started = time.perf_counter()
            block = next(each, None)
            making += time.perf_counter() - started
            if block is None:
                return
            yield block

    held_out = vectors.queries(questions.held_out, seed=1) if name in APPROXIMATE else None
    started = time.perf_counter()
    index = PrototypeIndex.from_blocks(blocks(), vectors.num, backend=name, queries=held_out)
    return index, time.perf_counter() - started - making


def _lift(index: PrototypeIndex, vectors: Vectors, questions: Questions) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """The queries as the matrix takes them: each modality alone, and both with weights of the query."""
    points = index.space.place(vectors.queries(questions.number, seed=2))
    mixed = np.random.default_rng(0).dirichlet([1.0] * len(MODALITIES), questions.number).T
    weights = [np.repeat(np.eye(len(MODALITIES))[m][:, None], questions.number, 1) for m in range(len(MODALITIES))]
    return [index.space.lift(points, each) for each in [*weights, mixed]]


def _race(indices: dict[str, PrototypeIndex], vectors: Vectors, questions: Questions) -> dict[str, dict[str, float]]:
    """Seconds and index_seconds of each, taken in turn, so that a busy moment does not meet one of them alone."""
    lifted = _lift(next(iter(indices.values())), vectors, questions)
    queries = vectors.queries(questions.number, seed=2)
    times: dict[str, dict[str, float]] = {name: {"seconds": np.inf, "index_seconds": np.inf} for name in indices}
    for _ in range(REPEATS):
        for name, index in indices.items():
            for what, seconds in zip(
                times[name], (_search(index, lifted, questions.k), _ask(index, queries, questions.k)), strict=True
            ):
                times[name][what] = min(times[name][what], seconds)
    return times


def _search(index: PrototypeIndex, lifted: Sequence[Any], k: int) -> float:
    started = time.perf_counter()
    for queries in lifted:
        index.backend.search(queries, k)
    return time.perf_counter() - started


def _ask(index: PrototypeIndex, queries: dict[str, Tensor], k: int) -> float:
    started = time.perf_counter()
    index.search(queries, k)
    return time.perf_counter() - started
