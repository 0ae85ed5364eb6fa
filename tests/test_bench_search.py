import json
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from amfir.pipeline import bench_search
from amfir.pipeline.bench_search import KINDS, Questions, Vectors, measure_approximate, measure_exact
from amfir.pipeline.cli import cli


def gathered(vectors: Vectors) -> dict[str, torch.Tensor]:
    blocks = list(vectors.blocks())
    return {name: torch.cat([block[name] for block in blocks]) for name in ("rgb", "flow")}


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_come_in_blocks_and_again_the_same(kind: str) -> None:
    vectors = Vectors(kind, 8200, dim=40, clusters=50, effective=6)
    first, again = gathered(vectors), gathered(vectors)
    for name in ("rgb", "flow"):
        assert first[name].shape == (8200, 40)
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name][:8], first[name][8192:])
        assert torch.linalg.matrix_rank(first[name]) == (6 if kind == "clustered" else 40)
    assert vectors.size == 8200 * 2 * 40 * 4


def test_queries_lie_near_prototypes_that_form_clusters() -> None:
    vectors = Vectors("clustered", 2000, dim=40, clusters=50, effective=6)
    prototypes, queries = gathered(vectors), vectors.queries(30, seed=1)
    nearest = {name: torch.cdist(queries[name], prototypes[name]).amin(1) for name in queries}
    assert all((each < 0.15 * 6**0.5 * 2).all() for each in nearest.values())
    distances = torch.cdist(prototypes["rgb"][:300], prototypes["rgb"][:300])
    together = torch.cdist(prototypes["flow"][:300], prototypes["flow"][:300]) < 1.2
    assert distances[together].mean() < 0.5 * distances.mean()
    assert not torch.equal(vectors.queries(5, seed=2)["rgb"], queries["rgb"][:5])


def test_exact_backends_are_measured_side_by_side() -> None:
    figures = measure_exact(Vectors("random", 3000, dim=16), Questions(20, k=3), ("torch", "flat"))
    assert list(figures) == ["torch", "flat"]
    for each in figures.values():
        assert 0 < each["seconds"] < each["index_seconds"]
        assert each["memory"] >= 0
        assert each["note"] == ""


def test_an_approximate_backend_is_held_against_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amfir.meta.search.tuning.FASTER", 0)
    vectors = Vectors("clustered", 9000, dim=24, clusters=200, effective=8)
    figures = measure_approximate(vectors, Questions(120, held_out=350, k=5), "ivf")["ivf"]
    assert (figures["used"], figures["note"]) == ("ivf", "")
    assert figures["speedup"] == pytest.approx(figures["exact_seconds"] / figures["seconds"])
    assert figures["least_recall_1"] <= figures["recall_1"]
    assert min(figures["recall_1"], figures["recall_10"]) > 0.97


def test_the_command_prints_a_table_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_search, "KINDS", ("clustered",))
    arguments = ["bench", "search", "--sizes", "300", "--backends", "torch,ivf", "--queries", "20", "--k", "3"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split()[:3] == ["vectors", "number", "backend"]
    assert lines[1].split()[:4] == ["clustered", "300", "*", "torch"]
    assert lines[2].split()[:4] == ["clustered", "300", "ivf:", "torch"]
    assert "torch instead of ivf" in result.stderr
    result = CliRunner().invoke(cli, [*arguments[:5], "torch", "--queries", "20", "--json"])
    found: dict[str, Any] = json.loads(result.stdout)
    assert (found["queries"], found["k"], set(found["vectors"])) == (20, 10, {"clustered"})
    case = found["vectors"]["clustered"]["300"]
    assert case["auto"] == "torch"
    assert set(case["backends"]["torch"]) == {
        "seconds", "index_seconds", "build_seconds", "memory", "note", "peak_mib"
    }  # fmt: skip
    assert np.isfinite(case["backends"]["torch"]["memory"])


def test_nothing_to_measure_and_unknown_backends_are_refused() -> None:
    for arguments, words in (
        (("--sizes", ""), "nothing to measure"),
        (("--backends", "flt"), "did you mean 'flat'"),
        (("--sizes", "1e3"), "no list of whole numbers"),
        (("--sizes", "100,0"), "0 prototypes cannot be searched; --sizes"),
    ):
        result = CliRunner().invoke(cli, ["bench", "search", *arguments])
        assert result.exit_code == 2
        assert words in result.stderr
