"""`amfir cache export`: read back by numpy, by pyarrow and by the import."""

import csv
import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pyarrow import parquet

from amfir.cache import Row, Store, StreamSpec, StreamWriter, pack
from amfir.pipeline import export_features as module
from amfir.pipeline.cli import cli
from amfir.pipeline.export_features import export_features
from amfir.pipeline.export_names import file_name

from .cacherows import contents, segment_files

IDS = tuple(f"{label}/{i}.mp4" for label in ("run", "walk") for i in range(5))
ODD_IDS = (
    "walk/plain.mp4",
    "walk/deep/er.mp4",
    "walk/a.npy",
    "walk/a.npy/b",
    "walk/a",
    "walk/../../out",
    "../out",
    "/abs/out",
    "walk/.hidden",
    "walk/con.mp4",
    'walk/new\nline, and "comma"',
    "walk/caf\u00e9 \u4eba.mp4",
    "walk/a:b?.mp4",
    "walk/end.",
    "no class.mp4",
    "walk//double",
    "walk/" + "long" * 100,
    "..",
    "walk\\windows",
)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def export(cache: Path, out: Path, *options: object) -> Result:
    return run("cache", "export", cache, "--to", out, *options)


def refuses(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1


def make_cache(
    root: Path,
    ids: tuple[str, ...] = IDS,
    label: str | None = None,
    *,
    name: str = "rgb",
    views: int = 1,
    tokens: int = 0,
) -> StreamSpec:
    spec = StreamSpec(name, 3, views, 6, {"backbone": {"name": "small"}}, tokens=tokens)
    with StreamWriter(root, spec, max_rows=4) as writer:
        for number, clip in enumerate(ids):
            features = np.random.default_rng(number).normal(size=spec.row_shape).astype(np.float16)
            writer.add(Row(clip, label or clip.partition("/")[0], features, np.zeros((views, 3)), 1, 1))
    return spec


def rows(root: Path, name: str = "rgb") -> list[tuple[str, str, bytes]]:
    return [(clip, label, features) for clip, label, features, _ in contents(Store(root).read(name))]


@pytest.mark.parametrize(("views", "tokens"), [(1, 0), (2, 0), (1, 4), (2, 4)])
@pytest.mark.parametrize("packed", [False, True])
def test_import_of_the_export_gives_the_same_bits(tmp_path: Path, views: int, tokens: int, packed: bool) -> None:
    make_cache(tmp_path / "c", views=views, tokens=tokens)
    if packed:
        pack(tmp_path / "c")
    result = export(tmp_path / "c", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("import it again: ")]
    again = shlex.split(said.removeprefix("import it again: "))[1:]
    again[again.index("NEW")] = str(tmp_path / "new")
    assert run(*again).exit_code == 0
    assert rows(tmp_path / "new") == rows(tmp_path / "c")
    assert Store(tmp_path / "new").spec("rgb").row_shape == Store(tmp_path / "c").spec("rgb").row_shape


def test_the_files_are_plain_halves_below_their_classes(tmp_path: Path) -> None:
    spec = make_cache(tmp_path / "c")
    make_cache(tmp_path / "c", name="flow", views=2)
    assert export(tmp_path / "c", tmp_path / "out").exit_code == 0
    array = np.load(tmp_path / "out/rgb/walk/2.mp4.npy", allow_pickle=False)
    assert (array.dtype.str, array.shape) == ("<f2", (3, 6))
    np.testing.assert_array_equal(array, np.random.default_rng(7).normal(size=(3, 6)).astype(np.float16))
    assert np.load(tmp_path / "out/flow/run/0.mp4.npy").shape == (2, 3, 6)
    with (tmp_path / "out/rgb/labels.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert listed[0] == {"id": "run/0.mp4", "label": "run", "file": "run/0.mp4.npy"}
    assert len(listed) == 10
    assert json.loads((tmp_path / "out/rgb/spec.json").read_text())["fingerprint"] == spec.fingerprint


def test_an_export_can_be_imported_without_its_list_where_ids_are_ordinary(tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    export(tmp_path / "c", tmp_path / "out")
    options = ("--cache", tmp_path / "new", "--stream", "rgb", "--frames", 3)
    assert run("cache", "import", tmp_path / "out/rgb", *options).exit_code == 0
    assert rows(tmp_path / "new") == rows(tmp_path / "c")


def test_no_id_leads_out_of_the_folder_and_all_come_back(tmp_path: Path) -> None:
    make_cache(tmp_path / "c", ODD_IDS, "walk")
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "c")}
    assert export(tmp_path / "c", tmp_path / "out").exit_code == 0
    made = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "c")} - before
    assert all(path == tmp_path / "out" or path.is_relative_to(tmp_path / "out") for path in made)
    files = [path for path in made if path.suffix == ".npy" and path.is_file()]
    assert len(files) == len(ODD_IDS)
    assert all(".." not in path.parts and not path.is_symlink() for path in files)
    labels = tmp_path / "out/rgb/labels.csv"
    options = ("--cache", tmp_path / "new", "--stream", "rgb", "--labels", labels, "--frames", 3)
    result = run("cache", "import", tmp_path / "out/rgb", *options)
    assert result.exit_code == 0, result.stderr
    assert rows(tmp_path / "new") == rows(tmp_path / "c")


@pytest.mark.parametrize("label", ["..", "/", "../..", "a/b", ".hidden", "nul", "x.npy", "\n", "walk "])
def test_no_class_leads_out_of_the_folder(label: str) -> None:
    for clip in (*ODD_IDS, f"{label}/clip", label):
        path = Path(file_name(clip, label))
        assert not path.is_absolute()
        assert len(path.parts) >= 2
        assert all(part not in ("..", ".") and not part.startswith(".") for part in path.parts)
        assert all(len(part.encode()) < 255 for part in path.parts)
        assert not {"con", "con.mp4", "nul"}.intersection(path.parts)
        assert file_name(clip, label).isprintable()


def test_ids_that_are_no_utf8_get_escapes(tmp_path: Path) -> None:
    make_cache(tmp_path / "c", (os.fsdecode(b"walk/caf\xe9.mp4"), "walk/b.mp4"))
    result = export(tmp_path / "c", tmp_path / "out")
    assert "1 ids of stream 'rgb' are no UTF-8" in result.stderr
    text = (tmp_path / "out/rgb/labels.csv").read_text(encoding="utf-8")
    assert r"walk/caf\udce9.mp4,walk," in text
    assert export(tmp_path / "c", tmp_path / "tables", "--format", "parquet").exit_code == 0
    assert r"walk/caf\udce9.mp4" in parquet.read_table(tmp_path / "tables/rgb.parquet")["id"].to_pylist()


@pytest.mark.parametrize(("views", "tokens"), [(1, 0), (2, 0), (2, 4)])
def test_parquet_has_a_row_a_frame(tmp_path: Path, views: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", 4 * 3 * 18 * views * max(1, tokens))  # three clips a row group
    spec = make_cache(tmp_path / "c", views=views, tokens=tokens)
    result = export(tmp_path / "c", tmp_path / "out", "--format", "parquet", "--json")
    assert json.loads(result.stdout)["streams"]["rgb"]["written"] == 10
    file = parquet.ParquetFile(tmp_path / "out/rgb.parquet")
    assert file.num_row_groups == 4
    assert file.schema_arrow.metadata[b"amfir.fingerprint"].decode() == spec.fingerprint
    assert StreamSpec.from_json(json.loads(file.schema_arrow.metadata[b"amfir.spec"])) == spec
    assert str(file.schema_arrow.field("feature").type) == "fixed_size_list<element: float>[6]"
    wanted: dict[tuple[Any, ...], Any] = {}
    for number, clip in enumerate(IDS):
        values = np.random.default_rng(number).normal(size=spec.row_shape).astype(np.float16)
        for place in np.ndindex(*spec.row_shape[:-1]):
            wanted[(clip, clip[:-6], *place)] = values[place].astype(float).tolist()
    names = ["id", "label", "view", "frame", *(["token"] if tokens else [])]
    assert file.schema_arrow.names == [*names, "feature"]
    found = {tuple(row[name] for name in names): row["feature"] for row in file.read().to_pylist()}
    assert found == wanted
    assert file.metadata.num_rows == len(wanted)


def test_interrupted_and_started_again_the_export_is_whole(tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    make_cache(tmp_path / "c", name="flow")

    def stop(ready: int, *_: int) -> None:
        if ready >= 14:  # row groups of Parquet are counted at once
            raise KeyboardInterrupt

    for form, there in (("npy", 14), ("parquet", 10)):
        with pytest.raises(KeyboardInterrupt):
            export_features(tmp_path / "c", tmp_path / form, ("rgb", "flow"), form, stop)
        assert not list((tmp_path / form).rglob("*.tmp"))
        done = export_features(tmp_path / "c", tmp_path / form, ("rgb", "flow"), form)
        assert sum(made.written for made in done.values()) == 20 - there
        export_features(tmp_path / "c", tmp_path / f"{form}-whole", (), form)
        assert tree(tmp_path / form) == tree(tmp_path / f"{form}-whole")
        assert export(tmp_path / "c", tmp_path / form, "--format", form).exit_code == 0


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name != "export.json"
    }


def test_a_file_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    export(tmp_path / "c", tmp_path / "out")
    path = tmp_path / "out/rgb/run/1.mp4.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    assert json.loads(export(tmp_path / "c", tmp_path / "out", "--json").stdout)["streams"]["rgb"]["written"] == 1
    assert path.read_bytes() == whole


def test_a_second_stream_joins_an_export(tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    make_cache(tmp_path / "c", name="flow")
    assert export(tmp_path / "c", tmp_path / "out", "--stream", "flow").exit_code == 0
    assert not (tmp_path / "out/rgb").exists()
    assert export(tmp_path / "c", tmp_path / "out", "--stream", "rgb").exit_code == 0
    assert set(json.loads((tmp_path / "out/export.json").read_text())["streams"]) == {"rgb", "flow"}


def test_other_content_is_never_overwritten(tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    make_cache(tmp_path / "other", ("run/9.mp4",))
    export(tmp_path / "c", tmp_path / "out")
    refuses(export(tmp_path / "other", tmp_path / "out"), "an export of another stream 'rgb', or the cache has changed")
    refuses(export(tmp_path / "c", tmp_path / "out", "--format", "parquet"), "holds an export of another format")
    make_cache(tmp_path / "c", ("run/new.mp4",))
    refuses(export(tmp_path / "c", tmp_path / "out"), "the cache has changed since")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note").touch()
    refuses(export(tmp_path / "c", tmp_path / "full"), "the folder holds other files")
    refuses(export(tmp_path / "c", tmp_path / "full/note"), "is no folder; --to")
    refuses(export(tmp_path / "c", tmp_path / "full/note/below"), "cannot write the export (Not a directory)")
    refuses(export(tmp_path / "c", tmp_path / "c/rgb/out"), "the export would lie in the cache")
    (tmp_path / "out/export.json").write_text("{")
    refuses(export(tmp_path / "c", tmp_path / "out"), "export.json is unreadable")


def test_what_is_asked_for_wrongly(tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    refuses(
        export(tmp_path / "c", tmp_path / "out", "--format", "parket"),
        "unknown format 'parket'; did you mean 'parquet'",
    )
    refuses(export(tmp_path / "c", tmp_path / "out", "--stream", "flow"), "no stream 'flow'")
    refuses(export(tmp_path / "none", tmp_path / "out"), "no amfir cache")
    assert not (tmp_path / "out").exists()
    segment = segment_files(tmp_path / "c")[0]
    segment.write_bytes(segment.read_bytes()[:-40])
    refuses(export(tmp_path / "c", tmp_path / "out"), "damaged cache")


def test_a_pack_during_the_export_loses_nothing(tmp_path: Path) -> None:
    make_cache(tmp_path / "c")
    assert len(segment_files(tmp_path / "c")) > 1

    counts = []

    def disturb(ready: int, *_: int) -> None:
        counts.append(ready)
        if ready == 2:
            pack(tmp_path / "c")

    done = export_features(tmp_path / "c", tmp_path / "out", (), "npy", disturb)
    assert (done["rgb"].clips, done["rgb"].written) == (10, 10)
    assert counts == list(range(1, 11))
    export_features(tmp_path / "c", tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
