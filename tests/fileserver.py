"""A web server with one file and selectable faults, for the tests of downloads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FileServer:
    """Serves `content` under any path; its attributes may be changed between requests."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.headers = {"ETag": '"one"'}
        self.ranges = True
        self.drop_after: list[int | None] = []
        """For each request to come: bytes after which the connection is dropped, or None."""
        self.statuses: list[int] = []
        """For each request to come: an error to answer with."""
        self.shift = 0
        """Parts start so many bytes off what was asked for."""
        self.chunked = False
        self.requests: list[dict[str, str]] = []
        """Headers of the requests, in lower case."""
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append(asked)
        drop = self.drop_after.pop(0) if self.drop_after else None
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        start = self._start(asked)
        if start is not None and start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        self._send(handler, start, drop)

    def _start(self, asked: dict[str, str]) -> int | None:
        """Return the first byte of the part that is asked for and can be given."""
        current = asked.get("if-range") in (None, *self.headers.values())
        if not self.ranges or "range" not in asked or not current:
            return None
        return int(asked["range"].removeprefix("bytes=").removesuffix("-"))

    def _send(self, handler: BaseHTTPRequestHandler, start: int | None, drop: int | None) -> None:
        handler.send_response(200 if start is None else 206)
        for name, value in self.headers.items():
            handler.send_header(name, value)
        size = len(self.content)
        first = 0 if start is None else start + self.shift
        if start is not None:
            handler.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
        part = self.content[first:]
        if self.chunked:
            handler.send_header("Transfer-Encoding", "chunked")
            frame = f"{len(part):x}\r\n".encode() + part + b"\r\n0\r\n\r\n"
        else:
            handler.send_header("Content-Length", str(len(part)))
            frame = part
        handler.end_headers()
        with suppress(ConnectionError):  # an interrupted client
            handler.wfile.write(frame[:drop])


@contextmanager
def serve(content: bytes) -> Iterator[FileServer]:
    """Run a server on a free port of this machine."""
    state = FileServer(content)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            state.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/models/net.pth"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
