"""One file over HTTP, in as many requests as it takes."""

import os
import re
import time
from collections.abc import Callable
from email.message import Message
from http.client import HTTPException, HTTPResponse
from io import FileIO
from pathlib import Path
from typing import cast
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ..cache.errors import UserError

Progress = Callable[[int, int, int], None]
"""Called with the bytes that are here, those of the whole file (0: not known), and those that an earlier run left."""

RETRIES = 3
"""Attempts after one that brought nothing new."""
PAUSE_SECONDS = 1.0
"""Pause before the first of them; each further one waits longer by as much."""
_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 18
_BUSY = {429, 500, 502, 503, 504}


class _DropError(Exception):
    """An attempt ended early; another may go further."""


class Transfer:
    """Brings a partial file to its full length, in as many requests as it takes.

    Args:
        url: Address.
        target: Where the file will lie, for the errors.
        file: What has arrived, opened to append.
        version: File that holds the server's mark of the version that has arrived.
        checked: Whether a hash will tell if the parts do not belong together.
        progress: Called after each piece.
    """

    def __init__(
        self, url: str, target: Path, file: FileIO, version: Path, checked: bool, progress: Progress | None
    ) -> None:
        self._url = url
        self._target = target
        self._file = file
        self._version = version
        self._checked = checked
        self._progress = progress or (lambda ready, total, before: None)
        self._size = self._before = os.fstat(file.fileno()).st_size
        self._answered = False

    def run(self) -> None:
        """Send requests until the file is whole.

        Raises:
            UserError: If the server cannot be reached, refuses, or several attempts in a row brought nothing new.
        """
        furthest, fruitless = self._size, 0
        while True:
            try:
                return self._receive()
            except _DropError as drop:
                fruitless = 1 if self._size > furthest else fruitless + 1
                furthest = max(furthest, self._size)
                # A server that never answered is not waited for: most often there is no network at all.
                if fruitless > RETRIES or not self._answered:
                    raise self._failure(str(drop)) from drop
                time.sleep(PAUSE_SECONDS * fruitless)

    def _receive(self) -> None:
        """Send one request and append what it brings."""
        reply = self._ask()
        if reply is None:
            return
        with reply:
            total = self._total(reply)
            while chunk := self._read(reply):
                self._append(chunk)
                self._progress(self._size, total, self._before)
        if self._size < total:
            raise _DropError(f"the connection was dropped after {self._size} of {total} bytes")

    def _ask(self) -> HTTPResponse | None:
        """Send a request for what is missing; return None if nothing is."""
        request = Request(self._url, headers={"User-Agent": "amfir", **self._range()})
        try:
            reply = cast(HTTPResponse, urlopen(request, timeout=_TIMEOUT_SECONDS))
        except HTTPError as error:
            self._answered = True
            with error:
                return self._after_refusal(error)
        except (OSError, HTTPException) as error:
            raise _DropError(_cause(error)) from error
        self._answered = True
        return reply

    def _range(self) -> dict[str, str]:
        """Return the headers that ask for the rest, if it is certain that it will belong to what is here."""
        version = self._version.read_text(encoding="latin-1") if self._version.exists() else ""
        if self._size == 0 or not (version or self._checked):
            return {}
        headers = {"Range": f"bytes={self._size}-"}
        return headers | {"If-Range": version} if version else headers

    def _after_refusal(self, error: HTTPError) -> HTTPResponse | None:
        """Go on after an HTTP error, if that is possible."""
        if error.code in _BUSY:
            raise _DropError(f"HTTP {error.code} {error.reason}")
        if error.code != 416 or self._size == 0:
            raise self._failure(f"HTTP {error.code} {error.reason}")
        if error.headers.get("Content-Range") == f"bytes */{self._size}":
            return None
        self._start_anew("")
        return self._ask()

    def _total(self, reply: HTTPResponse) -> int:
        """Return the size of the whole file (0: not known), after making room for a reply that starts at byte 0."""
        if reply.status == 206:
            part = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", reply.headers.get("Content-Range", ""))
            if part and int(part[1]) == self._size:
                return int(part[2])
            self._start_anew("")
            raise _DropError("the server sent another part than was asked for")
        self._start_anew(_version_of(reply.headers))
        return int(reply.headers.get("Content-Length") or 0)

    def _start_anew(self, version: str) -> None:
        """Forget what has arrived; what arrives from now on belongs to `version`."""
        if self._size:
            self._file.truncate(0)
        self._size = self._before = 0
        self._version.write_text(version, encoding="latin-1")

    def _read(self, reply: HTTPResponse) -> bytes:
        try:
            return reply.read(_CHUNK_BYTES)
        except (OSError, HTTPException) as error:
            raise _DropError(f"the connection was dropped after {self._size} bytes, {_cause(error)}") from error

    def _append(self, chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            written = self._file.write(left)
            left = left[written:]
            self._size += written

    def _failure(self, cause: str) -> UserError:
        """Return the error that ends the command."""
        ask = "" if self._answered else "is there a network? "
        keeps = "; what has arrived is kept, and the same command goes on from there" if self._size else ""
        return UserError(
            f"cannot fetch the file ({cause}); {self._url}; {ask}fetch it on another machine "
            "and pass --rgb-weights or --flow-weights FILE, "
            f"or copy it to {self._target}{keeps}"
        )


def _version_of(headers: Message) -> str:
    """Return what `If-Range` takes: a strong ETag, else the date of the last change, else nothing."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _cause(error: Exception) -> str:
    """Say on one line what a network error is."""
    inner = error.reason if isinstance(error, URLError) else error
    text = (inner.strerror if isinstance(inner, OSError) else None) or str(inner) or type(inner).__name__
    return " ".join(text.split())
