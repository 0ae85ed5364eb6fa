"""What reports say in words follows from the numbers, and no more than they say."""

from typing import Any

import pytest

from amfir.pipeline.report import words, words_checks
from amfir.pipeline.report.wording import Score, apart, leader, listing, number, sentence

from .studyfolders import entry


def test_scores_are_apart_only_where_their_intervals_do_not_touch() -> None:
    assert apart(Score("a", 70.9, 0.4), Score("b", 70.0, 0.4))
    assert not apart(Score("a", 70.75, 0.5), Score("b", 70.0, 0.25))  # they touch
    assert not apart(Score("a", 90.0, None), Score("b", 10.0, 0.1))  # an interval that is not known


@pytest.mark.parametrize(
    ("ordered", "said"),
    [
        ([], "no accuracy was measured"),
        ([Score("A", 70, 0.4)], "only A (70.0 ± 0.4 %) was measured"),
        ([Score("A", 80, 0.4), Score("B", 79, 0.4)], "A (80.0 ± 0.4 %) is clearly highest, ahead of B (79.0 ± 0.4 %)"),
        (
            [Score("A", 80, 0.4), Score("B", 80, 0.4), Score("C", 79.5, None), Score("D", 10, 0.4)],
            "A (80.0 ± 0.4 %) is highest, with no clear difference from B (80.0 ± 0.4 %) and C (79.5 %)",
        ),
    ],
)
def test_the_leader_is_clear_only_where_nobody_overlaps(ordered: list[Score], said: str) -> None:
    assert leader(ordered) == said


def test_numbers_and_lists_read_as_prose() -> None:
    assert number(-0.04) == "0.0"
    assert number(-2.26) == "\N{MINUS SIGN}2.3"
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(list("abcdef"), 4) == "a, b, c, d and 2 others"
    assert sentence("every one") == "Every one."
    assert sentence("auroc_rgb holds?") == "auroc_rgb holds?"


def test_table1_says_who_leads_where_amfir_stands_and_what_fusion_adds() -> None:
    rows = [entry("amfir", 72.0), entry("amefu-net", 76.0), entry("lost", None, None)]
    for head, lf in (("otam", 70.0), ("trx", 64.0)):
        for name, accuracy in {"rgb": 65.0, "flow": 60.0, "lf": lf}.items():
            rows.append(entry(head, accuracy, arrangement=name))
    assert words.say_table1(rows) == [
        "AMEFU-NET (76.0 ± 0.4 %) is clearly highest, ahead of AMFIR (72.0 ± 0.4 %).",
        "AMFIR (72.0 ± 0.4 %) is clearly below AMEFU-NET (76.0 ± 0.4 %): "
        "place 2 of 4 methods, each at its best arrangement.",
        "Clearly above both single streams of the same head: LF for 1 of 2 heads.",
        "Clearly below the better one of the two: LF for 1.",
    ]


def test_table2_trusts_the_paired_difference_and_its_p() -> None:
    def arm(title: str, difference: float | None, width: float | None, p: float | None) -> dict[str, Any]:
        return {
            "base": "amfir",
            "method": title,
            "title": title,
            "difference": difference,
            "difference_ci95": width,
            "p": p,
        }

    rows = [
        arm("amfir", None, None, None),
        arm("without A", -2.0, 0.5, 0.001),
        arm("without B", -0.6, 0.5, 0.2),  # lost by the adjustment
        arm("without C", 0.4, 0.5, None),
        arm("without D", 3.0, 0.5, None),
        arm("without E", 9.0, None, None),  # of unknown width: nothing is claimed
    ]
    assert words.say_table2(rows) == [
        "Clearly below the full method: without A (\N{MINUS SIGN}2.00 ± 0.50 points).",
        "Clearly above the full method: without D (+3.00 ± 0.50 points).",
        "No clear difference from the full method: without B (\N{MINUS SIGN}0.60 ± 0.50 points), "
        "without C (+0.40 ± 0.50 points) and without E (+9.00 points).",
    ]


def test_lines_over_shots_say_who_leads_where_and_how_each_moves() -> None:
    rows = [entry("a", 70, shot=1), entry("a", 80, shot=5), entry("b", 69.5, shot=1), entry("b", 70, shot=5)]
    assert words.say_over([*rows, entry("c", None, shot=1)], "shot", ("shot", "shots")) == [
        "A is clearly highest at 5 shots.",
        "At 1 shot, A is highest with no clear difference from B.",
        "A rises from 70.0 ± 0.4 % at 1 shot to 80.0 ± 0.4 % at 5 shots.",
        "B shows no clear change from 69.5 ± 0.4 % at 1 shot to 70.0 ± 0.4 % at 5 shots.",
    ]
    assert words.say_over([entry("c", None)], "shot", ("shot", "shots")) == ["No accuracy was measured."]
    assert words.say_over([entry("a", 70)], "shot", ("shot", "shots")) == []


def test_chance_is_compared_at_the_largest_way() -> None:
    rows = [entry("a", 70.0, way=5), entry("a", 40.0, way=10)]
    assert words.say_chance(rows) == ["At 10 ways chance is 10.0 %; A (40.0 ± 0.4 %) is 4.0 times that."]


def test_free_energies_are_compared_as_they_are_printed() -> None:
    def line(name: str, last: float) -> list[dict[str, Any]]:
        points = ((100, -1.0), (2000, last))
        return [{"modality": name, "episode": episode, "free_energy": value} for episode, value in points]

    fell = "RGB: falls from \N{MINUS SIGN}1.00 after 100 training episodes to \N{MINUS SIGN}3.00 after 2,000."
    assert words.say_figure2(line("rgb", -3.0))[0] == fell
    assert "RGB and flow end level" in words.say_figure2(line("rgb", -3.0) + line("flow", -3.001))[-1].replace(
        "flow and RGB", "RGB and flow"
    )
    assert "is RGB (RGB" in words.say_figure2(line("flow", -2.0) + line("rgb", -3.0))[-1]


def test_strategies_are_held_against_none_unless_the_leader_says_it() -> None:
    def arms(*accuracies: float) -> list[dict[str, Any]]:
        return [
            entry(name, a, strategy=name) for name, a in zip(("none", "rgb-teacher", "mutual"), accuracies, strict=True)
        ]

    assert len(words.say_figure4(arms(60, 65, 70))) == 1
    assert (
        words.say_figure4(arms(70, 75, 69.5))[1]
        == "MUTUAL (69.5 ± 0.4 %) shows no clear difference from NONE (70.0 ± 0.4 %)."
    )


def test_criteria_are_held_against_the_better_constant() -> None:
    shares = {"entropy": 76.0, "free-energy": 74.0, "always-rgb": 24.0, "always-flow": 76.04}
    rows = [{"criterion": name, "selection_accuracy": share, "auroc": None} for name, share in shares.items()]
    assert words_checks.say_selection(rows) == [
        "Where exactly one modality is right, entropy picks it most often of all criteria, in 76.0 % of the cases.",
        "0 of 2 criteria come out above always taking flow (76.0 %); these shares carry no interval.",
    ]
    assert "No criterion could be scored" in words_checks.say_selection([])[0]
    alone = [{"criterion": "entropy", "selection_accuracy": None, "auroc": None, "auroc_rgb": 0.7}]
    assert words_checks.say_selection(alone) == ["With one modality there is nothing to select."]
    both = [{**alone[0], "auroc_flow": 0.6}]
    assert "No criterion could be scored" in words_checks.say_selection(both)[0]


def test_weights_are_judged_on_bins_with_enough_queries() -> None:
    rows = [
        {"modality": "rgb", "weight": w, "gain": g, "count": c}
        for w, g, c in ((0.3, -9, 99), (0.5, 1, 99), (0.8, 50, 3))
    ]
    assert words_checks.say_weights(rows) == [
        "The gain of RGB over the other goes from \N{MINUS SIGN}9.0 points at a weight of 0.30 "
        "to +1.0 points at a weight of 0.50.",
        "It grows with the weight in 1 of 1 steps between neighbouring bins.",
    ]
    assert "Too few bins" in words_checks.say_weights(rows[2:])[0]


def test_harms_say_what_ami_keeps() -> None:
    values = {
        ("ami", 0): 73.0,
        ("ami", 1): 60.0,
        ("late", 0): 72.0,
        ("late", 1): 59.9,
        ("flow alone", 0): 65.0,
        ("flow alone", 1): 65.0,
    }
    rows = [
        {
            "modality": "rgb",
            "fusion": fusion,
            "level": level,
            "accuracy": a,
            "ci95": 0.4,
        }
        for (fusion, level), a in values.items()
    ]
    assert words_checks.say_harm(rows) == [
        "RGB harmed, level 1: AMI falls from 73.0 ± 0.4 % to 60.0 ± 0.4 %: clearly below flow alone (65.0), "
        "no clear difference from late fusion (59.9).",
    ]


def test_weights_are_told_by_what_is_harmed() -> None:
    def row(harm: str, on: str, level: float, rgb: float, **more: float) -> dict[str, Any]:
        return {"harm": harm, "modality": on, "level": level, "weight_rgb": rgb, "weight_flow": 1 - rgb, **more}

    rows = [row("noise", "rgb", 0, 0.5), row("noise", "rgb", 2, 0.4), row("noise", "rgb", 1, 0.9)]
    rows += [row("missing", "flow", 0, 0.5), row("missing", "flow", 1, 0.4996), row("noise", "both", 1, 0.1)]
    assert words_checks.say_shift(rows) == [
        "From clean queries to the highest level, AMI takes weight from the one harmed or missing modality "
        "in 1 of 2 cases.",
        "AMI's mean weight of RGB where RGB is harmed, from clean to the highest level: noise 0.500 to 0.400.",
        "AMI's mean weight of flow where flow is harmed, from clean to the highest level: missing 0.500 to 0.500.",
    ]
    assert words_checks.say_shift(rows[-1:]) == [
        "Only harms of all modalities at once were measured; the table lists the weights."
    ]
    alone = [{"harm": "noise", "modality": "rgb", "level": level, "weight_rgb": 1.0} for level in (0, 1)]
    assert words_checks.say_shift(alone) == []


def test_transfer_is_held_against_no_training_and_training_at_home() -> None:
    rows = [
        entry("amfir", accuracy, source=source, target="b", untrained=60.0, untrained_ci95=0.4)
        for source, accuracy in (("a", 60.2), ("b", 70.0))
    ]
    assert words_checks.say_transfer(rows) == [
        "a → b (60.2 ± 0.4 %) shows no clear difference from untrained prototypes (60.0 ± 0.4 %) "
        "and is clearly below training on b itself (70.0 ± 0.4 %)."
    ]


def test_examples_count_where_the_right_modality_weighs_most() -> None:
    rows = [{"right": "rgb", "weights": {"rgb": w, "flow": 1 - w}} for w in (0.6, 0.5, 0.4)]
    assert words_checks.say_examples(rows)[1].endswith("in 1 of 3 of them.")
    assert "No clip" in words_checks.say_examples([])[0]
