"""The program `amfir`: finds the command, and turns errors into one line and an exit code.

Nothing heavy is imported here or by `amfir --help`: decoder processes import the main module again when they start.
"""

import contextlib
import errno
import importlib
import os
import sys
from typing import Any, NoReturn

import click

from ..cache.errors import MachineError, UserError, pick
from .console import ARGUMENTS_KEY, EXIT_INTERRUPTED, EXIT_MACHINE, EXIT_USAGE, printable

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo:demo", "Run everything on synthetic clips, in three minutes."),
    "data": ("data:data", "Make synthetic clips."),
    "weights": ("weights:weights", "List, fetch and check the networks' weights."),
    "flow": ("flow:flow", "Render a clip's flow beside its frames."),
    "extract": ("extract:extract", "Turn videos into cached features."),
    "cache": ("cache:cache", "Look into a cache, check it, pack it."),
    "train": ("train:train", "Meta-train the heads on a cache."),
    "eval": ("eval:evaluate", "Measure few-shot accuracy on a cache."),
    "compare": ("compare:compare", "Every method on the same features and episodes, in one table."),
    "search": ("search:search", "Find the nearest clips of a cache, by a run's heads."),
    "study": ("study:study", "Every table and figure of the papers from one cache."),
    "report": ("report:report", "Studies as pages: HTML, Markdown with pictures, LaTeX."),
    "bench": ("bench:bench", "Measure speed, as ratios within one run."),
}
"""Module and attribute below `commands`, and the line in the list of commands, by name."""

_MACHINE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EFBIG}
_USER_ERRNOS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG}


def main() -> NoReturn:
    """Run the command line of this process."""
    cli.main(prog_name="amfir")


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and ends every known error with one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Import and return a command.

        Raises:
            UserError: If there is none of this name; the message suggests the nearest.
        """
        target, _ = pick(COMMANDS, cmd_name, "command")
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(f"..commands.{module}", __name__), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        """Remember the arguments, for the command that resumes an interrupted one."""
        arguments = list(args)
        context = super().make_context(info_name, args, *rest, **extra)
        context.meta[ARGUMENTS_KEY] = arguments
        return context

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        """Run a command and leave with its exit code; unexpected errors keep their traceback."""
        try:
            result = super().main(*args, **{**extra, "standalone_mode": False})
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            known = _describe(error)
            if known is None:
                raise
            result, message = known
            if message:
                click.echo(f"Error: {printable(message)}", err=True)
            if isinstance(error, OSError):
                _drop_pending_output()
        sys.exit(result if isinstance(result, int) else 0)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="amfir", message="%(package)s %(version)s")
def cli() -> None:
    """Few-shot action recognition from RGB and optical flow, with cached features and active multimodal inference.

    \b
    Examples:
      amfir demo
      amfir extract videos --cache features
      amfir train features --split random:0 --run run
      amfir eval features --split random:0 --run run
    """


def _describe(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code and the line for an error that is no bug, else None."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return EXIT_USAGE, ""
    if isinstance(error, click.UsageError):
        hint = f" (see '{error.ctx.command_path} --help')" if error.ctx else ""
        return EXIT_USAGE, error.format_message() + hint
    if isinstance(error, click.ClickException):
        return EXIT_USAGE, error.format_message()
    if isinstance(error, UserError):
        return EXIT_USAGE, str(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return EXIT_INTERRUPTED, ""
    if isinstance(error, MachineError):
        return EXIT_MACHINE, str(error)
    if isinstance(error, OSError):
        return _describe_os_error(error)
    # torch reports a lack of memory as a RuntimeError, and cannot be imported here to ask for its class.
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_out_of_memory(str(error))):
        return EXIT_MACHINE, "out of memory; close other programs, or lower --batch-size or --workers"
    return None


def _describe_os_error(error: OSError) -> tuple[int, str] | None:
    where = f"; {os.fspath(error.filename)!r}" if error.filename is not None else ""
    if error.errno == errno.EPIPE:
        return EXIT_MACHINE, ""
    if error.errno in _MACHINE_ERRNOS:
        return EXIT_MACHINE, f"{error.strerror}{where}; make room, then run the same command again"
    if error.errno in _USER_ERRNOS:
        return EXIT_USAGE, f"{error.strerror}{where}; choose another place or mend its permissions"
    return None


def _is_out_of_memory(message: str) -> bool:
    return "out of memory" in message or "can't allocate memory" in message


def _drop_pending_output() -> None:
    """Let the interpreter's last flush succeed where stdout is a closed pipe or a full disk."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
