"""What reports read: bad input ends in one line, and nothing of it gets where it must not."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from amfir.cache.errors import UserError
from amfir.pipeline.commands.report import report as command
from amfir.pipeline.report.build import build_report
from amfir.pipeline.report.page import to_html
from amfir.pipeline.report.read import clean, read_folder, without_paths
from amfir.pipeline.report.write import write_report

from .studyfolders import entry, picture, write_study

ENERGY = {"method": "amfir", "modality": "rgb", "shot": 1, "episode": 100, "free_energy": -1.0}


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
        ({"study.json": '{"config": "x"}', "table1/result.json": '{"rows": []}'}, "'config' is no object"),
        ({"study.json": "{}", "table1/result.json": '{"rows": [], "settings": [1]}'}, "'settings' is no object"),
        ({"study.json": "{}", "table1/result.json": '{"rows": [], "extra": "x"}'}, "'extra' is no object"),
        (
            {"study.json": "{}", "figure2/result.json": json.dumps({"rows": [{**ENERGY, "episode": None}]})},
            "no usable 'episode' in row 0 (None)",
        ),
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


def reliability(**changes: Any) -> dict[str, Any]:
    """The `extra` of a study, with a change to its first calibration."""
    bins = [{"low": 0.2, "high": 0.3, "count": 4, "confidence": 25.0, "accuracy": 50.0}]
    row = {"shot": 1, "view": "rgb", "temperatures": "none", "ece": 1.0, "bins": bins, **changes}
    return {"calibration": [{key: value for key, value in row.items() if value is not ...}]}


@pytest.mark.parametrize(
    ("study", "rows", "extra"),
    [
        ("reliability", [], reliability(ece=...)),
        ("reliability", [], reliability(bins=...)),
        ("reliability", [], reliability(bins=[{"count": 4, "confidence": 25.0, "accuracy": 50.0}])),
        ("reliability", [], {"weights": 5}),
        ("table1", [entry("a", 70.0, way=0)], {}),
        ("table1", [entry("a", 70.0)], {"published": ["x"]}),
        ("examples", [{"clip_id": "c", "label": "l", "right": "rgb", "weights": {"rgb": "x"}}], {}),
        ("examples", [{"clip_id": "c", "label": "l", "right": "rgb", "free_energy": 3}], {}),
    ],
)
def test_results_of_another_shape_end_in_one_line(
    tmp_path: Path, study: str, rows: list[dict[str, Any]], extra: dict[str, Any]
) -> None:
    file = write_study(tmp_path, study, rows, extra=extra) / "result.json"
    with pytest.raises(UserError, match="not as studies write it") as error:
        to_html(build_report([read_folder(tmp_path)]))
    assert "\n" not in str(error.value)
    assert f"{str(file)!r}; delete it and run `amfir study` again" in str(error.value)


def test_the_shape_that_studies_write_is_accepted(tmp_path: Path) -> None:
    write_study(tmp_path, "reliability", [], extra=reliability())
    assert len(build_report([read_folder(tmp_path)]).groups[0].sections[0].blocks) == 1


def test_names_that_are_not_utf8_are_written_escaped(tmp_path: Path) -> None:
    clip = {"clip_id": "a\udcff.mp4", "label": "b\udcfe", "right": "rgb", "predictions": {"rgb": "b\udcfe"}}
    write_study(tmp_path / "s", "examples", [{**clip, "weights": {"rgb\udcfd": 1.0}}])
    report = build_report([read_folder(tmp_path / "s")], ["title\udcfc"])
    write_report(report, tmp_path / "to")
    page = (tmp_path / "to" / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in ("a\\udcff.mp4", "b\\udcfe", "RGB\\udcfd", "title\\udcfc"))


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
