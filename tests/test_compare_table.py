"""Tables of a comparison: differences on common episodes, ranks, published numbers, Markdown, CSV and picture."""

import csv
import io
import itertools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from amfir.pipeline.compare_cells import FUSED, Cell
from amfir.pipeline.compare_entries import Setting, make_entries
from amfir.pipeline.compare_plot import plot_comparison
from amfir.pipeline.compare_store import Cost, Measured
from amfir.pipeline.compare_table import PUBLISHED_LEGEND, columns_of, markdown, records, to_csv
from amfir.pipeline.published import DATASETS, SHOTS, find_published, load_published
from amfir.pipeline.significance import holm, mean_interval, paired_difference
from amfir.pipeline.splits import builtin_splits

PAPERS = {"rgb": "resnet50", "flow": "i3d-flow-charades"}
PLANTED = {"rgb": "planted", "flow": "planted"}
STREAMS = ("rgb", "flow")

Outcomes = dict[Cell, Measured | str]


def setting(split: str = "random:0", backbones: dict[str, str] | None = None) -> Setting:
    return Setting(split, way=5, query=1, episodes=8, backbones=backbones or PLANTED)


def cell(row: str, arrangement: str, shot: int = 1, seed: int = 0) -> Cell:
    streams = STREAMS if arrangement in FUSED else (arrangement,)
    return Cell(f"{row}-{arrangement}", row, arrangement, streams, shot, seed)


def measured(right: Sequence[int], *costs: Cost, seconds: float = 2.0) -> Measured:
    return Measured(np.array(right, np.int64), seconds, costs)


def values(*numbers: float) -> NDArray[np.float64]:
    return np.array(numbers, np.float64)


# Significance


def test_paired_difference_equals_a_slow_one() -> None:
    ours, others = [3.0, 1.0, 4.0, 1.0, 5.0], [2.0, 1.0, 2.0, 2.0, 1.0]
    found = paired_difference(values(*ours), values(*others))
    gaps = [one - other for one, other in zip(ours, others, strict=True)]
    error = statistics.pstdev(gaps) / math.sqrt(5)
    assert found.mean == pytest.approx(statistics.fmean(gaps))
    assert found.ci95 == pytest.approx(1.96 * error)
    tail = 1 - statistics.NormalDist().cdf(statistics.fmean(gaps) / error)
    assert found.p == pytest.approx(2 * tail)


def test_paired_difference_turns_around_with_its_arguments() -> None:
    one, other = values(1, 0, 1, 1), values(0, 0, 1, 0)
    there, back = paired_difference(one, other), paired_difference(other, one)
    assert (there.mean, there.ci95, there.p) == (-back.mean, back.ci95, back.p)


def test_pairing_sees_what_separate_intervals_do_not() -> None:
    """Episodes differ by far more than methods do, but one method is better in nearly all of them."""
    hard = np.linspace(0, 80, 400)
    better = hard + np.where(np.arange(400) % 10 == 0, 0.0, 1.0)
    found = paired_difference(better, hard)
    assert found.mean < mean_interval(hard)[1]
    assert found.p < 1e-50
    assert found.significant


def test_methods_without_a_difference_are_not_told_apart() -> None:
    same = paired_difference(values(1, 0, 1), values(1, 0, 1))
    assert (same.mean, same.ci95, same.p) == (0.0, 0.0, 1.0)
    shifted = paired_difference(values(2, 1, 2), values(1, 0, 1))
    assert (shifted.mean, shifted.ci95, shifted.p) == (1.0, 0.0, 0.0)


def test_holm_by_hand() -> None:
    # Smallest first: .01 * 4, .02 * 3, .03 * 2, .04 * 1; none below one before it.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_equals_its_definition_as_a_closed_test() -> None:
    """An adjusted p is the largest Bonferroni p among all sets of hypotheses that hold this one."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        p = (generator.random(6) ** 3).tolist()
        sets = [chosen for size in range(1, 7) for chosen in itertools.combinations(range(6), size)]
        closed = [
            max(min(1.0, len(chosen) * min(p[i] for i in chosen)) for chosen in sets if place in chosen)
            for place in range(6)
        ]
        assert holm(p) == pytest.approx(closed)


# Published numbers


def test_every_published_number_is_in_the_column_sums() -> None:
    """Sums and counts of the columns of the papers' table, added up apart from published.toml."""
    expected = {
        ("kinetics100", 1): (1539.8, 24),
        ("kinetics100", 5): (2087.1, 25),
        ("ssv2-full", 1): (756.9, 18),
        ("ssv2-full", 5): (1179.8, 19),
        ("hmdb51", 1): (1019.6, 18),
        ("hmdb51", 5): (1504.4, 20),
        ("ucf101", 1): (1444.5, 18),
        ("ucf101", 5): (1891.6, 20),
    }
    for (dataset, shot), (total, count) in expected.items():
        numbers = [row.accuracies[SHOTS.index(shot)] for row in load_published() if row.dataset == dataset]
        present = [number for number in numbers if not math.isnan(number)]
        assert (round(sum(present), 1), len(present)) == (total, count)


def test_published_rows_are_rows_of_our_table() -> None:
    assert set(DATASETS) == set(builtin_splits())
    titles = [(row.title, row.dataset) for row in load_published()]
    assert len(set(titles)) == len(titles)
    for row in load_published():
        assert make_entries({cell(row.head, row.arrangement): "failed"}, setting())[0].title


@pytest.mark.parametrize(
    ("head", "arrangement", "split", "shot", "accuracy"),
    [
        ("amfir", "ami", "ssv2-full", 5, 92.3),
        ("protonet", "ea", "hmdb51", 5, 76.3),
        ("hyrsm", "rgb", "hmdb51", 5, 76.0),
        ("strm", "flow", "ucf101", 1, 79.7),
        ("otam", "rgb", "kinetics100", 1, 73.0),
    ],
)
def test_published_number_of_the_same_thing(
    head: str, arrangement: str, split: str, shot: int, accuracy: float
) -> None:
    backbones = {name: PAPERS[name] for name in (STREAMS if arrangement not in STREAMS else (arrangement,))}
    found = find_published(head, arrangement, split=split, way=5, shot=shot, backbones=backbones)
    assert found is not None
    assert found[0] == accuracy


@pytest.mark.parametrize(
    "changed",
    [
        {"split": "random:0"},
        {"split": "ssv2-small"},
        {"way": 6},
        {"shot": 3},
        {"backbones": {"rgb": "resnet18"}},
        {"backbones": PAPERS},
        {"head": "strm[pooled]"},
        {"head": "strm"},  # no 1-shot number
        {"head": "tarn"},  # on C3D features
    ],
)
def test_no_published_number_of_another_thing(changed: dict[str, object]) -> None:
    same = {"head": "otam", "split": "kinetics100", "way": 5, "shot": 1, "backbones": {"rgb": "resnet50"}}
    assert find_published(arrangement="rgb", **same)  # type: ignore[arg-type]
    assert find_published(arrangement="rgb", **{**same, **changed}) is None  # type: ignore[arg-type]


# Entries


def test_entries_of_two_methods_by_hand() -> None:
    results = {
        cell("protonet", "rgb"): measured([5, 4, 3, 4], Cost(10.0, 100, 7)),
        cell("otam", "rgb"): measured([4, 4, 2, 4], Cost(5.0, 100, 9)),
    }
    best, other = make_entries(results, setting())
    assert (best.accuracy, other.accuracy) == (80.0, 70.0)
    assert best.ci95 == pytest.approx(1.96 * statistics.pstdev([100, 80, 60, 80]) / 2)
    assert (best.rank, other.rank) == (1, 2)
    assert best.to_table is None
    assert best.to_column is None
    assert other.to_table is not None
    assert other.to_table.mean == pytest.approx(-10.0)
    assert other.to_table.ci95 == pytest.approx(1.96 * statistics.pstdev([20, 0, 20, 0]) / 2)
    assert best.spent is not None
    assert (best.spent.parameters, best.spent.train_seconds, best.spent.train_rate) == (7, 10.0, 10.0)
    assert best.spent.evaluation_rate == 2.0


def test_p_is_adjusted_over_the_column_and_over_the_table() -> None:
    generator = np.random.default_rng(0)
    right = {name: generator.integers(1, 5, 40) for name in ("tsn", "otam", "trx")}
    results = {
        cell(name, stream): Measured(right[name] + (stream == "rgb"), 1.0) for name in right for stream in STREAMS
    }
    entries = make_entries(results, setting())
    best = {
        stream: max((e for e in entries if e.arrangement == stream), key=lambda e: e.accuracy) for stream in STREAMS
    }
    for stream in STREAMS:
        others = [entry for entry in entries if entry.arrangement == stream and entry is not best[stream]]
        raw = [paired_difference(e.episodes, best[stream].episodes).p for e in others]  # type: ignore[arg-type]
        assert [entry.to_column.p for entry in others if entry.to_column] == holm(raw)
    others = [entry for entry in entries if entry is not best["rgb"]]
    raw = [paired_difference(e.episodes, best["rgb"].episodes).p for e in others]  # type: ignore[arg-type]
    assert [entry.to_table.p for entry in others if entry.to_table] == holm(raw)


def test_seeds_are_averaged_episode_by_episode() -> None:
    results = {
        cell("otam", "rgb", seed=0): measured([5, 0, 5, 0], Cost(1.0, 10, 3)),
        cell("otam", "rgb", seed=1): measured([0, 5, 0, 3], Cost(3.0, 10, 3)),
    }
    (entry,) = make_entries(results, setting())
    assert entry.seeds == 2
    assert entry.episodes is not None
    assert entry.episodes.tolist() == [50, 50, 50, 30]
    assert entry.accuracy == 45.0
    assert entry.seeds_sd == pytest.approx(statistics.stdev([50, 40]))
    assert entry.spent is not None
    assert (entry.spent.parameters, entry.spent.train_seconds, entry.spent.train_rate) == (3, 2.0, 5.0)


def test_one_failed_seed_takes_the_entry_with_it_and_no_other() -> None:
    results: Outcomes = {
        cell("otam", "rgb", seed=0): measured([5, 5]),
        cell("otam", "rgb", seed=1): "too wide; features; narrow them",
        cell("trx", "rgb"): measured([4, 5]),
    }
    failed, fine = make_entries(results, setting())
    assert failed.failed
    assert failed.failure == "too wide; features; narrow them"
    assert failed.rank is None
    assert fine.rank == 1
    assert fine.spent is not None
    assert fine.spent.train_seconds is None


def test_equal_accuracies_share_a_rank() -> None:
    right = {"otam": [5, 3], "trx": [3, 5], "tsn": [1, 1]}
    entries = make_entries({cell(name, "rgb"): measured(counts) for name, counts in right.items()}, setting())
    assert [entry.rank for entry in entries] == [1, 1, 3]


# Texts


def example(split: str = "random:0", backbones: dict[str, str] | None = None) -> tuple[str, str]:
    """Markdown and CSV of a small table."""
    up = [5, 5, 4, 5, 5, 4, 5, 5]
    results: Outcomes = {
        cell("otam", "rgb"): measured(up, Cost(4.0, 500, 1234)),
        cell("otam", "ami"): measured([5] * 8, Cost(8.0, 500, 2468)),
        cell("mtfan", "rgb"): measured([4, 5, 5, 5, 4, 5, 5, 4], Cost(1.0, 500, 10)),
        cell("mtfan", "ami"): "no | such thing; here; mend it",
        cell("amfir", "ami"): measured([2] * 8),
    }
    here = setting(split, backbones)
    entries = make_entries(results, here)
    return markdown(entries, here, ["one thing was left out"]), to_csv(entries, here)


def test_markdown_by_hand() -> None:
    text, _ = example()
    assert "## 5-way 1-shot on random:0" in text
    assert "8 episodes, queries of each class: 1; chance is 20.0 %." in text
    lines = text.splitlines()
    start = lines.index("| method | RGB | AMI |")
    assert lines[start + 2] == "| OTAM | **95.00 +- 6.00** | **100.00 +- 0.00** |"
    assert lines[start + 3] == "| MTFAN (re-implementation) | 92.50 +- 6.71 ~ | failed (1) |"
    assert lines[start + 4] == "| AMFIR |  | 40.00 +- 0.00 |"
    first = next(line for line in lines if line.startswith("| 1 |"))
    assert first == "| 1 | OTAM | AMI | 100.00 +- 0.00 |  |  | 2,468 | 8.0 | 62.5 | 4.0 |"
    assert "| 3 | AMFIR | AMI | 40.00 +- 0.00 | -60.00 +- 0.00 | < 0.0001 |  |  |  | 4.0 |" in lines
    assert "1. failed: no | such thing; here; mend it" in lines
    assert "Note: one thing was left out." in lines
    assert PUBLISHED_LEGEND not in text


def test_all_that_share_the_best_accuracy_of_a_column_are_bold() -> None:
    right = {"otam": [5, 3], "trx": [3, 5], "tsn": [1, 1]}
    text = markdown(
        make_entries({cell(name, "rgb"): measured(counts) for name, counts in right.items()}, setting()), setting()
    )
    assert "| OTAM | **80.00 +- 27.72** |" in text
    assert "| TRX | **80.00 +- 27.72** |" in text


def test_all_lines_of_a_table_have_as_many_cells() -> None:
    text, _ = example("kinetics100", PAPERS)
    tables = [
        list(lines)
        for is_table, lines in itertools.groupby(text.splitlines(), lambda line: line.startswith("|"))
        if is_table
    ]
    assert len(tables) == 2
    for table in tables:
        assert len({line.count(" |") for line in table}) == 1


def test_published_numbers_stand_beside_where_they_match() -> None:
    text, table = example("kinetics100", PAPERS)
    assert "**95.00 +- 6.00** [73.0]" in text
    assert "92.50 +- 6.71 ~ [74.6]" in text
    assert "40.00 +- 0.00 [82.8]" in text
    assert PUBLISHED_LEGEND in text
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["published"] for row in rows] == ["73.0", "", "74.6", "", "82.8"]
    assert rows[4]["published_source"] == "AMFIR, Table 1"


def test_without_a_match_the_csv_has_no_published_column() -> None:
    _, table = example()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert "published" not in rows[0]
    assert [row["method"] for row in rows] == ["otam", "otam", "mtfan", "mtfan", "amfir"]
    assert float(rows[2]["to_column_best"]) == pytest.approx(-2.5)
    assert rows[3]["accuracy"] == ""
    assert rows[3]["failure"] == "no | such thing; here; mend it"
    assert float(rows[0]["train_rate"]) == 125.0


def test_records_are_as_many_as_entries_and_have_equal_keys() -> None:
    results: Outcomes = {cell("otam", "rgb"): measured([1, 2]), cell("trx", "rgb"): "failed"}
    found = records(make_entries(results, setting()), setting())
    assert list(found[0]) == list(found[1])
    assert found[1]["accuracy"] is None


def test_streams_come_before_arrangements() -> None:
    names = ("ami", "depth", "own", "ec", "rgb")
    entries = make_entries({cell("otam", name): "failed" for name in names}, setting())
    assert columns_of(entries) == ["depth", "rgb", "ec", "ami", "own"]


def test_a_table_of_failures_alone_is_a_table() -> None:
    text = markdown(make_entries({cell("otam", "rgb"): "failed"}, setting()), setting())
    assert "| OTAM | failed (1) |" in text
    assert "Every method failed." in text


def test_picture_has_a_row_for_each_method_and_a_panel_for_each_shot(tmp_path: Path) -> None:
    names = ("otam", "trx", "tsn", "chamfer")
    arrangements = (*STREAMS, *FUSED)
    generator = np.random.default_rng(0)

    def draw(rows: Sequence[str], shots: Sequence[int]) -> tuple[int, ...]:
        results = {
            cell(row, arrangement, shot): measured(generator.integers(0, 6, 9).tolist())
            for shot in shots
            for row in rows
            for arrangement in arrangements
        }
        path = tmp_path / "table.png"
        plot_comparison(make_entries({**results, cell("mtfan", "rgb"): "failed"}, setting()), setting(), path)
        return tuple(matplotlib.image.imread(path).shape)

    small, tall, wide = draw(names[:1], [1]), draw(names, [1]), draw(names[:1], [1, 5])
    assert tall[0] > small[0]
    assert wide[1] > small[1]
