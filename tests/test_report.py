"""Reports: what is said follows from the numbers, nothing breaks out of its place, bad input ends in one line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amfir.cache.errors import UserError
from amfir.pipeline.commands.report import report as command
from amfir.pipeline.report import words, words_checks
from amfir.pipeline.report.build import build_report
from amfir.pipeline.report.charts import picture_spec
from amfir.pipeline.report.document import Cell, Report, Table
from amfir.pipeline.report.latex import escaped, tables_of, to_latex
from amfir.pipeline.report.markdown import pictures, plain, to_markdown, to_png
from amfir.pipeline.report.page import to_html, to_script
from amfir.pipeline.report.pictures import small_picture
from amfir.pipeline.report.read import clean, read_folder, without_paths
from amfir.pipeline.report.wording import Score, apart, leader, listing, number, sentence
from amfir.pipeline.report.write import LIMIT, write_report

from .studyfolders import picture, study_info, write_all, write_study

EVIL = '</script><img src=x onerror=alert(1)>\u2028&|_$"'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report([read_folder(write_all(tmp_path_factory.mktemp("report") / "studies"))])


def entry(method: str, accuracy: float | None, ci95: float | None = 0.4, **more: Any) -> dict[str, Any]:
    row = {"method": method, "title": method.upper(), "arrangement": "own", "way": 5, "shot": 1}
    return {**row, "accuracy": accuracy, "ci95": ci95, **more}


# --- What may be said -----------------------------------------------------------------------------------------------


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
        "Clearly below the full method: without A (\N{MINUS SIGN}2.0 ± 0.5 points).",
        "Clearly above the full method: without D (+3.0 ± 0.5 points).",
        "No clear difference from the full method: without B (\N{MINUS SIGN}0.6 ± 0.5 points), "
        "without C (+0.4 ± 0.5 points) and without E (+9.0 points).",
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


def test_harms_say_what_ami_keeps_and_where_its_weight_goes() -> None:
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
            "weight_rgb": 0.5 - level / 10,
        }
        for (fusion, level), a in values.items()
    ]
    assert words_checks.say_harm(rows) == [
        "RGB harmed, level 1: AMI falls from 73.0 ± 0.4 % to 60.0 ± 0.4 %: clearly below flow alone (65.0), "
        "no clear difference from late fusion (59.9).",
        "AMI's mean weight of RGB falls from 0.500 to 0.400.",
    ]


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


# --- Pages ----------------------------------------------------------------------------------------------------------


def test_all_studies_make_one_page_of_bounded_size(made: Report) -> None:
    page = to_html(made)
    assert len(page.encode()) < LIMIT
    assert page.count("<h2 ") == 11  # ten studies and where they come from
    seen = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    assert re.findall(r"\b(?:nan|NaN|null|None|undefined)\b", seen) == []
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*', seen) == []
    assert "/home/somebody" not in page
    assert "amfir study features --split split.toml --out studies" in page
    for text in ("TRX, ami: too few clips", "Every method is trained with one seed.", "theirs, not measured here"):
        assert text in page


def test_missing_numbers_are_empty_cells_and_no_marks(made: Report) -> None:
    block = made.groups[0].sections[0].blocks[0]
    assert block.figure
    assert "Lost" not in json.dumps(block.figure.panels[0].spec["data"])
    lost = next(row for row in block.tables[0].rows if row[0].text == "Lost")
    assert {cell.text for cell in lost[1:]} == {""}


def test_every_harm_has_its_figure_and_a_missing_modality_dots(made: Report) -> None:
    blocks = next(section for section in made.groups[0].sections if section.name == "robustness").blocks
    headings = ["Noise", "Blur", "Dark", "Drop", "A missing modality", "Where AMI puts its weight"]
    assert [block.heading for block in blocks] == headings
    assert [panel.title for panel in blocks[4].figure.panels] == ["without RGB", "without flow"]  # type: ignore[union-attr]
    assert blocks[4].claims[0].startswith("RGB missing: AMI falls from ")
    assert blocks[0].figure
    assert "Level: deviation of the Gaussian noise, as a share of 255." in blocks[0].figure.caption
    # The builder lowers a modality's weight where that one is harmed, in four harms of two modalities.
    assert blocks[5].claims[0].endswith("in 8 of 8 cases.")


def test_reliability_diagrams_are_in_percent(made: Report) -> None:
    blocks = next(section for section in made.groups[0].sections if section.name == "reliability").blocks
    figure = blocks[2].figure
    assert figure
    marks = [mark for mark in figure.panels[0].spec["data"]["values"] if mark["series"] == "folds"]
    assert sum(mark["share"] for mark in marks) == pytest.approx(100)
    assert (marks[0]["low"], marks[-1]["high"]) == (pytest.approx(100 * 2 / 15), pytest.approx(100))
    assert all(mark["bars"] for mark in marks)


def test_names_cannot_break_out_of_their_place(tmp_path: Path) -> None:
    write_study(
        tmp_path / "s", "figure3", [entry(EVIL, 70.0, title=EVIL), entry(EVIL, 80.0, shot=5, title=EVIL)], notes=[EVIL]
    )
    clip = {"clip_id": EVIL, "label": EVIL, "right": "rgb", "predictions": {"rgb": EVIL}, "weights": {"rgb": 0.6}}
    write_study(tmp_path / "s", "examples", [clip])
    report = build_report([read_folder(tmp_path / "s")], [EVIL])
    page = to_html(report)
    assert "<img src=x" not in page
    assert page.lower().count("</script>") == 4
    assert "\u2028" not in to_script(EVIL)
    assert json.loads(to_script(EVIL)) == EVIL
    text = to_markdown(report)
    assert "<img" not in text
    assert "&lt;img" in text


def test_markdown_holds_a_picture_and_a_table_for_each_figure(made: Report) -> None:
    text = to_markdown(made)
    assert len(re.findall(r"^!\[", text, re.M)) == len(pictures(made))
    header = next(line for line in text.splitlines() if line.startswith("| method | RGB"))
    rule = text.splitlines()[text.splitlines().index(header) + 1]
    assert rule == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert plain("a_b|c\n<d>") == r"a\_b\|c &lt;d&gt;"


def test_a_picture_is_drawn_of_the_same_spec_under_one_legend(made: Report) -> None:
    figure = pictures(made)["figure4.png"]
    assert to_png(figure).startswith(b"\x89PNG")
    spec = picture_spec(figure)
    assert [panel["width"] for panel in spec["concat"]] == [300, 300]
    assert figure.panels[0].spec["data"] == spec["concat"][0]["data"]


def test_latex_escapes_what_it_would_take_for_commands(made: Report) -> None:
    assert escaped("100 % of a_b & {c} \\ #1 ~ ^ $") == (
        r"100 \% of a\_b \& \{c\} \textbackslash{} \#1 \textasciitilde{} \textasciicircum{} \$"
    )
    assert escaped("1 ± 2, \N{MINUS SIGN}3, a → b") == r"1 $\pm$ 2, $-$3, a $\to$ b"
    row = (Cell("[x]"), Cell("70.0 ± 0.4", 70.0, bold=True))
    text = to_latex(Table("t", "A table", ("name", "value"), (row,), (False, True)))
    assert r"\begin{tabular}{lr}" in text
    assert r"{[x]} & \textbf{70.0 $\pm$ 0.4} \\" in text
    for text in tables_of(made).values():
        widths = {line.count(" & ") for line in text.splitlines() if line.endswith(r"\\")}
        assert len(widths) == 1
        assert text.isascii()


def test_large_pictures_are_shrunk_and_others_refused(tmp_path: Path) -> None:
    import cv2
    import numpy as np

    noise = np.random.default_rng(0).integers(0, 255, (600, 800, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "big.png"), noise)
    kind, data = small_picture(tmp_path / "big.png")
    small = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert small is not None
    assert (kind, small.shape) == ("jpeg", (180, 240, 3))
    (tmp_path / "small.png").write_bytes(picture(4, 4, (1, 2, 3)))
    assert small_picture(tmp_path / "small.png")[0] == "png"
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="no picture that can be read"):
        small_picture(tmp_path / "bad.jpg")


def test_several_folders_are_groups_and_say_what_was_not_run(tmp_path: Path) -> None:
    rows = [entry("a", 70.0), entry("b", 60.0)]
    folders = [write_study(tmp_path / name, "table1", rows).parent for name in ("one", "two")]
    report = build_report([read_folder(folder) for folder in folders], ["First"])
    assert [group.title for group in report.groups] == ["First", "features"]
    assert "Transfer: tested on other data" in report.groups[0].missing
    sizes = write_report(report, tmp_path / "to")
    assert len([name for name in sizes if name.startswith("figures/")]) == 2
    assert {path.relative_to(tmp_path / "to").as_posix() for path in (tmp_path / "to").rglob("*.*")} == set(sizes)


def test_studies_of_other_settings_are_left_out(tmp_path: Path) -> None:
    write_study(tmp_path, "table1", [entry("a", 70.0)])
    write_study(tmp_path, "figure3", [entry("a", 70.0)])
    (tmp_path / "study.json").write_text(json.dumps({**study_info(), "studies": {"figure3": "figure3/result.json"}}))
    group = build_report([read_folder(tmp_path)]).groups[0]
    assert [section.name for section in group.sections] == ["figure3"]
    assert group.missing[-1] == "Table 1: every method (made with other settings)"


# --- Input ----------------------------------------------------------------------------------------------------------


def test_numbers_that_are_none_and_absolute_paths_do_not_get_in() -> None:
    assert clean({"/a/b/c": [float("nan"), float("inf"), 1.5, "x"]}) == {"c": [None, None, 1.5, "x"]}
    assert without_paths("--split=/a/b/s.toml file:///x/y/z /data and/or s3://a/b https://a/b") == (
        "--split=s.toml z /data and/or s3://a/b https://a/b"
    )
    assert without_paths("/data") == "data"
    assert without_paths("--to cache:/a/b/split.toml") == "--to cache:split.toml"


def test_an_example_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(picture(4, 4, (1, 2, 3)))
    clip = {"clip_id": "c", "label": "l", "right": "rgb", "frame": "../../secret.png", "flow": ""}
    write_study(tmp_path / "s", "examples", [clip])
    section = build_report([read_folder(tmp_path / "s")]).groups[0].sections[0]
    assert section.blocks[1].clips[0].pictures == ()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no study.json"),
        ({"study.json": "{}"}, "no study is finished"),
        ({"study.json": "{"}, "damaged JSON"),
        ({"study.json": "[]"}, "not a JSON object"),
        ({"study.json": "{}", "table1/result.json": '{"format": 2}'}, "format 2 is not the 1"),
        ({"study.json": "{}", "table1/result.json": '{"rows": 3}'}, "'rows' is no list"),
        ({"study.json": "{}", "figure3/result.json": '{"rows": [{"method": "a"}]}'}, "no usable 'title' in row 0"),
        ({"study.json": "{}", "table1/result.json": '{"rows": [], "notes": [1]}'}, "'notes' is no list"),
        ({"study.json": '{"studies": {}}', "table1/result.json": "{}"}, "made with the settings"),
        ({"study.json": "{}", "table1/result.json": "\udcff"}, "damaged JSON"),
    ],
)
def test_bad_folders_end_in_one_line(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=re.escape(said)) as error:
        read_folder(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_the_command_names_its_files_and_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    out = write_study(tmp_path / "s", "table1", [entry("a", 70.0), entry("b", 60.0)]).parent
    found = CliRunner().invoke(command, [str(out), "--to", str(tmp_path / "to"), "--json"], catch_exceptions=False)
    printed = json.loads(found.stdout)
    assert printed["files"]["report.html"] == (tmp_path / "to" / "report.html").stat().st_size
    with pytest.raises(UserError, match="2 titles for 1 folders"):
        CliRunner().invoke(command, [str(out), "--to", "x", "--title", "a", "--title", "b"], catch_exceptions=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        CliRunner().invoke(command, [str(out), "--to", str(tmp_path / "file")], catch_exceptions=False)
