"""Puts a report on disk: report.html, report.md with figures/, tables/."""

from collections.abc import Mapping
from pathlib import Path

from ...cache.errors import UserError
from ...cache.files import whole_file
from .document import Report
from .latex import tables_of
from .markdown import pictures, thumbnails, to_markdown, to_png
from .page import to_html

LIMIT = 3_000_000
"""Bytes of a page that people are asked to open."""


def write_report(report: Report, folder: Path) -> dict[str, int]:
    """Write all files, each whole or not at all.

    Args:
        report: What to write.
        folder: Where; made if it is not there.

    Returns:
        Name of each file below the folder and its size in bytes.

    Raises:
        UserError: If the folder cannot be written, or a picture cannot be read.
    """
    files: dict[str, bytes] = {"report.html": to_html(report).encode(), "report.md": to_markdown(report).encode()}
    files |= {f"figures/{name}": to_png(figure) for name, figure in pictures(report).items()}
    files |= {f"figures/{name}": data for name, data in thumbnails(report).items()}
    files |= {f"tables/{name}": text.encode() for name, text in tables_of(report).items()}
    try:
        _write(files, folder)
    except OSError as error:
        if isinstance(error, (FileExistsError, NotADirectoryError, PermissionError)):
            why = f"cannot write the report ({error.strerror}); {str(folder)!r}; name another folder with --to"
            raise UserError(why) from None
        raise
    return {name: len(data) for name, data in files.items()}


def _write(files: Mapping[str, bytes], folder: Path) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
