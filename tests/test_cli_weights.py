"""`amfir weights`: list, fetch and check."""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from amfir.extract import transfer
from amfir.extract import weights as register_module
from amfir.extract.backbones.vision import torchvision
from amfir.extract.weights import Weights
from amfir.pipeline.cli import cli

from .fileserver import FileServer, serve


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["weights", *arguments])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FileServer]:
    """A server of random SqueezeNet weights, and a register that knows nothing else."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0.0)
    network: nn.Module = torchvision().models.get_model("squeezenet1_1", weights=None)
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    with serve(file.getvalue()) as running:
        sha256 = hashlib.sha256(running.content).hexdigest()[:8]
        entry = Weights("squeezenet1_1", running.url, len(running.content), sha256, "BSD-3-Clause", "nothing")
        monkeypatch.setattr(register_module, "_own", lambda: {entry.name: entry})
        monkeypatch.setattr(register_module, "_torchvisions", dict)
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hub" / "checkpoints" / "net.pth"


def test_the_list_tells_size_licence_source_and_what_is_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    result = run("list")
    assert result.exit_code == 0
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["network", "size", "here", "licence", "trained", "on", "source"]
    lines = {row.split()[0]: row.split() for row in rows}
    assert lines["resnet50"][:3] == ["resnet50", "103", "MB"]
    assert "yes" not in lines["resnet50"]
    assert lines["resnet50"][-1] == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert lines["efficientnet-lite0"][3:5] == ["yes", "Apache-2.0"]
    assert lines["i3d-flow-charades"][1:4] == ["50", "MB", "Apache-2.0"]
    assert str(tmp_path) in result.stderr


def test_the_list_is_one_object_as_json(server: FileServer, path: Path) -> None:
    listed = json.loads(run("list", "--json").stdout)
    assert listed["folder"] == str(path.parent)
    assert listed["weights"] == [
        {
            "name": "squeezenet1_1",
            "url": server.url,
            "size_bytes": len(server.content),
            "sha256": hashlib.sha256(server.content).hexdigest()[:8],
            "licence": "BSD-3-Clause",
            "note": "nothing",
            "file": str(path),
            "here": False,
        }
    ]
    run("fetch", "squeezenet1_1")
    assert json.loads(run("list", "--json").stdout)["weights"][0]["here"] is True


def test_a_fetch_shows_a_bar_and_ends_with_the_file_and_its_hash(server: FileServer, path: Path) -> None:
    result = run("fetch", "squeezenet1_1", "squeezenet1_1")
    assert result.exit_code == 0, result.output
    assert path.read_bytes() == server.content
    sha256 = hashlib.sha256(server.content).hexdigest()
    assert result.stdout == f"squeezenet1_1: {path}, SHA-256 {sha256} ({sha256[:8]} is published)\n"
    assert "5/5" in result.stderr
    assert "MB" in result.stderr
    assert len(server.requests) == 1
    found = json.loads(run("fetch", "squeezenet1_1", "--json").stdout)["weights"][0]
    assert (found["file"], found["file_sha256"], found["here"]) == (str(path), sha256, True)


def test_a_fetch_that_is_cut_off_says_so_and_is_continued_by_the_same_command(server: FileServer, path: Path) -> None:
    server.drop_after = [1_000_000, 0, 0, 0]
    result = run("fetch", "squeezenet1_1")
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: cannot fetch the file (the connection was dropped after 1000000 of")
    assert "--rgb-weights or --flow-weights FILE" in line
    assert run("fetch", "squeezenet1_1").exit_code == 0
    assert server.requests[-1]["range"] == "bytes=1000000-"
    assert path.read_bytes() == server.content


def test_an_interrupted_fetch_prints_the_command_that_goes_on(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("amfir.pipeline.progress.Bar.update", interrupt)
    result = run("fetch", "squeezenet1_1")
    assert result.exit_code == 130
    assert result.stderr.rstrip().endswith("Resume with: amfir weights fetch squeezenet1_1")


def test_a_missing_file_is_one_line(server: FileServer) -> None:
    server.statuses = [404]
    result = run("fetch", "squeezenet1_1")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: cannot fetch the file (HTTP 404 Not Found)")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("fetch", "skweezenet"), ("check", "skweezenet"), ("check", "skweezenet", "--weights", "x.pth")]
)
def test_unknown_names_are_wrong_usage(server: FileServer, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: unknown weights 'skweezenet'; did you mean 'squeezenet1_1'?")
    assert result.stderr.count("\n") == 1


def test_a_check_of_nothing_says_that_there_is_nothing(server: FileServer) -> None:
    result = run("check")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no weights are here" in result.stderr


def test_a_check_counts_hashes_and_loads(server: FileServer, path: Path) -> None:
    run("fetch", "squeezenet1_1")
    result = run("check")
    assert result.exit_code == 0
    assert result.stdout.startswith("squeezenet1_1: 52 tensors, SHA-256 ")
    assert result.stdout.endswith(f"is published), loads into its network; {path}\n")
    assert json.loads(run("check", "squeezenet1_1", "--json").stdout)["checked"] == [
        {
            "name": "squeezenet1_1",
            "path": str(path),
            "size_bytes": len(server.content),
            "sha256": hashlib.sha256(server.content).hexdigest(),
            "known_sha256": hashlib.sha256(server.content).hexdigest()[:8],
            "tensors": 52,
            "loads": True,
            "problem": None,
        }
    ]


def test_a_check_that_finds_damage_ends_with_code_3(server: FileServer, path: Path) -> None:
    assert run("check", "squeezenet1_1").exit_code == 3
    run("fetch", "squeezenet1_1")
    path.write_bytes(path.read_bytes()[:-1000] + bytes(1000))
    result = run("check")
    assert result.exit_code == 3
    assert "its SHA-256 is" in result.stdout
    assert "not all is well" in result.stderr


def test_a_users_file_is_checked_against_the_network_it_is_for(server: FileServer, tmp_path: Path) -> None:
    file = tmp_path / "my.pth"
    file.write_bytes(server.content)
    result = run("check", "squeezenet1_1", "--weights", str(file))
    assert result.exit_code == 0
    assert "(none is published), loads into its network" in result.stdout
    torch.save({"features.0.weight": torch.zeros(1)}, file)
    result = run("check", "squeezenet1_1", "--weights", str(file), "--json")
    assert result.exit_code == 3
    assert "size mismatch" in json.loads(result.stdout)["checked"][0]["problem"]


def test_a_users_file_needs_the_name_of_one_network(server: FileServer) -> None:
    for names in ((), ("a", "b")):
        result = run("check", *names, "--weights", "x.pth")
        assert result.exit_code == 2
        assert "--weights needs one NAME" in result.stderr
