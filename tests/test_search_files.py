"""A prototype index on disk comes back whole, or is refused in one line."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from amfir.cache.errors import MachineError, UserError
from amfir.meta.search import Neighbours, PrototypeIndex

RUN = {"run": {"model": "abc", "seeds": (1, 2)}, "cache": "kinetics"}


def draw(seed: int, num: int, widths: tuple[int, int] = (3, 2)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pairs = zip(("rgb", "flow"), widths, strict=True)
    return {name: 3 + torch.randn(num, width, generator=generator) for name, width in pairs}


def clusters(seed: int, num: int) -> dict[str, Tensor]:
    noise = draw(seed, num, (12, 12))
    rows = torch.randint(100, (num,), generator=torch.Generator().manual_seed(seed + 100))
    return {name: 5 * values[rows] + noise[name] for name, values in draw(0, 100, (12, 12)).items()}


def equal(one: Neighbours, other: Neighbours) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("ids", "distances", "psi", "weights")]
    return all(torch.equal(a, b) for a, b in pairs)


def files(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.iterdir())


@pytest.mark.parametrize("backend", ["torch", "flat"])
def test_what_was_saved_is_found_again_to_the_last_bit(tmp_path: Path, backend: str) -> None:
    index = PrototypeIndex.build(draw(0, 500), {"rgb": 0.3, "flow": 1 / 3}, backend=backend)
    index.save(tmp_path / "new" / "index", RUN)
    assert files(tmp_path / "new" / "index") == ["index.json", "prototypes"]
    again = PrototypeIndex.load(tmp_path / "new" / "index", RUN)
    assert isinstance(again.matrix, np.memmap)
    assert again.backend.name == backend
    assert equal(again.search(draw(1, 20), 5), index.search(draw(1, 20), 5))


@pytest.fixture(scope="module")
def approximate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Neighbours]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amfir.meta.search.tuning.FASTER", 0)  # no clock decides
        index = PrototypeIndex.build(clusters(1, 20_000), backend="ivf", queries=clusters(2, 300))
    assert index.backend.name == "ivf"
    folder = tmp_path_factory.mktemp("approximate")
    index.save(folder, RUN)
    return folder, index.search(clusters(3, 50), 5)


def test_an_approximate_index_is_found_again(approximate: tuple[Path, Neighbours]) -> None:
    folder, found = approximate
    assert files(folder) == ["backend", "index.json", "prototypes"]
    again = PrototypeIndex.load(folder, RUN)
    assert again.backend.name == "ivf"
    assert equal(again.search(clusters(3, 50), 5), found)


def test_without_faiss_the_prototypes_are_searched_by_torch(
    approximate: tuple[Path, Neighbours], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amfir.meta.search.backends.find_faiss", lambda: None)
    again = PrototypeIndex.load(approximate[0], RUN)
    assert again.backend.name == "torch"
    assert "faiss is not importable" in again.backend.note
    assert (again.search(clusters(3, 50), 5).ids[:, 0] == approximate[1].ids[:, 0]).float().mean() >= 0.98


def test_saving_again_replaces_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    PrototypeIndex.build(draw(0, 50)).save(tmp_path, RUN)
    PrototypeIndex.build(draw(1, 60)).save(tmp_path, {"run": 2})
    assert files(tmp_path) == ["index.json", "notes.txt", "prototypes"]
    again = PrototypeIndex.load(tmp_path, {"run": 2})
    assert len(again.matrix) == 60
    again.save(tmp_path, {"run": 3})
    assert len(PrototypeIndex.load(tmp_path, {"run": 3}).matrix) == 60


def test_a_save_that_fails_half_way_leaves_the_old_index(tmp_path: Path) -> None:
    index = PrototypeIndex.build(draw(0, 50))
    index.save(tmp_path, RUN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))  # as good as a full disk
    try:
        with pytest.raises(MachineError, match=r"cannot write the prototype index .*; in .*; .* make room"):
            PrototypeIndex.build(draw(1, 60)).save(tmp_path, RUN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(tmp_path) == ["index.json", "prototypes"]
    assert equal(PrototypeIndex.load(tmp_path, RUN).search(draw(2, 4), 3), index.search(draw(2, 4), 3))


def test_where_no_folder_can_be_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write the prototype index"):
            PrototypeIndex.build(draw(0, 5)).save(place, RUN)


def test_two_may_write_at_once(tmp_path: Path) -> None:
    index = PrototypeIndex.build(draw(0, 200))
    index.save(tmp_path, RUN)
    code = (
        "import sys; from pathlib import Path; from amfir.meta.search import PrototypeIndex; "
        f"index = PrototypeIndex.load(Path(sys.argv[1]), {RUN}); "
        f"[index.save(Path(sys.argv[1]), {RUN}) for _ in range(30)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert files(tmp_path) == ["index.json", "prototypes"]
    assert equal(PrototypeIndex.load(tmp_path, RUN).search(draw(2, 4), 3), index.search(draw(2, 4), 3))


def refusal(folder: Path, fingerprint: dict[str, Any] = RUN) -> str:
    with pytest.raises(UserError) as error:
        PrototypeIndex.load(folder, fingerprint)
    message = str(error.value)
    assert str(folder) in message
    assert "\n" not in message
    return message


def test_any_changed_byte_is_noticed(tmp_path: Path) -> None:
    PrototypeIndex.build(draw(0, 2, (1, 1))).save(tmp_path, RUN)
    for path in tmp_path.iterdir():
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
            assert "build it again" in refusal(tmp_path)
        path.write_bytes(whole)
    PrototypeIndex.load(tmp_path, RUN)


def test_a_changed_byte_of_the_faiss_file_is_noticed(approximate: tuple[Path, Neighbours], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(approximate[0], folder)
    (path,) = folder.glob("backend-*")
    size = path.stat().st_size
    for place in (0, size // 2, size - 1):
        whole = path.read_bytes()
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert "changed since it was written" in refusal(folder)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes, not"),
        (lambda path: os.truncate(path, 0), "0 bytes, not"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_lost_and_cut_prototypes_are_refused(tmp_path: Path, harm: Callable[[Path], None], words: str) -> None:
    PrototypeIndex.build(draw(0, 8)).save(tmp_path, RUN)
    harm(next(tmp_path.glob("prototypes-*")))
    message = refusal(tmp_path)
    assert "is damaged" in message
    assert words in message


def test_a_cut_or_empty_manifest_is_refused(tmp_path: Path) -> None:
    PrototypeIndex.build(draw(0, 8)).save(tmp_path, RUN)
    path = tmp_path / "index.json"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"[]", b"{}", b"\xff"):
        path.write_bytes(content)
        assert "is damaged" in refusal(tmp_path)


def test_no_index_is_refused(tmp_path: Path) -> None:
    assert "no prototype index" in refusal(tmp_path)
    assert "no prototype index" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({**RUN, "run": {"model": "xyz", "seeds": [1, 2]}}, "was made with run.model = abc, not xyz"),
        ({**RUN, "cache": "ucf"}, "was made with cache = kinetics, not ucf"),
        ({**RUN, "split": "s"}, "was made with split = nothing, not s"),
        ({"run": RUN["run"]}, "was made with cache = kinetics, not nothing"),
    ],
)
def test_an_index_of_another_run_is_refused(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    PrototypeIndex.build(draw(0, 8)).save(tmp_path, RUN)
    assert words in refusal(tmp_path, other)


def sealed(data: dict[str, Any]) -> bytes:
    return (json.dumps({**data, "sha256": hashlib.sha256(json.dumps(data).encode()).hexdigest()}) + "\n").encode()


def test_another_format_and_foreign_prototypes_are_refused(tmp_path: Path) -> None:
    PrototypeIndex.build(draw(0, 8)).save(tmp_path, RUN)
    data = json.loads((tmp_path / "index.json").read_bytes())
    del data["sha256"]
    (tmp_path / "index.json").write_bytes(sealed({**data, "format": 2}))
    assert "has format 2, not 1; build it again" in refusal(tmp_path)
    (tmp_path / "index.json").write_bytes(sealed({**data, "shape": [9, 7]}))
    assert "is damaged (prototypes-" in refusal(tmp_path)
