"""Reports as pages, Markdown and LaTeX: they hold the same numbers, and nothing breaks out of its place."""

import json
import re
from pathlib import Path

import pytest

from amfir.cache.errors import UserError
from amfir.pipeline.report.build import build_report
from amfir.pipeline.report.charts import picture_spec
from amfir.pipeline.report.document import Block, Cell, Report, Table
from amfir.pipeline.report.latex import escaped, tables_of, to_latex
from amfir.pipeline.report.markdown import pictures, plain, to_markdown, to_png
from amfir.pipeline.report.page import to_html, to_script
from amfir.pipeline.report.pictures import small_picture
from amfir.pipeline.report.read import read_folder
from amfir.pipeline.report.write import LIMIT, write_report

from .studyfolders import entry, picture, study_info, write_all, write_one_modality, write_study

EVIL = '</script><img src=x onerror=alert(1)>\u2028&|_$"'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return build_report([read_folder(write_all(tmp_path_factory.mktemp("report") / "studies"))])


def blocks_of(report: Report, name: str) -> tuple[Block, ...]:
    """Blocks of a study of the first folder."""
    return next(section for section in report.groups[0].sections if section.name == name).blocks


def body_of(table: Table) -> list[list[str]]:
    """What its cells say."""
    return [[cell.text for cell in row] for row in table.rows]


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
    blocks = blocks_of(made, "robustness")
    headings = ["Noise", "Blur", "Dark", "Drop", "A missing modality", "Where AMI puts its weight"]
    assert [block.heading for block in blocks] == headings
    assert [panel.title for panel in blocks[4].figure.panels] == ["without RGB", "without flow"]  # type: ignore[union-attr]
    assert blocks[4].claims[0].startswith("RGB missing: AMI falls from ")
    assert blocks[0].figure
    assert "Level: deviation of the Gaussian noise, as a share of 255." in blocks[0].figure.caption


def test_weights_are_told_beside_a_table_that_holds_them_missing_modalities_too(made: Report) -> None:
    *harms, block = blocks_of(made, "robustness")
    assert not any("mean weight" in claim for harm in harms for claim in harm.claims)
    # The builder lowers a modality's weight where that one is harmed or missing, in five harms of two modalities.
    assert block.claims[0].endswith("in 10 of 10 cases.")
    assert block.claims[1] == (
        "AMI's mean weight of RGB where RGB is harmed, from clean to the highest level: noise 0.520 to 0.460, "
        "blur 0.520 to 0.460, dark 0.520 to 0.460, drop 0.520 to 0.460 and missing 0.520 to 0.490."
    )
    table = block.tables[0]
    assert table.header == ("harm", "harmed", "level", "weight of RGB", "weight of flow")
    assert ["missing", "flow", "1", "0.550", "0.450"] in body_of(table)
    assert ["noise", "both", "0.25", "0.520", "0.480"] in body_of(table)
    assert block.figure
    drawn = [mark for panel in block.figure.panels for mark in panel.spec["data"]["values"]]
    assert len(table.rows) == len(drawn) + 4  # the missing ones have no level to draw


def test_figures_hold_no_number_that_no_table_holds(made: Report) -> None:
    energies = blocks_of(made, "figure2")[0]
    assert energies.tables[0].header == ("method", "shot", "training episodes", "RGB", "flow")
    assert body_of(energies.tables[0])[1] == ["AMFIR", "1", "100", "\N{MINUS SIGN}1.13", "\N{MINUS SIGN}0.85"]
    assert len(energies.tables[0].rows) == 10
    bins = blocks_of(made, "reliability")[2].tables[1]
    assert bins.header == ("view", "temperatures", "confidence from", "to", "queries", "mean confidence", "accuracy")
    assert body_of(bins)[0] == ["RGB", "none", "13.3", "20.0", "18", "16.7", "4.4"]
    assert len(bins.rows) == 4 * 3 * 13
    assert bins.folded
    assert body_of(blocks_of(made, "figure5")[0].tables[0])[-1] == [
        "chance",
        "20.00",
        "16.67",
        "14.29",
        "12.50",
        "11.11",
    ]


def test_figure2_says_how_many_episodes_its_last_point_averages(tmp_path: Path) -> None:
    def caption(*episodes: int) -> str:
        keys = {"method": "amfir", "shot": 1, "modality": "rgb"}
        rows = [{**keys, "episode": at, "free_energy": -at / 100} for at in episodes]
        write_study(tmp_path, "figure2", rows)
        figure = blocks_of(build_report([read_folder(tmp_path)]), "figure2")[0].figure
        assert figure
        return figure.caption

    assert "Each point averages the training episodes since the one before, the last one only 20 of them." in (
        caption(160, 320, 480, 500)
    )
    assert "Each point averages the training episodes since the one before." in caption(160, 320)
    assert "\N{MINUS SIGN}4.0" in caption(160, 320)


def test_one_modality_leaves_nothing_to_select_or_to_weigh(tmp_path: Path) -> None:
    report = build_report([read_folder(write_one_modality(tmp_path))])
    selection, *_ = blocks_of(report, "reliability")
    assert selection.claims == ("1 shot: With one modality there is nothing to select.",)
    assert selection.tables[0].header == ("criterion", "AUROC of RGB, 1 shot")
    assert [block.heading for block in blocks_of(report, "robustness")] == ["Noise"]
    assert "weight" not in to_markdown(report)


def test_a_published_number_is_counted_whether_or_not_it_was_measured(made: Report) -> None:
    block = blocks_of(made, "table1")[-1]
    assert block.claims == ("The papers report 1 number for this data set and these backbones.",)


def test_a_missing_modality_is_a_column(made: Report) -> None:
    table = blocks_of(made, "robustness")[4].tables[0]
    assert table.header == ("fusion", "clean", "without RGB", "without flow")
    assert [row[0] for row in body_of(table)] == ["AMI", "late fusion", "select", "RGB alone", "flow alone"]


def test_reliability_diagrams_are_in_percent(made: Report) -> None:
    blocks = blocks_of(made, "reliability")
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


def test_names_of_studies_make_plain_file_names_and_ids(tmp_path: Path) -> None:
    row = entry("x", 70.0, base=EVIL, difference=None, difference_ci95=None)
    write_study(tmp_path / "s", "table2", [row, {**row, "base": "../../up"}])
    harm = {"harm": "a/b" + EVIL, "modality": "rgb", "fusion": "ami", "level": 0, "weight_rgb": 0.5, "weight_flow": 0.5}
    rows = [{**entry("amfir", 70.0 - level), **harm, "level": level} for level in (0, 1)]
    write_study(tmp_path / "s", "robustness", rows)
    report = build_report([read_folder(tmp_path / "s")])
    assert all(re.fullmatch(r"[a-z0-9-]+\.(png|tex)", name) for name in [*pictures(report), *tables_of(report)])
    ids = re.findall(r'\bid="([^"]*)"', re.sub(r"<script\b.*?</script>", "", to_html(report), flags=re.S))
    assert [name for name in ids if not re.fullmatch(r"[a-z0-9-]+", name)] == []


def test_markdown_shows_clips_with_their_pictures_and_criteria(tmp_path: Path, made: Report) -> None:
    lines = to_markdown(made).splitlines()
    start = lines.index("| frame | flow | clip | class | predictions | AMI weights | right alone | free energy |")
    assert lines[start + 2] == (
        "| ![a frame of rgb/clip\\_0.mp4](figures/examples-1-frame.png) "
        "| ![optical flow of rgb/clip\\_0.mp4](figures/examples-1-flow.png) | rgb/clip\\_0.mp4 | wave "
        "| RGB: wave, flow: jump | RGB 0.55, flow 0.45 | in 80 of 120 episodes "
        "| RGB \N{MINUS SIGN}2.50, flow \N{MINUS SIGN}1.50 |"
    )
    linked = set(re.findall(r"\]\((figures/[^)]*)\)", to_markdown(made)))
    written = {path.relative_to(tmp_path).as_posix() for path in write_and_list(made, tmp_path)}
    assert linked == written
    assert len([name for name in written if "/examples-" in name]) == 12


def write_and_list(report: Report, folder: Path) -> list[Path]:
    write_report(report, folder)
    return list((folder / "figures").iterdir())


def test_long_tables_of_points_fold_in_markdown_and_break_over_pages_in_latex(made: Report) -> None:
    text = to_markdown(made)
    assert (
        text.count("<details>")
        == text.count("</details>")
        == len([t for t in tables_of(made).values() if "longtable}" in t])
    )
    assert "<details>\n<summary>AMI&#x27;s mean" in text or "<details>\n<summary>AMI's mean" in text


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
    assert spec["config"]["axis"]["labelLimit"] >= 330  # as on the page: names of criteria are long
    assert figure.panels[0].spec["data"] == spec["concat"][0]["data"]


def test_latex_escapes_what_it_would_take_for_commands(made: Report) -> None:
    assert escaped("100 % of a_b & {c} \\ #1 ~ ^ $") == (
        r"100 \% of a\_b \& \{c\} \textbackslash{} \#1 \textasciitilde{} \textasciicircum{} \$"
    )
    assert escaped("1 ± 2, \N{MINUS SIGN}3, a → b") == r"1 $\pm$ 2, $-$3, a $\to$ b"
    assert escaped('a "b"') == r"a {\char34}b{\char34}"
    row = (Cell("[x]"), Cell("70.0 ± 0.4", 70.0, bold=True))
    text = to_latex(Table("t", "A table", ("name", "value"), (row,), (False, True)))
    assert r"\begin{tabular}{lr}" in text
    assert r"{[x]} & \textbf{70.0 $\pm$ 0.4} \\" in text
    for text in tables_of(made).values():
        widths = {line.count(" & ") for line in text.splitlines() if line.endswith(r"\\") and r"\caption" not in line}
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
