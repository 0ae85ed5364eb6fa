import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from amfir.cache.errors import UserError
from amfir.meta.search import backends
from amfir.meta.search.approximate import Approximate
from amfir.meta.search.backends import build_backend, choose_backend, load_backend, save_backend
from amfir.meta.search.codes import fit_codes
from amfir.meta.search.layout import Layout
from amfir.meta.search.library import Found, find_faiss
from amfir.meta.search.tuning import Recall, Trial, start_trial

Floats = NDArray[np.float32]

EXACT = ("torch", "flat")

CLUSTERED = Layout((32, 32))
"""Of `clustered_case`."""


def with_norms(parts: list[NDArray[Any]]) -> Floats:
    norms = [np.square(part).sum(1, keepdims=True) for part in parts]
    return np.ascontiguousarray(np.concatenate([*parts, *norms], 1).astype(np.float32))


def lifted(parts: list[NDArray[Any]], weights: NDArray[Any]) -> Floats:
    scaled = [2 * weights[:, m : m + 1] * part for m, part in enumerate(parts)]
    return np.ascontiguousarray(np.concatenate([*scaled, -weights], 1).astype(np.float32))


def random_case(num: int, widths: tuple[int, ...], queries: int, seed: int = 0) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    matrix = with_norms([generator.standard_normal((num, width)) for width in widths])
    points = [generator.standard_normal((queries, width)) for width in widths]
    return matrix, lifted(points, generator.dirichlet(np.ones(len(widths)), queries))


def clustered_case(num: int = 12_000, clusters: int = 120) -> tuple[Floats, Floats, Floats]:
    """The matrix, held-out queries and others: each modality alone, and mixed."""
    generator = np.random.default_rng(1)
    owners = generator.integers(clusters, size=num)
    parts = []
    for _ in range(2):
        means, rotation = generator.standard_normal((clusters, 12)), generator.standard_normal((12, 32))
        parts.append((means[owners] + 0.3 * generator.standard_normal((num, 12))) @ np.linalg.qr(rotation.T)[0].T)
    queries = []
    for count in (400, 300):
        rows = generator.integers(num, size=count)
        points = [part[rows] + 0.02 * generator.standard_normal((count, 32)) for part in parts]
        weights = [np.tile([1.0, 0.0], (count, 1)), np.tile([0.0, 1.0], (count, 1)), generator.dirichlet([1, 1], count)]
        queries.append(np.concatenate([lifted(points, each) for each in weights]))
    return with_norms(parts), queries[0], queries[1]


def true_scores(queries: Floats, matrix: Floats, k: int) -> tuple[NDArray[Any], NDArray[Any]]:
    products = queries.astype(np.float64) @ matrix.astype(np.float64).T
    order = np.argsort(-products, 1, kind="stable")[:, :k]
    return np.take_along_axis(products, order, 1), order


@pytest.fixture(scope="module")
def clustered() -> tuple[Floats, Floats, Floats]:
    return clustered_case()


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take an approximate search whatever its speed: no test depends on a clock."""
    monkeypatch.setattr("amfir.meta.search.tuning.FASTER", 0)
    monkeypatch.setattr(backends, "CROSSOVER", 1000)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(
    ("num", "widths", "k"), [(1, (4, 4), 3), (7, (3,), 7), (300, (5, 9, 2), 10), (9000, (16, 16), 40)]
)
def test_exact_backends_find_what_float64_finds(name: str, num: int, widths: tuple[int, ...], k: int) -> None:
    matrix, queries = random_case(num, widths, 70)
    scores, ids = build_backend(name, matrix, Layout(widths)).search(queries, k)
    expected, order = true_scores(queries, matrix, k)
    assert (scores.dtype.name, ids.dtype.name, scores.shape) == ("float32", "int64", (70, min(k, num)))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4)
    gaps = np.diff(expected, axis=1, prepend=np.inf, append=-np.inf)
    clear = (np.abs(gaps) > 1e-3)[:, :-1] & (np.abs(gaps) > 1e-3)[:, 1:]
    np.testing.assert_array_equal(ids[clear], order[clear])


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_numbers_of_queries_change_no_answer(name: str, threads: int) -> None:
    matrix, queries = random_case(5000, (8, 8), 2100)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = build_backend(name, matrix, Layout((8, 8))).search(queries, 3)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    expected, order = true_scores(queries, matrix, 3)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-4)
    assert (found[1] == order).mean() > 0.999
    alone = build_backend(name, matrix, Layout((8, 8))).search(queries[:1], 3)
    np.testing.assert_array_equal(alone[1], found[1][:1])
    assert build_backend(name, matrix, Layout((8, 8))).search(queries[:0], 3)[1].shape == (0, 3)


@pytest.mark.parametrize("name", EXACT)
def test_equal_prototypes_are_all_returned(name: str) -> None:
    matrix, queries = random_case(40, (6, 6), 5)
    found = build_backend(name, np.repeat(matrix, 3, 0), Layout((6, 6))).search(queries, 6)[1]
    _, order = true_scores(queries, matrix, 2)
    assert [sorted(each) for each in (found[:, :3] // 3).tolist()] == [[best] * 3 for best in order[:, 0].tolist()]
    assert all(len(set(each)) == 6 for each in found.tolist())


def test_codes_keep_distances_and_leave_out_what_does_not_vary(clustered: tuple[Floats, Floats, Floats]) -> None:
    matrix, _, queries = clustered
    codes = fit_codes(matrix[:4000], CLUSTERED)
    assert [columns.stop - columns.start for columns in codes.coordinates] == [12, 12]
    assert codes.width == 32
    quantizer = codes.quantizer()
    decoded = quantizer.decode(codes.encode(codes.project(matrix[:2000]), quantizer))
    rough = codes.project(queries).astype(np.float64) @ decoded.T.astype(np.float64)
    exact = queries.astype(np.float64) @ matrix[:2000].T.astype(np.float64)
    assert np.abs(rough - exact).max() < 0.05 * exact.std()
    # Two bytes hold the squared norm of the rounded coordinates to a fraction of what one alone would.
    for position, columns in enumerate(codes.coordinates):
        high = codes.high.start + position
        held = decoded[:, high] + decoded[:, codes.low.start + position]
        wrong = np.abs(held - np.square(decoded[:, columns].astype(np.float64)).sum(1)).max()
        assert wrong < codes.ranges[1, high] / 255 / 100


class Nothing:
    """An exact search that must not be needed."""

    def search(self, queries: Floats, k: int) -> Found:
        raise AssertionError(f"{len(queries)} queries were searched exactly")


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["ivf", "hnsw"])
@pytest.mark.parametrize("held", [True, False])
def test_approximate_searches_find_nearly_all(name: str, held: bool, clustered: tuple[Floats, Floats, Floats]) -> None:
    matrix, held_out, queries = clustered
    if name == "hnsw":
        matrix = matrix[:5000]
    backend = build_backend(name, matrix, CLUSTERED, held_out if held else None)
    assert (backend.name, backend.exact, backend.note) == (name, False, "")
    assert isinstance(backend, Approximate)
    backend.fallback = Nothing()
    scores, ids = backend.search(queries, 10)
    _, order = true_scores(queries, matrix, 10)
    first = (ids[:, 0] == order[:, 0]).reshape(3, -1).mean(1)
    assert first.mean() >= 0.99
    assert first.min() >= 0.98
    assert (scores[:, 0] >= scores[:, 1]).all()
    products = np.einsum("qw,qkw->qk", queries.astype(np.float64), matrix[ids].astype(np.float64))
    np.testing.assert_allclose(scores, products, rtol=1e-5, atol=1e-4)
    assert all(len(set(each)) == 10 for each in ids.tolist())


@pytest.mark.usefixtures("eager")
def test_queries_with_too_few_candidates_are_searched_exactly(clustered: tuple[Floats, Floats, Floats]) -> None:
    matrix, held_out, queries = clustered
    backend = build_backend("ivf", matrix, CLUSTERED, held_out)
    scores, ids = backend.search(queries[:5], 11_000)
    expected, _ = true_scores(queries[:5], matrix, 11_000)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)
    assert ids.min() >= 0
    assert backend.search(queries[:5], 30_000)[1].shape == (5, 12_000)
    assert isinstance(backend, Approximate)
    candidates = backend.candidates(queries[:5], 11_000)
    assert candidates.min() >= 0
    for found, order in zip(candidates, true_scores(queries[:5], matrix, 11_000)[1], strict=True):
        assert len(np.unique(found)) == len(found)
        assert set(order.tolist()) <= set(found.tolist())


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["ivf", "hnsw"])
def test_saved_and_loaded_is_the_same(name: str, clustered: tuple[Floats, Floats, Floats], tmp_path: Path) -> None:
    matrix, held_out, queries = clustered
    matrix = matrix[:5000]
    path = tmp_path / "backend.faiss"
    backend = build_backend(name, matrix, CLUSTERED, held_out)
    save_backend(backend, path)
    loaded = load_backend(name, path, matrix)
    assert (loaded.name, loaded.exact) == (name, False)
    (ours, our_ids), (theirs, their_ids) = loaded.search(queries, 5), backend.search(queries, 5)
    # Sums of products may differ in their last digit with where in memory the rows are gathered.
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(our_ids, their_ids)
    with pytest.raises(UserError, match="is damaged or foreign"):
        load_backend(name, path, matrix[:-1])
    with pytest.raises(UserError, match="is damaged or foreign"):
        load_backend("hnsw" if name == "ivf" else "ivf", path, matrix)
    whole = path.read_bytes()
    for end in (0, 10, 5000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"is damaged or foreign \(.+\); build it again"):
            load_backend(name, path, matrix)
    with pytest.raises(UserError, match="is damaged or foreign"):
        load_backend(name, tmp_path / "none.faiss", matrix)


def test_what_forms_no_clusters_is_searched_exactly(eager: None) -> None:
    matrix, queries = random_case(6000, (48, 48), 900)
    backend = build_backend("ivf", matrix, Layout((48, 48)), queries)
    assert (backend.name, backend.exact) == ("flat", True)
    assert backend.note == "flat instead of ivf: no lists of near prototypes were found"
    assert (backend.search(queries[:99], 1)[1] == true_scores(queries[:99], matrix, 1)[1]).all()


def test_few_prototypes_and_slow_approximations_are_searched_exactly(
    monkeypatch: pytest.MonkeyPatch, clustered: tuple[Floats, Floats, Floats]
) -> None:
    matrix, held_out, _ = clustered
    few = build_backend("ivf", matrix[:50], CLUSTERED, held_out)
    assert (few.name, few.note) == ("torch", "torch instead of ivf: 50 prototypes are searched faster by comparing all")
    monkeypatch.setattr("amfir.meta.search.tuning.FASTER", 1e9)
    monkeypatch.setattr(backends, "LARGEST", 5000)
    slow = build_backend("ivf", matrix[:6000], CLUSTERED, held_out)
    assert "with recall@1 of 0.99 it has" in slow.note
    assert "minutes and much memory" in build_backend("hnsw", matrix[:6000], CLUSTERED, held_out).note


def test_recall_must_reach_its_target_with_confidence() -> None:
    # Wilson's interval by hand: (p + z^2/2n - z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.645.
    assert Recall(1.0, 1.0, 300).bound == pytest.approx(300 / (300 + 1.645**2))
    assert Recall(0.995, 0.99, 1000).bound == pytest.approx(0.989764, abs=1e-6)
    assert Recall(1.0, 1.0, 300).suffices
    assert not Recall(1.0, 1.0, 200).suffices
    assert not Recall(0.995, 0.99, 1000).suffices
    assert not Recall(1.0, 0.98, 100_000).suffices


def test_without_queries_prototypes_are_searched_among_the_others() -> None:
    matrix, _ = random_case(400, (8, 8), 1)
    trial: Trial = start_trial(build_backend("torch", matrix, Layout((8, 8))), matrix, Layout((8, 8)), None, 0)
    assert (len(trial.queries), set(trial.kinds.tolist())) == (1000, {0, 1, 2})
    products = trial.queries.astype(np.float64) @ matrix.T.astype(np.float64)
    products[np.arange(1000), trial.own] = -np.inf
    np.testing.assert_array_equal(trial.ids[:, 0], products.argmax(1))
    assert trial.recall(build_backend("torch", matrix, Layout((8, 8))).search).first == 1.0


def test_faiss_is_chosen_from_the_crossover_on() -> None:
    assert choose_backend(backends.CROSSOVER - 1) == "torch"
    assert choose_backend(backends.CROSSOVER) == "flat"
    with pytest.raises(UserError, match="did you mean 'flat'"):
        build_backend("flt", np.zeros((1, 2), np.float32), Layout((1,)))
    with pytest.raises(UserError, match="unknown search backend 'x'"):
        load_backend("x", Path(), np.zeros((1, 2), np.float32))


SEARCH = """
import json, sys
{first}
import numpy as np
import torch
from amfir.meta.search.approximate import Approximate
from amfir.meta.search.backends import build_backend, choose_backend, load_backend
from amfir.meta.search.layout import Layout
torch.set_num_threads(2)
matrix = np.random.default_rng(0).standard_normal((5000, 18)).astype(np.float32)
names = ["ivf", "flat", "torch", choose_backend(10**6)]
found = [build_backend(name, matrix, Layout((17,))) for name in {names}]
before = torch.get_num_threads()
ids = [np.asarray(each.search(matrix[:200], 3)[1]).tolist() for each in found for _ in range(20)]
assert (torch.from_numpy(matrix) @ torch.from_numpy(matrix).T).shape == (5000, 5000)
print(json.dumps([[each.name for each in found], [each.note for each in found], all(i == ids[0] for i in ids)]))
"""


def run(first: str, names: str) -> tuple[Any, str]:
    done = subprocess.run(
        [sys.executable, "-c", SEARCH.format(first=first, names=names)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_without_faiss_torch_searches_and_says_so_once() -> None:
    (names, notes, equal), errors = run("sys.modules['faiss'] = None", "names")
    line = "faiss is not importable: torch searches; for large searches, pip install 'amfir[faiss]'"
    assert names == ["torch"] * 4
    assert notes == [line, line, "", ""]
    assert equal
    assert errors.splitlines() == [line]


@pytest.mark.parametrize("first", ["import faiss, torch", "import torch, faiss"])
def test_faiss_and_torch_live_in_one_process(first: str) -> None:
    (names, _, equal), errors = run(first, "names[1:]")
    assert (names, equal, errors) == (["flat", "torch", "flat"], True, "")


def test_faiss_keeps_its_own_number_of_threads() -> None:
    faiss = find_faiss()
    assert faiss is not None
    before = faiss.omp_get_max_threads()
    matrix, queries = random_case(100, (4, 4), 100)
    build_backend("flat", matrix, Layout((4, 4))).search(queries, 2)
    assert faiss.omp_get_max_threads() == before
