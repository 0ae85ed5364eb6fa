"""`amfir search` on small planted caches, against loops in float64 over single pairs of clips."""

import csv
import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from pyarrow import parquet

from amfir.cache import StreamWriter
from amfir.meta.checkpoint import load_model
from amfir.meta.search.library import MISSING, find_faiss
from amfir.pipeline.cli import cli
from amfir.pipeline.features import load_features
from amfir.pipeline.search_queries import Answers, Tally

from .plantedcache import DIMS, plant, planted_row, planted_spec

TRAIN = ("--split", "random:0", "--way", "3", "--query", "2", "--episodes", "16")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def reported(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Of a CSV or a Parquet file, numbers as numbers."""
    if path.suffix == ".parquet":
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return found
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _number(value) for name, value in row.items()} for row in csv.DictReader(file)]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(tmp_path_factory.mktemp("planted") / "cache", classes=10)


def sow(root: Path, classes: Sequence[int], clips: Sequence[int], separation: float = 0.5) -> Path:
    """Some classes and clips of what `plant` would write."""
    for modality in DIMS:
        with StreamWriter(root, planted_spec(modality)) as writer:
            for number in classes:
                for clip in clips:
                    writer.add(planted_row(writer.spec, f"class {number}", clip, separation))
    return root


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other clips, of the gallery's classes and of three that it does not know."""
    return sow(tmp_path_factory.mktemp("more") / "cache", range(13), range(10, 13))


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    reported("train", root, *TRAIN, "--run", folder)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, for an index of its own."""
    return Path(shutil.copytree(trained, tmp_path / "run", ignore=shutil.ignore_patterns("search")))


class Slow:
    """Distances from the heads' embeddings, pair by pair."""

    def __init__(self, run: Path, *caches: Path) -> None:
        model, _ = load_model(run)
        self.taus = model.temperatures
        self.label: dict[str, str] = {}
        self.place: dict[tuple[int, str], dict[str, list[float]]] = {}
        for number, cache in enumerate(caches):
            data = load_features(cache)
            for clip, clip_id in enumerate(data.clip_ids):
                self.label[clip_id] = data.class_names[int(data.labels[clip])]
                with torch.no_grad():
                    self.place[number, clip_id] = {
                        name: model.head(name).encode(data.features[name][clip, :1].float())[0][0].double().tolist()
                        for name in model.modalities
                    }

    def psi(self, query: dict[str, list[float]], others: list[dict[str, list[float]]]) -> dict[str, list[float]]:
        return {
            name: [
                tau * math.fsum((a - b) ** 2 for a, b in zip(query[name], other[name], strict=True)) for other in others
            ]
            for name, tau in self.taus.items()
        }

    def answer(self, query: dict[str, list[float]], others: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
        """Names by rising distance, weights, and each modality's own ranking."""
        psi = self.psi(query, list(others.values()))
        certainty = {m: 1 / math.fsum(math.exp(min(values) - value) for value in values) for m, values in psi.items()}
        weights = {m: value / sum(certainty.values()) for m, value in certainty.items()}
        names = list(others)
        fused = {name: sum(weights[m] * psi[m][i] for m in psi) for i, name in enumerate(names)}
        return {
            "weights": weights,
            "distance": fused,
            "psi": {m: dict(zip(names, values, strict=True)) for m, values in psi.items()},
            "fused": sorted(names, key=fused.__getitem__),
            **{m: sorted(names, key=dict(zip(names, values, strict=True)).__getitem__) for m, values in psi.items()},
        }


def assert_rows(rows: list[dict[str, Any]], expected: dict[str, Any], k: int) -> None:
    assert [row["rank"] for row in rows] == list(range(1, k + 1))
    assert [row["neighbour"] for row in rows] == expected["fused"][:k]
    for row in rows:
        assert row["distance"] == pytest.approx(expected["distance"][row["neighbour"]], rel=1e-4)
        for name, weight in expected["weights"].items():
            assert row[f"weight_{name}"] == pytest.approx(weight, rel=1e-4)
            assert row[f"psi_{name}"] == pytest.approx(expected["psi"][name][row["neighbour"]], rel=1e-4)


def by_query(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["query"], []).append(row)
    return found


def share(hits: list[bool]) -> Any:
    return pytest.approx(100 * sum(hits) / len(hits))


def test_clips_that_ask_for_the_others_equal_a_loop_without_themselves(
    root: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "made" / "rows.csv"
    found = reported("search", root, "--run", folder, "--out", out, "-k", 7)
    slow, rows = Slow(folder, root), by_query(rows_of(out))
    hits: dict[str, list[tuple[bool, bool]]] = {"fused": [], "rgb": [], "flow": []}
    assert sorted(rows) == sorted(slow.label)
    for query, label in slow.label.items():
        others = {clip: place for (_, clip), place in slow.place.items() if clip != query}
        expected = slow.answer(slow.place[0, query], others)
        assert query not in [row["neighbour"] for row in rows[query]]
        assert_rows(rows[query], expected, 7)
        assert {row["query_label"] for row in rows[query]} == {label}
        assert all(row["label"] == slow.label[row["neighbour"]] for row in rows[query])
        for name, right in hits.items():
            labels = [slow.label[clip] for clip in expected[name]]
            right.append((label == labels[0], label in labels[:5]))
    for name, right in hits.items():
        assert found["accuracy"][name] == {
            f"top{top}": share([hit[i] for hit in right]) for i, top in enumerate((1, 5))
        }
    assert found["accuracy"]["fused"]["top1"] < found["accuracy"]["fused"]["top5"] < 100
    assert found["gallery"] == {"clips": 60, "classes": 10, "prototypes": 60, "per": "clip", "split": "none"}
    assert found["queries"] == {"clips": 60, "labelled": 60, "leave_one_out": True}
    assert found["normalisers"] == {"exact": 60, "bounded": 0, "candidates": 0}


@pytest.mark.parametrize("per", ["clip", "class"])
def test_clips_of_another_cache_equal_a_loop(root: Path, more: Path, folder: Path, tmp_path: Path, per: str) -> None:
    out = tmp_path / "rows.parquet"
    asked = ("--split", "random:0", "--queries", more, "--per", per, "-k", 3)
    found = reported("search", root, "--run", folder, *asked, "--out", out)
    slow, rows = Slow(folder, root, more), by_query(rows_of(out))
    base = set(json.loads((folder / "model.json").read_text())["provenance"]["split"]["train"])
    members: dict[str, list[dict[str, list[float]]]] = {}
    for (number, clip), place in slow.place.items():
        if number == 0 and slow.label[clip] not in base:
            members.setdefault(clip if per == "clip" else slow.label[clip], []).append(place)
    gallery = {
        name: {m: [math.fsum(v) / len(places) for v in zip(*(p[m] for p in places), strict=True)] for m in slow.taus}
        for name, places in members.items()
    }
    assert found["gallery"]["prototypes"] == len(gallery) == (30 if per == "clip" else 5)
    hits = []
    for query, asking in rows.items():
        expected = slow.answer(slow.place[1, query], gallery)
        assert_rows(asking, expected, 3)
        labels = [slow.label.get(name, name) for name in expected["fused"]]
        if slow.label[query] in labels:
            hits.append(slow.label[query] == labels[0])
    assert len(rows) == found["queries"]["clips"] == 39
    assert len(hits) == found["queries"]["labelled"] == 15
    assert found["accuracy"]["fused"]["top1"] == share(hits)


def test_csv_and_parquet_have_the_same_rows(root: Path, folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / "rows.csv", tmp_path / "rows.parquet"]
    for file in files:
        reported("search", root, "--run", folder, "--out", file, "-k", 2)
    first, second = map(rows_of, files)
    assert first == second
    assert len(first) == 120
    assert list(first[0]) == list(second[0])
    assert {path.name for path in tmp_path.iterdir()} == {"run", "rows.csv", "rows.parquet"}


@pytest.mark.parametrize("per", ["clip", "class"])
def test_blocks_change_nothing(
    root: Path, more: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per: str
) -> None:
    wanted = ("search", root, "--run", folder, "--per", per, *(("--queries", more) if per == "class" else ()))
    whole = reported(*wanted, "--out", tmp_path / "a.csv")
    monkeypatch.setattr("amfir.pipeline.embedder.ENCODED_AT_ONCE", 7)
    parts = reported(*wanted, "--rebuild", "--out", tmp_path / "b.csv")
    assert parts["accuracy"] == whole["accuracy"]
    for one, other in zip(rows_of(tmp_path / "a.csv"), rows_of(tmp_path / "b.csv"), strict=True):
        names = ("query", "query_label", "rank", "neighbour", "label", "normaliser")
        assert [one[name] for name in names] == [other[name] for name in names]
        assert one["distance"] == pytest.approx(other["distance"], rel=1e-5)


def test_two_runs_go_together(root: Path, tmp_path: Path) -> None:
    runs = {"rgb": tmp_path / "rgb", "flow": tmp_path / "flow"}
    for stream, folder in runs.items():
        reported("train", root, *TRAIN, "--run", folder, "--method", "protonet", "--streams", stream)
    both = reported("search", root, *(part for folder in runs.values() for part in ("--run", folder)))
    for stream, folder in runs.items():
        alone = reported("search", root, "--run", folder)
        assert alone["accuracy"]["fused"] == alone["accuracy"][stream] == both["accuracy"][stream]
    assert "two runs look at rgb" in refused("search", root, "--run", runs["rgb"], "--run", runs["rgb"])


# --- the index that is kept -----------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_second_call_loads_what_the_first_one_built(root: Path, folder: Path, tmp_path: Path) -> None:
    first = reported("search", root, "--run", folder, "--out", tmp_path / "a.csv")
    before = files_of(folder / "search")
    second = reported("search", root, "--run", folder, "--out", tmp_path / "b.csv")
    assert files_of(folder / "search") == before
    assert (first["index"]["loaded"], second["index"]["loaded"]) == (False, True)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert second["accuracy"] == first["accuracy"]
    again = reported("search", root, "--run", folder, "--rebuild")
    assert again["index"]["loaded"] is False
    assert files_of(folder / "search").keys() == before.keys()
    assert files_of(folder / "search") != before


def test_a_named_index_of_something_else_is_refused(root: Path, more: Path, folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    wanted = ("--run", folder, "--index", index)
    reported("search", root, *wanted)
    assert "gallery = 60 clips of 10 classes (" in refused("search", root, *wanted, "--split", "random:0")
    assert "--rebuild, or another --index" in refused("search", root, *wanted, "--split", "random:0")
    assert ", not 39 clips of 13 classes (" in refused("search", more, *wanted)
    assert "was made with per = clip, not class; " in refused(
        "search", root, *wanted, "--per", "class", "--queries", more
    )
    other = tmp_path / "other"
    reported("train", root, *TRAIN, "--seed", "1", "--run", other)
    assert "was made with run = " in refused("search", root, "--run", other, "--index", index)
    assert reported("search", more, *wanted, "--rebuild")["gallery"]["clips"] == 39
    (index / "index.json").write_text("{")
    assert "is damaged" in refused("search", more, *wanted)


def test_the_runs_own_index_is_made_anew_where_it_does_not_fit(root: Path, folder: Path, tmp_path: Path) -> None:
    reported("search", root, "--run", folder)
    result = run("search", root, "--run", folder, "--split", "random:0", "--json")
    assert "), not 30 clips of 5 classes (" in result.stderr
    assert result.stderr.splitlines()[0].endswith("): it is built anew")
    assert json.loads(result.stdout)["index"]["loaded"] is False
    # A cache of the same clips with other features is another one.
    changed = sow(tmp_path / "changed", range(10), range(6), separation=0.6)
    assert "gallery = 30 clips of 5 classes (" in run("search", changed, "--run", folder, "--split", "random:0").stderr


def test_another_backend_takes_the_same_prototypes(root: Path, folder: Path) -> None:
    auto = reported("search", root, "--run", folder)
    flat = reported("search", root, "--run", folder, "--backend", "flat")
    assert (auto["index"]["backend"], flat["index"]["backend"]) == ("torch", "flat")
    assert flat["index"]["loaded"] is True
    assert flat["accuracy"] == auto["accuracy"]
    result = run("search", root, "--run", folder, "--backend", "ivf")
    assert "torch instead of ivf: 60 prototypes are searched faster by comparing all" in result.stderr


@pytest.fixture
def _no_faiss(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "faiss", None)
    find_faiss.cache_clear()
    yield
    find_faiss.cache_clear()


@pytest.mark.usefixtures("_no_faiss")
def test_without_faiss_torch_searches_and_says_so_once(root: Path, folder: Path) -> None:
    result = run("search", root, "--run", folder, "--split", "random:0", "--backend", "ivf", "--json")
    assert result.stderr == f"{MISSING}\n"
    found = json.loads(result.stdout)
    assert (found["index"]["backend"], found["index"]["note"]) == ("torch", MISSING)


# --- what is said ---------------------------------------------------------------------------------------------------


def test_the_text_has_a_row_for_each_modality(root: Path, folder: Path) -> None:
    result = run("search", root, "--run", folder, "--split", "random:0")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("30 queries, each left out, to 30 clips of 5 classes by torch (exact): index built in ")
    assert lines[1] == "weights by posteriors over the prototypes: exact for 30"
    assert [line.split()[0] for line in lines[-3:]] == ["fused", "rgb", "flow"]
    assert result.stderr == ""


def test_what_makes_figures_worth_less_is_said(root: Path, folder: Path, tmp_path: Path) -> None:
    assert "30 of the queries are of classes that trained the run" in run("search", root, "--run", folder).stderr
    same = sow(tmp_path / "same", [3, 12], range(2, 4))
    result = run("search", root, "--run", folder, "--queries", same)
    assert "2 of the queries are clips of the gallery, too" in result.stderr


def test_queries_without_a_known_label_leave_only_rows(root: Path, folder: Path, tmp_path: Path) -> None:
    single, strange = plant(tmp_path / "single", clips=1), sow(tmp_path / "strange", [10, 11], range(5))
    out = tmp_path / "rows.csv"
    for wanted in (("search", single, "--run", folder), ("search", root, "--run", folder, "--queries", strange)):
        assert "no query has a label that the gallery knows; " in refused(*wanted)
        result = run(*wanted, "--out", out, "--json")
        assert "there are no accuracies" in result.stderr
        assert json.loads(result.stdout)["accuracy"] is None
        assert len(rows_of(out)) == 50


def test_long_work_shows_how_far_it_is(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amfir.pipeline.commands.search.PATIENCE_SECONDS", 0.0)
    errors = run("search", root, "--run", folder, "--split", "random:0").stderr
    assert "30/30" in errors
    assert "query" in errors


def test_an_interrupted_search_keeps_the_index_and_leaves_no_half_file(
    root: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: Tally, answers: Answers) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tally, "add", interrupt)
        result = run("search", root, "--run", folder, "--out", tmp_path / "rows.csv")
    assert result.exit_code == 130
    assert f"Resume with: amfir search {root} --run {folder}" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert reported("search", root, "--run", folder)["index"]["loaded"] is True


# --- bad input ------------------------------------------------------------------------------------------------------


def test_bad_options_are_one_line(root: Path, trained: Path, more: Path, tmp_path: Path) -> None:
    wanted = ("search", root, "--run", trained)
    assert "k is 0; -k; ask for at least 1" in refused(*wanted, "-k", 0)
    assert "unknown search backend 'flatt'; did you mean 'flat'?" in refused(*wanted, "--backend", "flatt")
    assert "unknown kind of prototype 'clas'; did you mean 'class'?" in refused(*wanted, "--per", "clas")
    assert "a clip cannot be left out of a mean" in refused(*wanted, "--per", "class")
    assert "'rows.txt' is neither .csv nor .parquet; --out" in refused(*wanted, "--out", "rows.txt")
    (tmp_path / "taken.csv").mkdir()
    assert "cannot write " in refused(*wanted, "--out", tmp_path / "taken.csv")
    assert "unknown split 'hmdb52'" in refused(*wanted, "--split", "hmdb52")
    assert "test classes of 'random:1' trained the run" in refused(*wanted, "--split", "random:1")
    assert "no model in " in refused("search", root, "--run", tmp_path)
    assert "Missing option '--run'" in refused("search", root)
    assert not (trained / "search").exists()


def test_caches_that_do_not_fit_are_one_line(root: Path, trained: Path, tmp_path: Path) -> None:
    other = plant(tmp_path / "other", backbone="sown")
    only = plant(tmp_path / "only", streams=["rgb"])
    one = plant(tmp_path / "one", classes=1)
    for cache, line in ((other, "the run was trained on another rgb stream"), (only, "no stream 'flow' in ")):
        assert line in refused("search", cache, "--run", trained)
        assert line in refused("search", root, "--run", trained, "--queries", cache)
    assert "the gallery has clips of 1 class; " in refused("search", one, "--run", trained)
    assert "no amfir cache" in refused("search", tmp_path / "gone", "--run", trained)


@pytest.mark.parametrize(
    ("method", "line"),
    [("otam-lf", "head 'otam' has no vector prototypes"), ("amefu-net", "the run compares by the distance 'cosine'")],
)
def test_heads_that_an_index_does_not_know_are_one_line(root: Path, tmp_path: Path, method: str, line: str) -> None:
    reported("train", root, *TRAIN, "--method", method, "--run", tmp_path / "run")
    assert line in refused("search", root, "--run", tmp_path / "run")
