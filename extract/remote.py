"""Files that are named by a URL, through fsspec, which is imported when the first one turns up."""

import re
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..cache.errors import UserError

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "hdfs": "hdfs",
    "arrow_hdfs": "hdfs",
    "http": "http",
    "https": "http",
}
"""Scheme -> the optional extra of this package that brings what the scheme needs."""

LOCAL_SCHEMES = frozenset({"file", "local"})
"""Schemes of local paths; those are opened as such, with all the checks of local files."""

WEB_SCHEMES = frozenset({"http", "https"})

STAMPS = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "created", "ETag", "etag")
"""What file systems call the time of the last change, or else a mark of the content, in order of preference."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")


def scheme_of(text: str) -> str | None:
    """Return the scheme that a name begins with, in lower case, known or not; None if it begins with none."""
    match = _SCHEME.match(text)
    return match[1].lower() if match else None


def is_url(text: str) -> bool:
    """Return whether a name is a URL: it begins with a scheme that fsspec knows. Any other name is a local path."""
    scheme = scheme_of(text)
    if scheme is None:
        return False
    from fsspec.registry import known_implementations, registry

    return scheme in known_implementations or scheme in registry


def as_place(text: str) -> Path | str:
    """Return a URL as the string it is, and a local path as a `Path`, also one written `file:///...`."""
    if scheme_of(text) in LOCAL_SCHEMES:
        return Path(text.partition("://")[2])
    return text if is_url(text) else Path(text)


def bare(url: str) -> str:
    """Return a URL without the query and the fragment that it has on the web; elsewhere they are part of a name."""
    return re.split("[?#]", url, maxsplit=1)[0] if scheme_of(url) in WEB_SCHEMES else url


def folder_of(url: str) -> str:
    """Return the URL of the folder that a file lies in."""
    return bare(url).rpartition("/")[0]


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the file's name in it.

    Raises:
        UserError: If the scheme is unknown, its package is not installed, or the URL is no good.
        Exception: Whatever the file system raises if it connects at once, and cannot.
    """
    from fsspec.core import url_to_fs

    try:
        file_system, name = url_to_fs(url)
    except ImportError as error:
        raise UserError(_missing_package(url, error)) from error
    except ValueError as error:
        raise UserError(f"not a URL that fsspec opens ({_one_line(error)}); {url!r}; mend it") from error
    return file_system, str(name)


def _missing_package(url: str, error: ImportError) -> str:
    scheme = scheme_of(url)
    extra = EXTRAS.get(scheme or "")
    if extra:
        return f"{scheme}:// needs a package that is not installed; {url!r}; run pip install 'amfir[{extra}]'"
    return f"{scheme}:// needs a package that is not installed; {url!r}; {_one_line(error)}"


def stamp_of(info: dict[str, Any]) -> int:
    """Return a whole number below 2**63 that changes when a file changes, from what its file system tells of it.

    A time becomes nanoseconds since 1970; a text, like an ETag, its hash. 0 if nothing is told.
    """
    value = next((info[name] for name in STAMPS if info.get(name)), 0)
    if isinstance(value, datetime):
        value = value.timestamp()
    if isinstance(value, int | float):
        nanoseconds = int(value * 1_000_000_000)
    else:
        nanoseconds = int.from_bytes(blake2b(str(value).encode(errors="surrogateescape"), digest_size=8).digest())
    return nanoseconds & (1 << 63) - 1


def is_missing(error: Exception, url: str) -> bool:
    """Return whether an error of a file system says that there is no such file."""
    if not isinstance(error, FileNotFoundError):
        return False
    # fsspec's HTTP calls every failure "not found", and keeps the real one as the cause.
    if error.__cause__ is None or scheme_of(url) not in WEB_SCHEMES:
        return True
    return getattr(error.__cause__, "status", None) in {404, 410}


def cause_of(error: Exception) -> str:
    """Return what went wrong with a remote file, on one line."""
    inner = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return f"{type(inner).__name__}: {_one_line(inner)}".removesuffix(": ")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
