"""Nearest prototypes against loops over all of them in float64, from the formulas."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.active import adaptive_weights, observe
from amfir.meta.search import Neighbours, PrototypeIndex

NAMES = ("rgb", "flow", "depth")
Doubles = NDArray[np.float64]
Streams = dict[str, Tensor]


def draw(seed: int, num: int, widths: tuple[int, ...], scale: float = 1.0, offset: float = 0.0) -> Streams:
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(NAMES, widths, strict=False)
    return {name: torch.randn(num, width, generator=generator) * scale + offset for name, width in pairs}


def taus_of(prototypes: Streams, scale: float = 1.0) -> dict[str, float]:
    """One of each modality, such that psi is about 8 to 20."""
    return {name: (4.0 + m) / (scale**2 * values.shape[1]) for m, (name, values) in enumerate(prototypes.items())}


def loop(prototypes: Streams, queries: Streams, taus: dict[str, float] | None = None) -> Doubles:
    """tau_m |q_m - t_m|^2 in float64, [M, NQ, N]."""
    psi = []
    for name, values in prototypes.items():
        t = values.double().numpy()
        rows = [((t - q) ** 2).sum(1) for q in queries[name].double().numpy()]
        psi.append((taus[name] if taus else 1.0) * np.array(rows).reshape(len(rows), len(t)))
    return np.stack(psi)


def assert_nearest(
    found: Neighbours, psi: Doubles, weights: Doubles, k: int, ranking: float = 3e-6, size: float = 0
) -> None:
    """Values to 1e-4; ranking but for distances that are equal to `ranking`.

    Where a query all but touches a prototype, no float32 coordinates of length `size` can tell their distance better
    than to `size` * 2^-24 each.
    """
    fused = (weights[..., None] * psi).sum(0)
    k = min(k, psi.shape[2])
    ids = found.ids.numpy()
    assert ids.shape == found.distances.shape == (psi.shape[1], k)
    assert found.psi.shape == (len(psi), *ids.shape)
    for values, truth, weight in [
        (found.distances, fused, weights.sum(0)),
        *zip(found.psi, psi, np.ones_like(weights), strict=True),
    ]:
        chosen = np.take_along_axis(truth, ids, 1)
        touching = size * 2**-21 * np.sqrt(chosen * weight[:, None])
        assert (np.abs(values.numpy() - chosen) <= 1e-4 * chosen + touching).all()
    chosen = np.take_along_axis(fused, ids, 1)
    touching = size * 2**-21 * np.sqrt(chosen * weights.sum(0)[:, None])
    assert (chosen <= np.sort(fused, 1)[:, :k] * (1 + ranking) + touching).all()
    assert all(len(set(row)) == k for row in ids.tolist())
    assert (found.distances.diff(dim=1) >= 0).all()


@pytest.mark.parametrize(
    ("num", "widths", "scale", "offset"),
    [
        (2, (16,), 1, 0),
        (7, (16, 24, 32), 1, 0),
        (500, (16, 24, 32), 1, 100),
        (500, (64, 16), 1e-3, 0),
        (500, (64, 16), 1e3, 1e5),
        (100_000, (16,), 1, 0),
        (100_000, (16, 16), 1, 100),
        (2000, (2048,), 1, 0),
        (1000, (2048, 1024), 1, 100),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "flat"])
def test_equals_a_loop_over_all_prototypes(
    backend: str, num: int, widths: tuple[int, ...], scale: float, offset: float, one_thread: None
) -> None:
    prototypes, queries = draw(0, num, widths, scale, offset), draw(1, 6, widths, scale, offset)
    taus = taus_of(prototypes, scale)
    index = PrototypeIndex.build(prototypes, taus, backend=backend)
    weights = torch.rand(len(widths), 6, generator=torch.Generator().manual_seed(2)).double()
    psi = loop(prototypes, queries, taus)
    assert_nearest(index.search(queries, 10, weights), psi, weights.numpy(), 10)
    for m in range(len(widths)):
        alone = torch.zeros_like(weights)
        alone[m] = 1
        assert_nearest(index.search(queries, 3, alone), psi, alone.numpy(), 3)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_small_index_equals_a_loop(data: st.DataObject) -> None:
    modalities, num, count = (data.draw(st.integers(low, high)) for low, high in [(1, 3), (1, 120), (0, 4)])
    widths = tuple(data.draw(st.integers(1, 5)) for _ in range(modalities))
    scale, offset = data.draw(st.sampled_from([1e-3, 1, 1e3])), data.draw(st.sampled_from([0, -3, 100]))
    seed, k = data.draw(st.integers(0, 99)), data.draw(st.integers(1, 130))
    prototypes, queries = draw(seed, num, widths, scale, scale * offset), draw(seed + 1, count, widths, scale)
    values = st.sampled_from([0.0, 0.3, 1.0, 7.0])
    rows = [[data.draw(values) + (m == seed % modalities) for _ in range(count)] for m in range(modalities)]
    weights = torch.tensor(rows, dtype=torch.float64).reshape(modalities, count)
    found = PrototypeIndex.build(prototypes, backend="torch").search(queries, k, weights)
    size = scale * (10 + 2 * abs(offset))
    assert_nearest(found, loop(prototypes, queries), weights.numpy(), k, size=size)


@pytest.mark.parametrize("backend", ["torch", "flat"])
def test_clusters_so_far_apart_that_inner_products_lose_the_ranking(backend: str) -> None:
    sides = torch.tensor([-1000.0, 1000])[:, None]
    prototypes = {"rgb": draw(0, 3000, (32,))["rgb"] + sides.repeat(1500, 1)}
    queries = {"rgb": draw(1, 6, (32,))["rgb"] + sides.repeat(3, 1)}
    index = PrototypeIndex.build(prototypes, backend=backend)
    psi, weights = loop(prototypes, queries), np.ones((1, 6))
    _, believed = index.backend.search(index.space.lift(index.space.place(queries), weights), 20)
    assert (np.sort(believed, 1) != np.sort(psi[0].argsort(1)[:, :20], 1)).any()
    assert_nearest(index.search(queries, 20, torch.from_numpy(weights)), psi, weights, 20, ranking=1e-4)


@pytest.mark.parametrize("backend", ["torch", "flat"])
def test_of_equal_prototypes_the_lower_id_comes_first(backend: str) -> None:
    different = draw(0, 3, (16, 8))
    order = torch.randint(3, (4000,), generator=torch.Generator().manual_seed(1))
    index = PrototypeIndex.build({name: values[order] for name, values in different.items()}, backend=backend)
    queries = draw(2, 9, (16, 8))
    nearest = loop(different, queries).sum(0).argmin(1)
    found = index.search(queries, 200, torch.ones(2, 9))
    for row, ids in zip(nearest, found.ids, strict=True):
        assert ids.tolist() == (order == row).nonzero()[:200, 0].tolist()


def test_a_query_that_is_a_prototype_has_distance_zero() -> None:
    prototypes = draw(0, 500, (64, 32), 1, 100)
    queries = {name: values[40:50] for name, values in prototypes.items()}
    found = PrototypeIndex.build(prototypes, taus_of(prototypes)).search(queries, 2)
    assert found.ids[:, 0].tolist() == list(range(40, 50))
    assert (found.distances[:, 0] == 0).all()


def test_the_order_and_number_of_queries_change_no_bit() -> None:
    prototypes, queries = draw(0, 5000, (32, 16)), draw(1, 300, (32, 16))
    index = PrototypeIndex.build(prototypes, taus_of(prototypes))
    whole = index.search(queries, 5)
    for backend in ("torch", "flat"):
        other = PrototypeIndex.build(prototypes, taus_of(prototypes), backend=backend)
        for rows in (slice(7, 8), slice(250, 300)):
            part = other.search({name: values[rows] for name, values in queries.items()}, 5)
            assert torch.equal(part.ids, whole.ids[rows])
            assert torch.equal(part.distances, whole.distances[rows])
            assert torch.equal(part.weights, whole.weights[:, rows])


def test_pieces_of_the_queries_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = PrototypeIndex.build(draw(0, 400, (6, 4))), draw(1, 23, (6, 4))
    whole = index.search(queries, 3)
    monkeypatch.setattr("amfir.meta.search.index.PIECE", 1500)
    parts = index.search(queries, 3)
    for name in ("ids", "distances", "psi", "weights", "alone"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))
    assert parts.certainties is not None
    assert whole.certainties is not None
    assert torch.equal(parts.certainties.complete, whole.certainties.complete)
    for name in ("values", "lower", "upper"):
        torch.testing.assert_close(
            getattr(parts.certainties, name), getattr(whole.certainties, name), rtol=1e-12, atol=0
        )


def test_blocks_give_the_index_of_the_whole() -> None:
    prototypes, queries = draw(0, 1000, (16, 8), 1, 100), draw(1, 20, (16, 8), 1, 100)
    order = prototypes["rgb"][:, 0].argsort()  # no block is like the whole
    ordered = {name: values[order] for name, values in prototypes.items()}
    blocks = ({name: values[start : start + 300] for name, values in ordered.items()} for start in range(0, 1000, 300))
    found = PrototypeIndex.from_blocks(blocks, 1000).search(queries, 5)
    psi = loop(ordered, queries)
    assert_nearest(found, psi, found.weights.numpy(), 5)


@pytest.mark.parametrize(("num", "k"), [(2, 1), (30, 64), (64, 3), (200, 300), (256, 3)])
def test_weights_are_those_of_the_paper_where_the_posterior_is_known(num: int, k: int) -> None:
    prototypes, queries = draw(0, num, (16, 24, 8)), draw(1, 12, (16, 24, 8))
    taus = taus_of(prototypes)
    found = PrototypeIndex.build(prototypes, taus).search(queries, k)
    psi = loop(prototypes, queries, taus)
    observation = observe(torch.from_numpy(psi)[:, None])
    torch.testing.assert_close(found.weights, adaptive_weights(observation)[:, 0], rtol=1e-5, atol=0)
    assert found.certainties is not None
    assert found.normaliser == "exact"
    torch.testing.assert_close(found.certainties.values, observation.certainty[:, 0], rtol=1e-5, atol=0)
    assert_nearest(found, psi, found.weights.numpy(), k)


def certainty_loop(psi: Doubles) -> Doubles:
    """max_k exp(-psi_k) / sum_k exp(-psi_k), [M, NQ]."""
    shifted = np.exp(-(psi - psi.min(-1, keepdims=True)))
    certainty: Doubles = 1 / shifted.sum(-1)
    return certainty


@pytest.mark.parametrize(
    ("num", "sharpness", "offset", "normaliser"),
    [
        (50, 1, 0, "exact"),
        (257, 1, 0, "candidates"),
        (3000, 100, 0, "bounded"),
        (3000, 100, 1000, "bounded"),
        (3000, 1, 0, "candidates"),
        (3000, 1e6, 0, "bounded"),
        (3000, 1e-9, 0, "candidates"),
    ],
)
def test_bounds_hold_the_certainty_over_all_prototypes(
    num: int, sharpness: float, offset: float, normaliser: str
) -> None:
    prototypes, noise = draw(0, num, (16, 8), 1, offset), draw(1, 40, (16, 8), 0.1)
    queries = {name: values[:40] + noise[name] for name, values in prototypes.items()}
    taus = {name: sharpness * tau for name, tau in taus_of(prototypes).items()}
    found = PrototypeIndex.build(prototypes, taus).search(queries, 5)
    assert found.normaliser == normaliser
    known = found.certainties
    assert known is not None
    truth = torch.from_numpy(certainty_loop(loop(prototypes, queries, taus)))
    assert (known.lower <= truth * (1 + 1e-12)).all()
    assert (truth <= known.upper * (1 + 1e-12)).all()
    assert (1 / num <= known.lower).all()
    assert (known.upper <= 1).all()
    lower, upper = known.weight_bounds
    weights = truth / truth.sum(0)
    assert ((lower <= weights * (1 + 1e-12)) & (weights <= upper * (1 + 1e-12))).all()
    if normaliser != "candidates":
        assert known.tight.all()
        torch.testing.assert_close(found.weights, weights, rtol=2e-4, atol=0)


def test_candidates_are_one_set_for_all_modalities() -> None:
    prototypes, queries = draw(0, 3000, (16, 8)), draw(1, 5, (16, 8))
    taus = taus_of(prototypes)
    found = PrototypeIndex.build(prototypes, taus).search(queries, 100)
    psi = loop(prototypes, queries, taus)
    assert found.certainties is not None
    for query in range(5):
        union = sorted({row for m in range(2) for row in psi[m, query].argsort()[:100].tolist()})
        assert len(union) > 100
        expected = certainty_loop(psi[:, query][:, union])
        np.testing.assert_allclose(found.certainties.values[:, query].numpy(), expected, rtol=1e-5)


def test_certainty_of_equal_prototypes_is_shared() -> None:
    prototypes = {name: torch.cat([values, values]) for name, values in draw(0, 40, (16, 8)).items()}
    found = PrototypeIndex.build(prototypes, {"rgb": 1e3, "flow": 1e3}).search(
        {name: values[:40] for name, values in prototypes.items()}, 3
    )
    assert found.certainties is not None
    torch.testing.assert_close(found.certainties.values, torch.full((2, 40), 0.5, dtype=torch.float64))
    torch.testing.assert_close(found.weights, torch.full((2, 40), 0.5, dtype=torch.float64))
    assert found.ids[:, :2].tolist() == [[row, row + 40] for row in range(40)]


def test_what_is_left_out_counts_nowhere() -> None:
    """Equal prototypes with lower ids keep the one left out off its own list."""
    points = draw(0, 300, (5, 3))
    for values in points.values():
        values[20:120] = values[20]
    index, out = PrototypeIndex.build(points), torch.tensor([20, 119, 200])
    found = index.search({name: values[out] for name, values in points.items()}, 70, leave_out=out)
    for query, prototype in enumerate(out.tolist()):
        kept = [other for other in range(300) if other != prototype]
        without = PrototypeIndex.build({name: values[kept] for name, values in points.items()})
        alone = without.search({name: values[[prototype]] for name, values in points.items()}, 70)
        assert found.ids[query].tolist() == [kept[place] for place in alone.ids[0].tolist()]
        assert found.weights[:, query].tolist() == pytest.approx(alone.weights[:, 0].tolist(), rel=1e-5)
        assert found.alone is not None
        assert alone.alone is not None
        assert found.alone[:, query].tolist() == [[kept[i] for i in ids] for ids in alone.alone[:, 0].tolist()]


def test_the_nearest_in_each_modality_are_those_of_one_hot_weights() -> None:
    index, queries = PrototypeIndex.build(draw(0, 400, (6, 4))), draw(1, 7, (6, 4))
    found = index.search(queries, 3)
    assert found.alone is not None
    for position, ids in enumerate(found.alone):
        weights = torch.zeros(2, 7)
        weights[position] = 1
        assert torch.equal(index.search(queries, ids.shape[1], weights).ids, ids)


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (torch.tensor([0, 1]), "is to be left out; give whole numbers [3], one a query"),
        (torch.zeros(3), "is to be left out; give whole numbers"),
        (torch.tensor([0, 1, 9]), "of 9 prototypes one is to be left out that is none"),
        (torch.tensor([0, -1, 2]), "of 9 prototypes one is to be left out that is none"),
    ],
)
def test_what_cannot_be_left_out_is_refused(out: Tensor, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        PrototypeIndex.build(draw(0, 9, (3, 2))).search(draw(1, 3, (3, 2)), 1, leave_out=out)


def test_no_queries_give_no_neighbours() -> None:
    for num in (5, 200):
        index = PrototypeIndex.build(draw(0, num, (4, 3)))
        for weights in (None, torch.ones(2, 0)):
            found = index.search(draw(0, 0, (4, 3)), 7, weights)
            assert found.ids.shape == found.distances.shape == (0, min(7, num))
            assert found.psi.shape == (2, 0, min(7, num))
            assert found.weights.shape == (2, 0)


def test_the_scale_of_a_querys_weights_changes_distances_alone() -> None:
    prototypes, queries = draw(0, 2000, (8, 8)), draw(1, 6, (8, 8))
    index = PrototypeIndex.build(prototypes)
    plain = index.search(queries, 9, torch.ones(2, 6))
    for factor in (1e-42, 1e42):
        scaled = index.search(queries, 9, torch.full((2, 6), factor, dtype=torch.float64))
        assert torch.equal(scaled.ids, plain.ids)
        torch.testing.assert_close(scaled.distances / factor, plain.distances)


def test_other_dtypes_and_gradients_are_taken() -> None:
    prototypes, queries = draw(0, 300, (8,)), draw(1, 6, (8,))
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        t, q = prototypes["rgb"].to(dtype), queries["rgb"].to(dtype).requires_grad_()
        found = PrototypeIndex.build({"rgb": t}).search({"rgb": q}, 4)
        assert_nearest(found, loop({"rgb": t}, {"rgb": q.detach()}), np.ones((1, 6)), 4)


def test_what_approximate_search_returns_is_measured_and_nothing_is_said_of_the_rest(
    one_thread: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amfir.meta.search.tuning.FASTER", 0)  # no clock decides
    centres = draw(0, 100, (12, 12), 5)
    noise = draw(1, 20_000, (12, 12))
    prototypes = {name: values.repeat(200, 1) + noise[name] for name, values in centres.items()}
    held_out, queries = (
        {name: values + noise[name][start : start + 100] for name, values in centres.items()} for start in (300, 700)
    )
    index = PrototypeIndex.build(prototypes, backend="ivf", queries=held_out)
    assert index.backend.name == "ivf"
    found = index.search(queries, 5)
    psi = loop(prototypes, queries)
    fused = (found.weights.numpy()[..., None] * psi).sum(0)
    chosen = np.take_along_axis(fused, found.ids.numpy(), 1)
    np.testing.assert_allclose(found.distances.numpy(), chosen, rtol=1e-4)
    assert (found.ids[:, 0].numpy() == fused.argmin(1)).mean() >= 0.99
    assert found.normaliser == "candidates"
    assert found.certainties is not None
    assert (found.certainties.lower == 1 / 20_000).all()
    assert (found.certainties.upper == 1).all()


def good() -> dict[str, Tensor]:
    return draw(0, 5, (4, 3))


def changed(name: str, row: int, value: float) -> dict[str, Tensor]:
    streams = good()
    streams[name][row, 0] = value
    return streams


@pytest.mark.parametrize(
    ("prototypes", "words"),
    [
        ({}, "no prototypes"),
        (draw(0, 0, (4, 3)), "no prototypes"),
        (changed("flow", 3, float("nan")), "'flow' is not finite in prototype 3"),
        (changed("rgb", 4, float("inf")), "'rgb' is not finite in prototype 4"),
        (changed("rgb", 2, 1e30), "'rgb' is too large for float32 in prototype 2"),
        ({**good(), "flow": torch.ones(4, 3)}, "different numbers of prototypes (rgb 5, flow 4)"),
        ({**good(), "flow": torch.ones(5)}, "the prototypes of 'flow' are [5]"),
        ({**good(), "flow": torch.ones(5, 0)}, "the prototypes of 'flow' are [5, 0]"),
    ],
)
def test_bad_prototypes_are_refused_in_one_line(prototypes: Streams, words: str) -> None:
    with pytest.raises(UserError) as refusal:
        PrototypeIndex.build(prototypes)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("queries", "k", "weights", "words"),
    [
        ({"rgb": good()["rgb"]}, 1, None, "the queries lack modality 'flow'"),
        ({**good(), "depth": good()["rgb"]}, 1, None, "the queries have modality 'depth'"),
        ({**good(), "flow": torch.ones(5, 9)}, 1, None, "the queries of 'flow' are [5, 9]; give [number, 3]"),
        ({**good(), "flow": torch.ones(4, 3)}, 1, None, "different numbers of queries"),
        (changed("flow", 3, float("nan")), 1, None, "'flow' is not finite in query 3"),
        (changed("flow", 3, 1e30), 1, None, "'flow' is too large for float32 in query 3"),
        (good(), 0, None, "cannot return 0 prototypes"),
        (good(), 1, torch.ones(5, 2), "the weights are [5, 2]; give [2, 5]"),
        (good(), 1, torch.tensor([[1.0, 1, -1, 1, 1]] * 2), "weights -1, -1 of query 2"),
        (good(), 1, torch.tensor([[1.0, 1, 1, float("nan"), 1]] * 2), "weights nan, nan of query 3"),
        (good(), 1, torch.tensor([[1.0, 0, 1, 1, 1]] * 2), "weights 0, 0 of query 1"),
    ],
)
def test_bad_queries_are_refused_in_one_line(queries: Streams, k: int, weights: Tensor | None, words: str) -> None:
    index = PrototypeIndex.build(good())
    with pytest.raises(UserError) as refusal:
        index.search(queries, k, weights)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("taus", "words"),
    [
        ({"rgb": 1.0}, "no temperature for modality 'flow'"),
        ({"rgb": 1.0, "flow": 0.0}, "the temperature of 'flow' is 0.0"),
        ({"rgb": float("inf"), "flow": 1.0}, "the temperature of 'rgb' is inf"),
    ],
)
def test_bad_temperatures_are_refused(taus: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        PrototypeIndex.build(good(), taus)


def test_blocks_and_backends_are_checked() -> None:
    with pytest.raises(UserError, match="the blocks hold 5 prototypes, not the 6 announced"):
        PrototypeIndex.from_blocks([good()], 6)
    with pytest.raises(UserError, match="more than the 4 prototypes announced"):
        PrototypeIndex.from_blocks([good()], 4)
    with pytest.raises(UserError, match="the prototypes lack modality 'flow'"):
        PrototypeIndex.from_blocks([good(), {"rgb": good()["rgb"]}], 10)
    with pytest.raises(UserError, match="'rgb' is not finite in prototype 9"):
        PrototypeIndex.from_blocks([good(), changed("rgb", 4, float("nan"))], 10)
    with pytest.raises(UserError, match=r"unknown search backend 'flatt'; did you mean 'flat'\?"):
        PrototypeIndex.build(good(), backend="flatt")


MEMORY = """
import json, re, torch
torch.set_num_threads(1)
from amfir.meta.search import PrototypeIndex
def peak(): return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
def block(rows): return {name: torch.randn(rows, 128) for name in ("rgb", "flow")}
PrototypeIndex.build(block(300), backend="flat").search(block(30), 5)
before = peak()
index = PrototypeIndex.from_blocks((block(1000) for _ in range(100)), 100_000, backend="flat")
index.search(block(100), 5)
print(json.dumps((peak() - before) / (100_000 * 256 * 4)))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_building_and_searching_take_half_the_prototypes_size_beside_them() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEMORY]
    ratio = json.loads(subprocess.run(command, capture_output=True, check=True, env=environment).stdout)
    assert 1 <= ratio < 1.5
