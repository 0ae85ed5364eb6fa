"""`amfir cache import`: files written by numpy, scipy, h5py and torch, against what was written into them."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from amfir.cache import Store
from amfir.cache.errors import UserError
from amfir.extract.reasons import REASONS as EXTRACT_REASONS
from amfir.pipeline import feature_files
from amfir.pipeline.cli import cli
from amfir.pipeline.feature_files import REASONS, ArrayError, read_array
from amfir.pipeline.feature_labels import label_clips
from amfir.pipeline.feature_process import ReadingProcess
from amfir.pipeline.feature_source import open_features
from amfir.pipeline.features import load_features
from amfir.pipeline.import_features import import_features
from amfir.pipeline.import_spec import ImportConfig

Array = NDArray[Any]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def import_into(cache: Path, features: Path, *options: object, stream: str = "rgb") -> Result:
    return run("cache", "import", features, "--cache", cache, "--stream", stream, *options)


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def slow_row(array: Array, frames: int) -> Array:
    """[T, D] by a loop, from the definition: frame floor((i + 1/2) n / T), rounded to float16."""
    rows = [array[int((i + 0.5) * len(array) / frames)] for i in range(frames)]
    return np.array([[np.float16(float(value)) for value in row] for row in rows])


def held(cache: Path, stream: str = "rgb") -> dict[str, tuple[str, Array]]:
    made = Store(cache).read(stream)
    return {
        clip: (label, row) for clip, label, row in zip(made.clip_ids, made.labels, made.features[:, 0], strict=True)
    }


def save_npy(path: Path, array: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)


def save_pt(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)


def save_mat73(path: Path, arrays: Mapping[str, Array]) -> None:
    """As MATLAB does: 512 bytes of text, then HDF5 with the last axis first."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file[name] = array.T
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


WRITERS: dict[str, Callable[[Path, Array], object]] = {
    "npy": lambda path, array: np.save(path.with_suffix(".npy"), array),
    "npz": lambda path, array: np.savez(path.with_suffix(".npz"), feat=array),
    "packed npz": lambda path, array: np.savez_compressed(path.with_suffix(".npz"), feat=array),
    "mat": lambda path, array: scipy.io.savemat(path.with_suffix(".mat"), {"feat": array}),
    "packed mat": lambda path, array: scipy.io.savemat(path.with_suffix(".mat"), {"feat": array}, do_compression=True),
    "mat73": lambda path, array: save_mat73(path.with_suffix(".mat"), {"feat": array}),
    "pt": lambda path, array: torch.save(torch.from_numpy(array), path.with_suffix(".pt")),
    "pt dict": lambda path, array: torch.save({"feat": torch.from_numpy(array)}, path.with_suffix(".pt")),
    "old pt": lambda path, array: torch.save(
        torch.from_numpy(array), path.with_suffix(".pt"), _use_new_zipfile_serialization=False
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of three clips of 5, 8, and 25 frames."""
    for label in ("run", "walk"):
        for clip, frames in enumerate((5, 8, 25)):
            save_npy(tmp_path / f"f/{label}/clip {clip}.npy", numbers(frames, 6, seed=hash_of(label, clip)))
    return tmp_path / "f"


def hash_of(label: str, clip: int) -> int:
    return 10 * len(label) + clip


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_gives_the_numbers_that_were_written(tmp_path: Path, form: str) -> None:
    (tmp_path / "f/run").mkdir(parents=True)
    arrays = {f"run/v{i}": numbers(frames, 4, seed=i) for i, frames in enumerate((3, 8, 20))}
    for name, array in arrays.items():
        WRITERS[form](tmp_path / "f" / f"{name}.x", array)
    result = import_into(tmp_path / "c", tmp_path / "f")
    assert result.exit_code == 0, result.stderr
    found = held(tmp_path / "c")
    assert found.keys() == arrays.keys()
    for name, (label, row) in found.items():
        assert label == "run"
        np.testing.assert_array_equal(row, slow_row(arrays[name], 8))


def test_frames_are_those_at_the_centres_of_equal_segments(tmp_path: Path) -> None:
    save_npy(tmp_path / "f/a/long.npy", np.arange(25.0)[:, None] * [1, 2])
    save_npy(tmp_path / "f/a/short.npy", np.arange(3.0)[:, None] * [1, 2])
    assert import_into(tmp_path / "c", tmp_path / "f").exit_code == 0
    found = held(tmp_path / "c")
    assert found["a/long"][1][:, 0].tolist() == [1, 4, 7, 10, 14, 17, 20, 23]
    assert found["a/short"][1][:, 0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("dtype", ["<f2", "<f4", ">f4", ">f8", "<i2", ">i4", "<u8", "|i1", "|b1", "<g"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_real_dtype_byte_order_and_memory_order(tmp_path: Path, dtype: str, order: Any) -> None:
    array = np.asarray((numbers(4, 5) * (20 if dtype != "<u8" else 0) + 3).astype(dtype), order=order)
    save_npy(tmp_path / "f/a/x.npy", array)
    assert import_into(tmp_path / "c", tmp_path / "f", "--frames", 4).exit_code == 0
    np.testing.assert_array_equal(held(tmp_path / "c")["a/x"][1], slow_row(array, 4))


def test_tensors_of_narrow_floats_and_with_gradients(tmp_path: Path) -> None:
    values = torch.tensor([[1.5, -2.25, 0.007812], [3.0, 0.1, -96.0]])
    save_pt(tmp_path / "f/a/narrow.pt", values.bfloat16())
    save_pt(tmp_path / "f/a/learned.pth", values.clone().requires_grad_())
    assert import_into(tmp_path / "c", tmp_path / "f", "--frames", 2).exit_code == 0
    found = held(tmp_path / "c")
    np.testing.assert_array_equal(found["a/narrow"][1], values.bfloat16().float().numpy().astype(np.float16))
    np.testing.assert_array_equal(found["a/learned"][1], values.numpy().astype(np.float16))


def test_vectors_make_a_stream_of_one_frame(tmp_path: Path) -> None:
    for form in ("npy", "mat", "pt"):
        (tmp_path / form / "a").mkdir(parents=True)
        array = numbers(7)[:, None] if form == "mat" else numbers(7)  # MATLAB knows columns only
        WRITERS[form](tmp_path / form / "a/x.x", array)
        assert import_into(tmp_path / f"c-{form}", tmp_path / form).exit_code == 0
        np.testing.assert_array_equal(held(tmp_path / f"c-{form}")["a/x"][1], numbers(7).astype(np.float16)[None])


@pytest.mark.parametrize(
    ("axes", "shape", "row"), [("vtd", (3, 8, 4), (3, 8, 4)), ("vtpd", (2, 8, 5, 4), (2, 8, 5, 4))]
)
def test_views_and_tokens_are_taken_where_the_axes_are_named(
    tmp_path: Path, axes: str, shape: tuple[int, ...], row: tuple[int, ...]
) -> None:
    save_npy(tmp_path / "f/a/x.npy", numbers(*shape))
    refused = import_into(tmp_path / "c", tmp_path / "f")
    assert refused.exit_code == 2
    assert f"{list(shape)} is neither [T, D] nor [D]; in a/x.npy; name the axes with --axes" in refused.stderr
    assert import_into(tmp_path / "c", tmp_path / "f", "--axes", axes).exit_code == 0
    made = Store(tmp_path / "c").read("rgb")
    assert made.spec.row_shape == row
    np.testing.assert_array_equal(made.features[0], numbers(*shape).astype(np.float16))


def test_two_modalities_agree_on_their_clips(tmp_path: Path, folder: Path) -> None:
    for path in folder.rglob("*.npy"):
        save_pt(tmp_path / "flow" / path.relative_to(folder).with_suffix(".pt"), torch.ones(4, 3))
    assert import_into(tmp_path / "c", folder).exit_code == 0
    assert import_into(tmp_path / "c", tmp_path / "flow", stream="flow").exit_code == 0
    data = load_features(tmp_path / "c")
    assert data.clip_ids == [f"{label}/clip {i}" for label in ("run", "walk") for i in range(3)]
    assert {name: tuple(values.shape) for name, values in data.features.items()} == {
        "rgb": (6, 1, 8, 6),
        "flow": (6, 1, 8, 3),
    }


def test_an_imported_cache_evaluates_and_trains(tmp_path: Path) -> None:
    for label in range(8):
        for clip in range(4):
            centre = 2 * np.random.default_rng(label).normal(size=10)
            save_npy(tmp_path / f"f/class {label}/{clip}.npy", centre + numbers(3, 10, seed=100 * label + clip))
    assert import_into(tmp_path / "c", tmp_path / "f").exit_code == 0
    episodes = ("--split", "random:0", "--way", 3, "--query", 2)
    result = run("eval", tmp_path / "c", *episodes, "--episodes", 200, "--json")
    assert json.loads(result.stdout)["accuracy"] > 80
    trained = run("train", tmp_path / "c", *episodes, "--method", "temporal", "--run", tmp_path / "r", "--episodes", 16)
    assert trained.exit_code == 0, trained.stderr
    assert run("eval", tmp_path / "c", *episodes, "--run", tmp_path / "r", "--episodes", 50).exit_code == 0


def test_hdf5_with_a_dataset_a_clip(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["walk/a"], file["walk/deep/b"], file["run/c"] = numbers(8, 3), numbers(8, 3, seed=1), numbers(8, 3, seed=2)
    assert import_into(tmp_path / "c", tmp_path / "f.h5").exit_code == 0
    found = held(tmp_path / "c")
    assert {clip: label for clip, (label, _) in found.items()} == {
        "walk/a": "walk",
        "walk/deep/b": "walk",
        "run/c": "run",
    }
    np.testing.assert_array_equal(found["walk/deep/b"][1], numbers(8, 3, seed=1).astype(np.float16))


def test_hdf5_with_a_group_a_clip(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for i in range(2):
            file[f"video_{i}/features"], file[f"video_{i}/length"] = numbers(8, 3, seed=i), 8
    (tmp_path / "l.csv").write_text("id,label\nvideo_0,walk\nvideo_1,run\n")
    options = ("--labels", tmp_path / "l.csv", "--key", "features")
    assert import_into(tmp_path / "c", tmp_path / "f.h5", *options).exit_code == 0
    assert held(tmp_path / "c")["video_1"][0] == "run"
    np.testing.assert_array_equal(held(tmp_path / "c")["video_1"][1], numbers(8, 3, seed=1).astype(np.float16))


@pytest.mark.parametrize("kind", ["texts", "bytes", "numbers"])
@pytest.mark.parametrize("frames", [None, 8])
def test_hdf5_with_one_dataset_of_all_clips(tmp_path: Path, kind: str, frames: int | None) -> None:
    ids: list[Any] = [11, 7, 23]
    array = numbers(3, *([frames] if frames else []), 4)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"] = array
        file["ids"] = {"texts": [f"{i}" for i in ids], "bytes": np.array([b"%d" % i for i in ids]), "numbers": ids}[
            kind
        ]
    (tmp_path / "l.csv").write_text("id,label\n7,walk\n23,run\n11,walk\n")
    options = ("--labels", tmp_path / "l.csv", "--ids", "ids")
    assert import_into(tmp_path / "c", tmp_path / "f.h5", *options).exit_code == 0
    found = held(tmp_path / "c")
    assert found["7"][0] == "walk"
    for row, clip in enumerate(ids):
        np.testing.assert_array_equal(found[str(clip)][1], array[row].astype(np.float16).reshape(-1, 4))


@pytest.mark.parametrize(
    ("ids", "options", "message"),
    [
        (["a", "b"], ["--ids", "ids"], "2 ids for 3 clips"),
        (["a", "b", "a"], ["--ids", "ids"], "id 'a' occurs 2 times"),
        (["a", "b", "c"], ["--ids", "names"], "no dataset 'names'"),
        (["a", "b", "c"], ["--ids", "ids", "--key", "feats"], "no dataset 'feats'"),
        ([0.5, 1.5, 2.5], ["--ids", "ids"], "--ids wants a list of texts or numbers"),
        (["a", "b", "c"], ["--key", "nothing"], "no dataset called 'nothing' in a group"),
    ],
)
def test_hdf5_whose_ids_or_keys_do_not_fit(tmp_path: Path, ids: list[Any], options: list[str], message: str) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["features"], file["ids"] = numbers(3, 8, 4), ids
    refuses(import_into(tmp_path / "c", tmp_path / "f.h5", *options), message)


def test_hdf5_never_reads_from_other_files(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a/x"] = numbers(8, 3)
    layout = h5py.VirtualLayout((8, 3), "f8")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "a/x", shape=(8, 3))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["a/own"] = numbers(8, 3)
        file["a/linked"] = h5py.ExternalLink("other.h5", "a/x")
        file.create_virtual_dataset("a/virtual", layout)
    assert import_into(tmp_path / "c", tmp_path / "f.h5").exit_code == 3
    assert list(held(tmp_path / "c")) == ["a/own"]
    (failure,) = Store(tmp_path / "c").failures("rgb")
    assert (failure.clip_id, failure.reason) == ("a/virtual", "bad-array")


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_pickled_content_is_refused_and_never_runs(tmp_path: Path) -> None:
    harm = Harm(tmp_path / "harmed")
    save_npy(tmp_path / "f/a/good.npy", numbers(8, 3))
    np.save(tmp_path / "f/a/object.npy", np.array([harm, None], object), allow_pickle=True)
    np.savez(tmp_path / "f/a/zipped.npz", feat=np.array([harm], object), allow_pickle=True)
    (tmp_path / "f/a/bare.npy").write_bytes(pickle.dumps(harm))
    (tmp_path / "f/a/naked.pt").write_bytes(pickle.dumps(harm))
    torch.save(harm, tmp_path / "f/a/unsafe.pt")
    torch.save({"feat": torch.ones(8, 3), "more": harm}, tmp_path / "f/a/mixed.pt")
    assert import_into(tmp_path / "c", tmp_path / "f", "--key", "feat").exit_code == 3
    assert list(held(tmp_path / "c")) == ["a/good"]
    reasons = {failure.clip_id: failure.reason for failure in Store(tmp_path / "c").failures("rgb")}
    assert reasons.pop("a/zipped") == "pickled"
    assert reasons == dict.fromkeys(("a/object", "a/bare", "a/naked", "a/unsafe", "a/mixed"), "pickled")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("form", WRITERS)
def test_a_file_cut_off_anywhere_is_a_failure_and_never_features(tmp_path: Path, form: str) -> None:
    WRITERS[form](tmp_path / "x.x", numbers(8, 40))
    (path,) = tmp_path.glob("x.*")
    whole = path.read_bytes()
    assert read_array(path, None).shape == (8, 40)
    for size in sorted({*np.linspace(0, len(whole) - 1, 25).astype(int).tolist(), len(whole) - 1}):
        path.write_bytes(whole[:size])
        reason, array = outcome(read_array, path)
        if array is None:
            assert reason in (["empty-file"] if size == 0 else ["bad-array", "which-array", "pickled"]), size
        else:  # what was cut off held no numbers
            np.testing.assert_array_equal(array, numbers(8, 40))


def outcome(read: Callable[[Path, str | None], Array], path: Path) -> tuple[str, Array | None]:
    """The reason of a failure, or the array."""
    try:
        return "", read(path, None)
    except ArrayError as error:
        assert error.message  # noqa: PT017
        return error.reason, None


@pytest.mark.parametrize("form", ["npy", "npz", "packed npz", "packed mat", "mat73", "pt", "old pt"])
def test_noise_in_a_file_raises_nothing_else(tmp_path: Path, form: str) -> None:
    WRITERS[form](tmp_path / "x.x", numbers(8, 10))
    (path,) = tmp_path.glob("x.*")
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for seed in range(40):
        rng, broken = np.random.default_rng(seed), whole.copy()
        broken[rng.integers(0, min(len(whole), 400), 5)] = rng.integers(0, 256, 5)
        path.write_bytes(broken.tobytes())
        reason, array = outcome(read_array, path)
        assert array is not None or reason in {**REASONS, **EXTRACT_REASONS}


def test_a_file_that_crashes_its_reader_is_a_failure(tmp_path: Path) -> None:
    WRITERS["mat"](tmp_path / "x.x", numbers(8, 10))
    whole = np.frombuffer((tmp_path / "x.mat").read_bytes(), np.uint8)
    process = ReadingProcess()
    for seed in (19, 100, 1, 2, 3):  # with scipy 1.17, the first two are segmentation faults
        rng, broken = np.random.default_rng(seed), whole.copy()
        broken[rng.integers(0, 400, 5)] = rng.integers(0, 256, 5)
        (tmp_path / "x.mat").write_bytes(broken.tobytes())
        reason, array = outcome(process.read, tmp_path / "x.mat")
        assert array is not None or reason in REASONS
    (tmp_path / "x.mat").write_bytes(whole.tobytes())
    np.testing.assert_array_equal(process.read(tmp_path / "x.mat", None), numbers(8, 10))


READS = """
import multiprocessing, sys, time
from pathlib import Path
from amfir.pipeline.feature_process import ReadingProcess
process = ReadingProcess()
process.read(Path(sys.argv[1]), None)
print(multiprocessing.active_children()[0].pid, flush=True)
time.sleep(60)
"""


def test_a_reader_does_not_outlive_its_killed_job(tmp_path: Path) -> None:
    save_npy(tmp_path / "x.npy", numbers(2, 3))
    command = [sys.executable, "-c", READS, str(tmp_path / "x.npy")]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    reader = Path(f"/proc/{int(job.stdout.readline())}/stat")
    assert reader.exists()
    job.kill()
    job.wait(30)
    job.stdout.close()
    deadline = time.monotonic() + 20
    while reader.exists() and reader.read_text().rpartition(")")[2].split()[0] != "Z" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not reader.exists() or reader.read_text().rpartition(")")[2].split()[0] == "Z"


def header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": descr})
    return buffer.getvalue()


def bad_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("feat.npy", header((1 << 40, 3)))


BAD: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "empty": ("npy", "empty-file", lambda path: path.write_bytes(b"")),
    "text": ("npy", "bad-array", lambda path: path.write_text("no array at all")),
    "claims a petabyte": ("npy", "huge-array", lambda path: path.write_bytes(header((1 << 45, 4)))),
    "claims more than it has": ("npy", "bad-array", lambda path: path.write_bytes(header((8, 3)))),
    "negative": ("npy", "bad-array", lambda path: path.write_bytes(header((-8, -3)) + bytes(192))),
    "more than it claims": ("npy", "bad-array", lambda path: path.write_bytes(header((8, 3)) + bytes(200))),
    "zip claims a petabyte": ("npz", "huge-array", bad_zip),
    "texts": ("npy", "not-numbers", lambda path: np.save(path, np.array([["a", "b"]]))),
    "complex": ("npy", "not-numbers", lambda path: np.save(path, numbers(8, 3) + 1j)),
    "records": ("npy", "not-numbers", lambda path: np.save(path, np.zeros(8, [("é", "f4"), ("y", "f4")]))),
    "times": ("npy", "not-numbers", lambda path: np.save(path, np.zeros((8, 3), "M8[s]"))),
    "no frames": ("npy", "wrong-shape", lambda path: np.save(path, np.zeros((0, 3)))),
    "wider": ("npy", "wrong-shape", lambda path: np.save(path, numbers(8, 4))),
    "a number": ("npy", "wrong-shape", lambda path: np.save(path, np.float32(1))),
    "three axes": ("npy", "wrong-shape", lambda path: np.save(path, numbers(2, 8, 3))),
    "nan": ("npy", "not-finite", lambda path: np.save(path, np.where(numbers(8, 3) > 1, np.nan, 1))),
    "inf": ("npy", "not-finite", lambda path: np.save(path, np.full((8, 3), -np.inf))),
    "too large": ("npy", "out-of-range", lambda path: np.save(path, np.full((8, 3), 65520.0))),
    "cells": ("mat", "not-numbers", lambda path: scipy.io.savemat(path, {"f": np.array([1, "a"], object)})),
    "chars": ("mat", "not-numbers", lambda path: scipy.io.savemat(path, {"f": "walking"})),
    "sparse": ("mat", "not-numbers", lambda path: scipy.io.savemat(path, {"f": scipy.sparse.eye(3).tocsc()})),
    "two": ("npz", "which-array", lambda path: np.savez(path, a=numbers(8, 3), b=numbers(8, 3))),
    "none": ("npz", "which-array", lambda path: np.savez(path)),
    "list of tensors": ("pt", "which-array", lambda path: torch.save([torch.ones(8, 3)], path)),
    "expanded": ("pt", "huge-array", lambda path: torch.save(torch.ones(1).expand(1 << 40, 3), path)),
    "sparse tensor": ("pt", "not-numbers", lambda path: torch.save(torch.eye(3).to_sparse(), path)),
    "complex tensor": ("pt", "not-numbers", lambda path: torch.save(torch.ones(8, 3) + 1j, path)),
    "tensor of no place": ("pt", "bad-array", lambda path: torch.save(torch.ones(8, 3, device="meta"), path)),
    "pipe": ("npy", "not-a-file", os.mkfifo),
    "dead link": ("npy", "missing", lambda path: path.symlink_to("nowhere")),
}


def test_one_broken_file_never_stops_the_job(tmp_path: Path) -> None:
    for number in range(40):
        save_npy(tmp_path / f"f/a/{number:02d}.npy", numbers(8, 3, seed=number))
    for name, (suffix, _, write) in BAD.items():
        write(tmp_path / f"f/a/{name}.{suffix}")
    result = import_into(tmp_path / "c", tmp_path / "f", "--axes", "td", "--json")
    assert result.exit_code == 3, result.stderr
    assert len(held(tmp_path / "c")) == 40
    found = {failure.clip_id.removeprefix("a/"): failure.reason for failure in Store(tmp_path / "c").failures("rgb")}
    assert found == {name: reason for name, (_, reason, _) in BAD.items()}
    report = json.loads(result.stdout)
    assert (report["clips"], report["done"], report["failed"]) == (40 + len(BAD), 40, len(BAD))
    listed = run("cache", "failures", tmp_path / "c")
    assert "a/nan  [rgb]  not-finite: " in listed.stdout
    assert f"not-finite: {REASONS['not-finite']}" in listed.stderr


def test_the_reasons_are_no_others_than_extractions_or_say_what_to_do() -> None:
    assert not REASONS.keys() & EXTRACT_REASONS.keys()
    assert all(text.endswith(".") and "; " in text for text in REASONS.values())
    assert {reason for _, reason, _ in BAD.values()} | {"pickled"} >= REASONS.keys()


def test_the_largest_half_is_kept_and_what_rounds_to_it_too(tmp_path: Path) -> None:
    save_npy(tmp_path / "f/a/x.npy", np.array([[65504.0, -65519.99]]))
    assert import_into(tmp_path / "c", tmp_path / "f", "--frames", 1).exit_code == 0
    assert held(tmp_path / "c")["a/x"][1].tolist() == [[65504.0, -65504.0]]


def test_the_rounding_error_is_reported_once(tmp_path: Path) -> None:
    save_npy(tmp_path / "f/a/x.npy", np.array([[3.0, 4.0], [2049.0, 0.0]]))  # 2049 becomes 2048
    result = import_into(tmp_path / "c", tmp_path / "f", "--frames", 2, "--json")
    assert json.loads(result.stdout)["rounding"] == pytest.approx(1 / 2049)
    assert result.stderr.count("rounding to float16") == 1
    save_npy(tmp_path / "g/a/x.npy", np.full((2, 2), 2.0**-26))
    result = import_into(tmp_path / "d", tmp_path / "g", "--json")
    assert json.loads(result.stdout)["rounding"] == 1.0
    assert "values are too small for float16" in result.stderr


def test_interrupted_and_started_again_it_ends_in_the_same_cache(tmp_path: Path, folder: Path) -> None:
    (folder / "run/broken.npy").write_bytes(b"x")
    source = open_features(folder)
    clips = label_clips(source, None, folder)

    def stop(ready: int, *_: int) -> None:
        if ready == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_features(source, clips, tmp_path / "c", ImportConfig(), stop)
    before = len(held(tmp_path / "c"))
    assert 0 < before < 6
    report = json.loads(import_into(tmp_path / "c", folder, "--json").stdout)
    assert (report["skipped"], report["done"], report["failed"]) == (before, 6 - before, 1)
    assert import_into(tmp_path / "whole", folder).exit_code == 3
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    segments = sorted((tmp_path / "c/rgb/segments").iterdir())
    assert import_into(tmp_path / "c", folder).exit_code == 3
    assert sorted((tmp_path / "c/rgb/segments").iterdir()) == segments  # the same failure is not written twice


def contents(cache: Path) -> list[tuple[str, bytes]]:
    return [(clip, row.tobytes()) for clip, (_, row) in held(cache).items()]


def test_a_mended_file_and_a_new_one_are_imported_and_a_changed_one_is_reported(tmp_path: Path, folder: Path) -> None:
    save_npy(folder / "run/clip 0.npy", np.full((8, 6), np.nan))
    assert import_into(tmp_path / "c", folder).exit_code == 3
    save_npy(folder / "run/clip 0.npy", numbers(8, 6))
    save_npy(folder / "aaa/first.npy", numbers(8, 6))
    save_npy(folder / "walk/clip 1.npy", numbers(9, 6))
    result = import_into(tmp_path / "c", folder, "--json")
    report = json.loads(result.stdout)
    assert (report["done"], report["skipped"], report["failed"], report["changed"]) == (2, 5, 0, 1)
    assert "1 files have changed" in result.stderr
    np.testing.assert_array_equal(held(tmp_path / "c")["run/clip 0"][1], slow_row(numbers(8, 6), 8))


def test_a_stream_whose_anchor_lost_its_numbers_is_one_of_another_source(tmp_path: Path, folder: Path) -> None:
    import_into(tmp_path / "c", folder)
    spec = json.loads((tmp_path / "c/rgb/spec.json").read_text(encoding="utf-8"))
    anchor = spec["spec"]["settings"]["imported"]["source"]["clip"]
    np.save(folder / f"{anchor}.npy", np.zeros((0, 4)))
    save_npy(folder / "run/new.npy", numbers(5, 6))
    refuses(
        import_into(tmp_path / "c", folder),
        'settings.imported.source.clip: "run/clip 0" in the cache, "run/clip 1" asked',
    )


def test_damaged_segments_are_made_anew(tmp_path: Path, folder: Path) -> None:
    import_into(tmp_path / "c", folder)
    (segment,) = (tmp_path / "c/rgb/segments").glob("*.h5")
    segment.write_bytes(segment.read_bytes()[:-100])
    assert json.loads(import_into(tmp_path / "c", folder, "--json").stdout)["done"] == 6


def test_the_spec_says_that_nobody_knows_the_network_and_names_no_place(tmp_path: Path, folder: Path) -> None:
    import_into(tmp_path / "c", folder)
    shutil.copytree(folder, tmp_path / "elsewhere")
    import_into(tmp_path / "d", tmp_path / "elsewhere")
    first, second = (Store(tmp_path / cache).spec("rgb") for cache in "cd")
    assert first.fingerprint == second.fingerprint
    assert first.settings["backbone"] == {"name": "imported"}
    assert str(tmp_path) not in json.dumps(first.to_json())
    save_npy(folder / "run/clip 0.npy", numbers(8, 6, seed=77))  # other features, as another network would make
    import_into(tmp_path / "e", folder)
    assert Store(tmp_path / "e").spec("rgb").fingerprint != first.fingerprint
    refuses(import_into(tmp_path / "c", folder), "made with another spec: settings.imported.source.sha256")


def test_features_of_one_named_network_go_together(tmp_path: Path, folder: Path) -> None:
    save_npy(tmp_path / "other/a/x.npy", numbers(9, 6))
    import_into(tmp_path / "c", folder, "--backbone", "i3d")
    import_into(tmp_path / "d", tmp_path / "other", "--backbone", "i3d")
    first, second = (Store(tmp_path / cache).spec("rgb") for cache in "cd")
    assert first == second
    assert first.settings["backbone"] == {"name": "i3d"}
    refuses(import_into(tmp_path / "c", folder, "--backbone", "i3d", "--frames", 4), "frames: 8 in the cache, 4 asked")


@pytest.mark.parametrize(
    "text", ["id,label\r\nx/1,a b\r\ny,c\r\n", "\ufeffLabel, ID \na b,x/1\n\nc,y\n", 'id,label\n"x/1",a b\ny,c']
)
def test_a_list_of_labels_as_any_program_writes_it(tmp_path: Path, text: str) -> None:
    save_npy(tmp_path / "f/x/1.npy", numbers(8, 3))
    save_npy(tmp_path / "f/y.npy", numbers(8, 3))
    save_npy(tmp_path / "f/unlisted.npy", numbers(8, 3))
    (tmp_path / "l.csv").write_bytes(text.encode())
    result = import_into(tmp_path / "c", tmp_path / "f", "--labels", tmp_path / "l.csv", "--json")
    assert result.exit_code == 0, result.stderr
    assert {clip: label for clip, (label, _) in held(tmp_path / "c").items()} == {"x/1": "a b", "y": "c"}
    assert json.loads(result.stdout)["unlisted"] == 1
    assert "1 clips that the list of labels does not name are left out" in result.stderr


def test_a_list_may_give_a_file_another_id(tmp_path: Path) -> None:
    save_npy(tmp_path / "f/0001.npy", numbers(8, 3))
    (tmp_path / "l.csv").write_text("id,label,split,file\nrun/me.mp4,run,test,0001.npy\n")
    assert import_into(tmp_path / "c", tmp_path / "f", "--labels", tmp_path / "l.csv").exit_code == 0
    assert list(held(tmp_path / "c")) == ["run/me.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"id,label\nx,a\nnone,b\nx2,c\n", "2 of 3 clips have no features (line 3: 'none', line 4: 'x2'); listed in"),
        (b"id,label\nx,a\ny,b\nx,a\n", "'x' is listed twice; lines 2 and 4 of"),
        (b"id,label,colour\nx,a,red\n", "unknown column 'colour'; known: file, id, label, split; line 1 of"),
        (b"path,label\nx,a\n", "unknown column 'path'"),
        (b"id\nx\n", "0 columns called 'label'; line 1 of"),
        (b"id,label,id\nx,a,x\n", "2 columns called 'id'; line 1 of"),
        (b"", "0 columns called 'id'; line 1 of"),
        (b"id,label\n", "has a header and no rows"),
        (b"id,label\nx,caf\xe9\n", "byte 0xe9 is not UTF-8; line 2 of"),
        ("id,label\nx,a\n".encode("utf-16"), "byte 0xff is not UTF-8; line 1 of"),
        (b"id,label\nx,a,b\n", "3 cells where the header has 2; line 2 of"),
        (b"id,label\nx,\n", "empty label; line 2 of"),
        (b"id,label\n,a\n", "empty id; line 2 of"),
        (b'id,label\nx,a\n"y,b\n', "not a readable CSV (unexpected end of data); line 3 of"),
        (b"id,label,split\nx,a,dev\n", "unknown split 'dev'; line 2 of"),
        (b"id,label,file\nx,a,../secret.npy\n", "1 of 1 clips have no features (line 2: '../secret.npy')"),
    ],
)
def test_mistakes_in_the_list_of_labels(tmp_path: Path, text: bytes, message: str) -> None:
    save_npy(tmp_path / "f/x.npy", numbers(8, 3))
    save_npy(tmp_path / "f/y.npy", numbers(8, 3))
    save_npy(tmp_path / "secret.npy", numbers(8, 3))
    (tmp_path / "l.csv").write_bytes(text)
    result = import_into(tmp_path / "c", tmp_path / "f", "--labels", tmp_path / "l.csv")
    refuses(result, message)
    assert str(tmp_path / "l.csv") in result.stderr
    assert not (tmp_path / "c").exists()


def refuses(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.stderr, result.stderr
    assert result.stderr.count("\n") == 1


def test_two_files_of_one_id_are_refused(tmp_path: Path) -> None:
    save_npy(tmp_path / "f/a/x.npy", numbers(8, 3))
    save_pt(tmp_path / "f/a/x.pt", torch.ones(8, 3))
    refuses(import_into(tmp_path / "c", tmp_path / "f"), "'a/x.npy' and 'a/x.pt' are both the clip 'a/x'")
    (tmp_path / "l.csv").write_text("id,label\na/x,a\n")
    refuses(import_into(tmp_path / "c", tmp_path / "f", "--labels", tmp_path / "l.csv"), "are both the clip 'a/x'")


def test_several_arrays_without_a_key_are_refused_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "f/a").mkdir(parents=True)
    both = {"rgb": numbers(8, 3), "flow": numbers(8, 3, seed=1)}
    np.savez(tmp_path / "f/a/x.npz", **both)  # type: ignore[arg-type]
    scipy.io.savemat(tmp_path / "f/a/y.mat", both)
    save_pt(tmp_path / "f/a/z.pt", {name: torch.from_numpy(array) for name, array in both.items()})
    save_mat73(tmp_path / "f/a/w.mat", both)
    refuses(import_into(tmp_path / "c", tmp_path / "f"), "the file holds 2 arrays: 'flow', 'rgb'; in a/w.mat; name the")
    refuses(import_into(tmp_path / "c", tmp_path / "f", "--key", "depth"), "no array 'depth'; the file holds 'flow'")
    assert import_into(tmp_path / "c", tmp_path / "f", "--key", "flow").exit_code == 0
    for _, row in held(tmp_path / "c").values():
        np.testing.assert_array_equal(row, both["flow"].astype(np.float16))


def test_vectors_among_frames_are_refused(tmp_path: Path) -> None:
    save_npy(tmp_path / "f/a/x.npy", numbers(8, 3))
    save_npy(tmp_path / "f/a/y.npy", numbers(3))
    message = "vectors and frames are mixed: a/x.npy [8, 3] and a/y.npy [3]"
    refuses(import_into(tmp_path / "c", tmp_path / "f"), message)
    assert import_into(tmp_path / "c", tmp_path / "f", "--axes", "td").exit_code == 3
    assert Store(tmp_path / "c").failures("rgb")[0].reason == "wrong-shape"


def test_the_width_of_most_clips_is_the_streams(tmp_path: Path) -> None:
    for number, width in enumerate((5, 3, 3, 3)):
        save_npy(tmp_path / f"f/a/{number}.npy", numbers(8, width))
    assert import_into(tmp_path / "c", tmp_path / "f").exit_code == 3
    assert list(held(tmp_path / "c")) == ["a/1", "a/2", "a/3"]


def test_classes_that_the_cache_knows_otherwise_are_refused(tmp_path: Path) -> None:
    save_npy(tmp_path / "f/x.npy", numbers(8, 3))
    (tmp_path / "l.csv").write_text("id,label\nx,walk\n")
    import_into(tmp_path / "c", tmp_path / "f", "--labels", tmp_path / "l.csv")
    (tmp_path / "l.csv").write_text("id,label\nx,run\n")
    for stream in ("rgb", "flow"):
        result = import_into(tmp_path / "c", tmp_path / "f", "--labels", tmp_path / "l.csv", stream=stream)
        refuses(result, "clip 'x' is 'walk' in stream 'rgb' and 'run' now")


def test_places_and_options_that_do_not_fit(tmp_path: Path, folder: Path) -> None:
    cache = tmp_path / "c"
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "damaged.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/other").touch()
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with h5py.File(tmp_path / "latin.h5", "w") as file:
        h5py.Group(h5py.h5g.create(file.create_group("a").id, b"b\xe9"))["c"] = numbers(2)
    for features, options, message in (
        (tmp_path / "nowhere", (), "no such features"),
        (tmp_path / "notes.txt", (), "neither a folder nor an HDF5 file"),
        (tmp_path / "damaged.h5", (), "no readable HDF5 file"),
        (tmp_path / "empty.h5", (), "no dataset; in"),
        (tmp_path / "empty", (), "no .npy, .npz, .mat, .pt, .pth files"),
        (folder / "run", (), "3 of 3 clips lie in no class folder (clip 0.npy, clip 1.npy, clip 2.npy)"),
        (folder, ("--key", "x"), "--key x says nothing about .npy files"),
        (folder, ("--ids", "x"), "--ids x says nothing about a folder"),
        (folder, ("--frames", 0), "frames is 0"),
        (folder, ("--backbone", ""), "the backbone has no name"),
        (tmp_path / "latin.h5", (), "the name b'a/b\\xe9/c' is not UTF-8"),
        (folder, ("--axes", "dt"), "unknown axes 'dt'"),
        (folder, ("--axes", "vtd"), "shape [5, 6], not [V, T, D]; in run/clip 0.npy; name the axes"),
        (folder, ("--labels", tmp_path / "no.csv"), "cannot read the list (No such file or directory)"),
    ):
        refuses(import_into(cache, features, *options), message)
    refuses(import_into(folder / "cache", folder), "the cache would lie among the features")
    refuses(import_into(tmp_path / "full", folder), "the folder holds other files and no cache")
    refuses(import_into(tmp_path / "notes.txt", folder), "the cache is no folder")
    refuses(import_into(cache, folder, stream="../x"), "stream name '../x'")
    assert not cache.exists()
    save_npy(tmp_path / "v/a/x.npy", numbers(3))
    refuses(import_into(cache, tmp_path / "v", "--frames", 8), "a clip is one vector, not 8 frames")
    save_npy(tmp_path / "n/a/x.npy", numbers(3) + 1j)
    refuses(import_into(cache, tmp_path / "n"), "none of 1 clips can be read (not-numbers: the array holds complex128)")


def test_a_cut_off_hdf5_file_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "whole.h5", "w") as file:
        for i in range(20):
            file[f"a/{i}"] = numbers(8, 30)
    whole = (tmp_path / "whole.h5").read_bytes()
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        (tmp_path / "cut.h5").write_bytes(whole[: int(share * len(whole))])
        refuses(import_into(tmp_path / "c", tmp_path / "cut.h5"), "no readable HDF5 file")


def test_a_damaged_dataset_of_an_hdf5_file_is_a_failure(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for i in range(3):
            file.create_dataset(f"a/{i}", data=numbers(8, 30, seed=i), chunks=(8, 30), fletcher32=True)
        place = file["a/1"].id.get_chunk_info(0).byte_offset
    with (tmp_path / "f.h5").open("r+b") as raw:
        raw.seek(place + 50)
        raw.write(b"damage")
    assert import_into(tmp_path / "c", tmp_path / "f.h5").exit_code == 3
    assert list(held(tmp_path / "c")) == ["a/0", "a/2"]


def test_without_scipy_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f/a").mkdir(parents=True)
    WRITERS["mat"](tmp_path / "f/a/x.x", numbers(8, 3))
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"scipy is not installed; \.mat files; pip install 'amfir\[mat\]'"):
        read_array(tmp_path / "f/a/x.mat", None)
    WRITERS["mat73"](tmp_path / "f/a/x.x", numbers(8, 3))
    assert read_array(tmp_path / "f/a/x.mat", None).shape == (8, 3)


def test_names_that_are_no_utf8_and_folders_inside_themselves(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9 \n.npy")
    save_npy(tmp_path / "f" / "a" / odd, numbers(8, 3))
    (tmp_path / "f/a/round").symlink_to(tmp_path / "f/a")
    (tmp_path / "f/a/.hidden.npy").write_bytes(b"")
    (tmp_path / "f/a/notes.txt").write_text("x")
    assert import_into(tmp_path / "c", tmp_path / "f").exit_code == 0
    assert list(held(tmp_path / "c")) == [f"a/{odd.removesuffix('.npy')}"]


def test_one_clip_is_in_memory_at_a_time(tmp_path: Path) -> None:
    for number in range(48):
        save_npy(tmp_path / f"f/a/{number}.npy", np.full((64, 2048), number, np.float32))  # 512 KiB each, 24 MiB in all
    source = open_features(tmp_path / "f")
    clips = label_clips(source, None, tmp_path / "f")
    tracemalloc.start()
    import_features(source, clips, tmp_path / "c", ImportConfig(frames=2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert len(held(tmp_path / "c")) == 48


def test_an_array_above_the_limit_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "MAX_BYTES", 100)
    for form in WRITERS:
        (tmp_path / form).mkdir()
        WRITERS[form](tmp_path / form / "x.x", numbers(8, 3))
        with pytest.raises(ArrayError) as caught:
            read_array(next((tmp_path / form).iterdir()), None)
        assert caught.value.reason == "huge-array"
    with pytest.raises(UserError, match="none of 1 clips"):
        import_features(
            open_features(tmp_path / "npy"),
            label_clips_of(tmp_path),
            tmp_path / "c",
            ImportConfig(),
        )


def label_clips_of(tmp_path: Path) -> Any:
    (tmp_path / "l.csv").write_text("id,label\nx,a\n")
    return label_clips(open_features(tmp_path / "npy"), tmp_path / "l.csv", tmp_path / "npy")


def test_the_page_names_every_reason() -> None:
    page = (Path(__file__).parent.parent / "docs" / "cache.md").read_text()
    assert dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", page, re.MULTILINE)) == REASONS
