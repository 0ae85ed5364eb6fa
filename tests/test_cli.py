"""The program's frame: help, versions, errors to exit codes."""

import errno
import json
import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner, Result

from amfir.cache.errors import MachineError, UserError
from amfir.pipeline.cli import COMMANDS, cli
from amfir.pipeline.console import printable, resumable

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def commands() -> Iterator[tuple[str, ...]]:
    """Every command that can be called, groups included."""
    for name in COMMANDS:
        yield (name,)
        command = cli.get_command(click.Context(cli), name)
        if isinstance(command, click.Group):
            yield from ((name, below) for below in command.commands)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A list of one error that the command `boom` raises."""
    errors: list[BaseException] = []

    @click.command()
    @click.option("--count", type=click.IntRange(min=1))
    @click.argument("rest", nargs=-1)
    def boom(count: int | None, rest: tuple[str, ...]) -> None:
        with resumable("--resume"):
            raise errors[0]

    module = ModuleType("boom")
    module.__dict__["boom"] = boom
    monkeypatch.setitem(sys.modules, "amfir.pipeline.commands.boom", module)
    monkeypatch.setitem(COMMANDS, "boom", ("boom:boom", "Fails."))
    return errors


def test_every_command_has_help_that_ends_in_a_runnable_example() -> None:
    names = list(commands())
    assert ("cache", "verify") in names
    for name in names:
        result = run(*name, "--help")
        assert result.exit_code == 0, name
        text, _, options = result.stdout.partition("Options:")
        assert options, name
        examples = [line.strip() for line in text.partition("Examples:")[2].splitlines() if line.strip()]
        assert any(line.startswith(shlex.join(["amfir", *name])) for line in examples), name


def test_the_group_lists_every_command() -> None:
    text = run("--help").stdout
    assert all(f"  {name} " in text and line in text for name, (_, line) in COMMANDS.items())


def test_help_and_the_programs_module_import_neither_networks_nor_decoders() -> None:
    code = """
import sys
from amfir.pipeline.cli import cli
try:
    cli.main(["--help"])
except SystemExit:
    pass
heavy = {"torch", "torchvision", "av", "cv2", "matplotlib"} & sys.modules.keys()
sys.exit(f"imported {heavy}" if heavy else 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["data", "cache", "extract"])
def test_help_of_a_command_does_not_import_torch(command: str) -> None:
    code = f"""
import sys
from amfir.pipeline.cli import cli
try:
    cli.main([{command!r}, "--help"])
except SystemExit:
    pass
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=60).returncode == 0


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert run("--version").output == f"amfir {project['version']}\n"


def test_no_command_shows_the_help_and_is_wrong_usage() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no clips; in x; add some"), 2, "Error: no clips; in x; add some\n"),
        (UserError("two\nlines"), 2, "Error: two\\nlines\n"),
        (MachineError("the disk is full"), 1, "Error: the disk is full\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a\udce9"), 1, "Error: No space left on device; 'a\\udce9'"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "Error: Permission denied; 'x'; choose another"),
        (MemoryError(), 1, "Error: out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "Error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "Error: out of memory"),
        (click.ClickException("plain"), 2, "Error: plain\n"),
    ],
)
def test_known_errors_are_one_line_and_a_code(
    failing: list[BaseException], error: Exception, code: int, line: str
) -> None:
    failing.append(error)
    result = run("boom")
    assert result.exit_code == code
    assert result.stderr.startswith(line)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug"), FileNotFoundError(2, "a bug")])
def test_unexpected_errors_keep_their_traceback(failing: list[BaseException], error: Exception) -> None:
    failing.append(error)
    assert run("boom").exception is error


def test_an_interrupt_prints_the_command_that_resumes(failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())
    result = run("boom", "a b", "--count", "3")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith("Resume with: amfir boom 'a b' --count 3 --resume")


def test_an_option_that_resumes_is_not_given_twice(failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())
    assert run("boom", "--", "--resume").stderr.rstrip().endswith("Resume with: amfir boom -- --resume")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("boom", "--count", "0"), "Invalid value for '--count': 0 is not in the range x>=1"),
        (("boom", "--cuont", "1"), "No such option"),
        (("extrakt",), "unknown command 'extrakt'; did you mean 'extract'?"),
        (("extract",), "Missing argument"),
        (("cache", "info"), "Missing argument 'DIR'"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    failing: list[BaseException], arguments: tuple[str, ...], expected: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stderr.count("\n") == 1


def test_what_cannot_be_printed_is_escaped() -> None:
    assert printable("ab\x1b[0m\n\udce9Bär") == "ab\\x1b[0m\\n\\udce9Bär"


def test_a_closed_pipe_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", "from amfir.pipeline.cli import main; main()", "--help"]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", "from amfir.pipeline.cli import main; main()", "--help"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("Error: No space left on device")
    assert result.stderr.count("\n") == 1


def test_synthetic_clips_are_made_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    sizes = ["--classes", "4", "--clips", "2", "--size", "32", "--frames", "3"]
    result = run("data", "synth", str(folder), *sizes, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "directory": str(folder),
        "classes": 4,
        "clips": 8,
        "split": str(folder / "split.toml"),
    }
    assert len(list(folder.glob("*/*.mp4"))) == 8
    assert "8/8" in result.stderr
    assert "8 clips of 4 classes" in run("data", "synth", str(folder), *sizes).stdout


@pytest.mark.parametrize("option", ["--classes", "--clips", "--size", "--frames", "--seed"])
def test_synthetic_clips_of_impossible_size_are_refused(tmp_path: Path, option: str) -> None:
    result = run("data", "synth", str(tmp_path / "clips"), option, "-1")
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines()[-1].startswith("Error: ")
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize("command", ["info", "verify", "failures", "pack"])
def test_what_is_no_cache_is_refused(tmp_path: Path, command: str) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        result = run("cache", command, str(folder))
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: no amfir cache")
        assert result.stderr.count("\n") == 1
