"""Opening of clips, wherever they lie: the same bytes, and none beside them."""

import io
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from amfir.cache.errors import UserError
from amfir.extract import remote, source
from amfir.extract.clips import Clip
from amfir.extract.decode import DecodeError, Sampled, Want, decode_clip
from amfir.extract.sampling import Sampling
from amfir.extract.source import Window, open_clip, source_of
from amfir.pipeline.datasets import list_clips, open_source

MakeClip = Callable[..., Path]
Span = tuple[int, int]


def decode(path: Path | str, span: Span | None = None) -> Sampled:
    wants = {"rgb": Want(32), "flow": Want(32, pairs=True)}
    return decode_clip(path, Sampling(frames=4, views=2), wants, clip_id="x", span=span)


def same(one: Sampled, other: Sampled) -> bool:
    assert set(one.arrays) == set(other.arrays) == {"rgb", "flow"}
    return one.num_frames == other.num_frames and all(
        np.array_equal(one.arrays[stream], other.arrays[stream])
        and np.array_equal(one.times[stream], other.times[stream])
        for stream in one.arrays
    )


def reason_of(path: Path | str, span: Span | None = None) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(path, span)
    return str(caught.value)


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """Return fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.fixture
def one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let remote files be too large to be fetched in one request."""
    monkeypatch.setattr(source, "WHOLE_BYTES", 1000)


class Handler(SimpleHTTPRequestHandler):
    """A file server that knows ranges, and has some odd corners."""

    requests: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
        path = Path(self.translate_path(self.path))
        if self.path.startswith("/secret/"):
            self.send_error(403)
        elif path.is_dir() or not path.exists():
            super().do_HEAD() if self.command == "HEAD" else super().do_GET()
        else:
            self._send(path.read_bytes())

    do_HEAD = do_GET  # noqa: N815

    def _send(self, data: bytes) -> None:
        size = len(data)
        if "nosize" in self.path:
            self.close_connection = True
            self.send_response(200)
        elif (span := self.headers.get("Range")) and "norange" not in self.path:
            first, last = span.removeprefix("bytes=").split("-")
            data = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.send_header("ETag", '"v1"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if "broken" in self.path else data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serve tmp_path through HTTP and return the URL."""
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp")
    Handler.requests.clear()

    def handler(*args: Any) -> Handler:
        return Handler(*args, directory=str(tmp_path))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def in_tar(folder: Path, *videos: Path) -> list[Clip]:
    path = folder / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for number, video in enumerate(videos):
            tar.add(video, f"run/{number}{video.suffix}")
    return list(open_source(path))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("a.mkv", {"b_frames": 2}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.webm", {"codec": "libvpx-vp9"}),
    ],
)
def test_a_member_of_a_tar_decodes_as_the_file_itself(
    name: str, options: dict[str, object], make_clip: MakeClip, tmp_path: Path
) -> None:
    path = make_clip(tmp_path / name, num_frames=30, **options)
    for clip in in_tar(tmp_path, path, path, path):
        assert same(decode(clip.path, clip.span), decode(path))


def test_nothing_beyond_a_member_is_read(make_clip: MakeClip, tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "a.mkv", num_frames=40)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[:-2000])
    rest = tmp_path / "rest.mkv"
    rest.write_bytes(whole.read_bytes()[-2000:])
    path = tmp_path / "both.bin"
    path.write_bytes(cut.read_bytes() + rest.read_bytes())
    assert same(decode(path), decode(whole))
    # The bytes that are missing lie right behind the member: seeing them, the decoder would find the clip whole.
    assert reason_of(path, (0, cut.stat().st_size)).startswith("damaged: the file is cut off")


def test_a_window_is_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(range(100)))
    whole = io.BytesIO(bytes(range(10, 30)))
    with open_clip(path, (10, 20)) as file:
        assert isinstance(file, Window)
        assert not hasattr(file, "name")
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
        for offset, whence in ((0, 0), (5, 0), (3, 1), (-4, 2), (0, 2), (50, 0), (-1, 1)):
            assert file.seek(offset, whence) == whole.seek(offset, whence)
            assert file.read(6) == whole.read(6)
            assert file.tell() == whole.tell()
        file.seek(0)
        assert file.read() == bytes(range(10, 30))
        with pytest.raises(OSError, match="Invalid argument"):
            file.seek(-1)
        assert file.readable()
        assert not file.writable()


def test_a_window_gives_no_more_than_was_asked_for() -> None:
    class Generous(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(None if size is None else size + 5)

    assert Window(Generous(bytes(range(50))), 10, 20).read(4) == bytes([10, 11, 12, 13])


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        ((0, 0), "empty-file: the member of the tar has 0 bytes"),
        ((90, 11), "damaged: the tar is cut off within this member: 100 bytes of at least 101"),
        ((200, 10), "damaged: the tar is cut off"),
        ((0, 100), "unknown-format"),
    ],
)
def test_a_span_without_a_video_gives_its_reason(span: Span, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(100))
    assert reason_of(path, span).startswith(reason)


def test_the_source_of_a_clip_is_its_size_and_time(tmp_path: Path, memory: MemoryFileSystem) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(50))
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    assert source_of(Clip("a", path, "x")) == (50, 1_234_567_890_123_456_789)
    assert source_of(Clip("a", path, "x", (10, 20))) == (20, 1_234_567_890_123_456_789)
    memory.pipe("/v/a", bytes(7))
    size, stamp = source_of(Clip("a", "memory://v/a", "x"))
    assert size == 7
    assert abs(stamp - path.parent.stat().st_mtime_ns) < 1e12
    assert source_of(Clip("a", "memory://v/a", "x")) == (7, stamp)
    assert source_of(Clip("a", tmp_path / "gone", "x")) == (0, 0)
    assert source_of(Clip("a", tmp_path / "a\0b", "x")) == (0, 0)
    assert source_of(Clip("a", "memory://v/gone", "x")) == (0, 0)


def test_a_stamp_is_a_time_or_a_mark_of_the_content() -> None:
    from datetime import UTC, datetime

    assert remote.stamp_of({"size": 1}) == 0
    assert remote.stamp_of({"mtime": 1.5}) == 1_500_000_000
    assert remote.stamp_of({"LastModified": datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)}) == 2_000_000_000
    stamps = [remote.stamp_of({"ETag": mark}) for mark in ("a", "b", "a")]
    assert stamps[0] == stamps[2] != stamps[1]
    assert all(0 < stamp < 1 << 63 for stamp in stamps)


def test_a_clip_in_memory_decodes_as_the_file_itself(
    make_clip: MakeClip, tmp_path: Path, memory: MemoryFileSystem
) -> None:
    path = make_clip(tmp_path / "a.mp4")
    memory.pipe("/v/a.mp4", path.read_bytes())
    assert same(decode("memory://v/a.mp4"), decode(path))
    clip = in_tar(tmp_path, path, path)[1]
    memory.pipe("/v/s.tar", (tmp_path / "shard.tar").read_bytes())
    assert same(decode("memory://v/s.tar", clip.span), decode(path))


@pytest.mark.usefixtures("one_block")
def test_a_large_remote_clip_is_read_in_parts(make_clip: MakeClip, tmp_path: Path, memory: MemoryFileSystem) -> None:
    path = make_clip(tmp_path / "a.mp4")
    memory.pipe("/v/a.mp4", b"before" + path.read_bytes() + b"behind")
    assert same(decode("memory://v/a.mp4", (6, path.stat().st_size)), decode(path))


def test_remote_names_without_a_clip_give_their_reason(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/v/empty", b"")
    memory.pipe("/v/text", b"text")
    assert reason_of("memory://v/gone").startswith("missing: FileNotFoundError")
    assert reason_of("memory://v/empty") == "empty-file: the file has 0 bytes"
    assert reason_of("memory://v/text", (2, 5)).startswith("damaged: the tar is cut off")
    assert reason_of("memory://v") == "not-a-file: a directory, not a regular file"
    assert reason_of("memory://v/text").startswith("unknown-format")
    assert reason_of("nonsense://v/text").startswith("unreadable: not a URL that fsspec opens")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError("no access")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", lambda *args: b"te")
        assert reason_of("memory://v/text") == "unreadable: the server sent 2 bytes of 4"
    monkeypatch.setattr(MemoryFileSystem, "info", refuse)
    assert reason_of("memory://v/text") == "unreadable: PermissionError: no access"


@pytest.mark.usefixtures("one_block")
def test_a_server_that_fails_while_a_clip_is_read_makes_it_unreadable(
    make_clip: MakeClip, tmp_path: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        error: Exception = OSError("gone")

        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 1000:
                raise self.error
            return super().read(size)

    data = make_clip(tmp_path / "a.mp4").read_bytes()
    memory.pipe("/v/a.mp4", data)
    monkeypatch.setattr(MemoryFileSystem, "open", lambda *args: Failing(data))
    assert reason_of("memory://v/a.mp4").startswith("unreadable: gone")
    Failing.error = RuntimeError("half\nway")
    assert reason_of("memory://v/a.mp4").startswith("unreadable: RuntimeError: half way")


def test_a_clip_on_a_web_server_decodes_as_the_file_itself(make_clip: MakeClip, tmp_path: Path, server: str) -> None:
    path = make_clip(tmp_path / "a b.mp4")
    assert same(decode(f"{server}/a b.mp4"), decode(path))
    assert same(decode(f"{server}/a%20b.mp4"), decode(path))
    assert len([request for request in Handler.requests if request.startswith("GET")]) == 2
    size, stamp = source_of(Clip("a", f"{server}/a%20b.mp4", "x"))
    assert (size, stamp > 0) == (path.stat().st_size, True)
    start, length = in_tar(tmp_path, path, path)[1].span or (0, 0)
    assert same(decode(f"{server}/shard.tar", (start, length)), decode(path))
    assert Handler.requests[-1].split()[-1] == f"bytes={start}-{start + length - 1}"


@pytest.mark.usefixtures("one_block")
def test_a_large_clip_on_a_web_server_is_read_in_parts(make_clip: MakeClip, tmp_path: Path, server: str) -> None:
    path = make_clip(tmp_path / "a.mp4")
    assert same(decode(f"{server}/a.mp4"), decode(path))
    assert "bytes=" in Handler.requests[-1]


def test_servers_that_tell_no_size_or_know_no_ranges_will_do(
    make_clip: MakeClip, tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "nosize.mp4")
    make_clip(tmp_path / "norange.mp4")
    (tmp_path / "nosize-empty.mp4").write_bytes(b"")
    assert same(decode(f"{server}/nosize.mp4"), decode(path))
    assert same(decode(f"{server}/norange.mp4"), decode(path))
    assert reason_of(f"{server}/nosize-empty.mp4") == "empty-file: the file has 0 bytes"
    monkeypatch.setattr(source, "WHOLE_BYTES", 1000)
    assert reason_of(f"{server}/nosize.mp4").startswith("unreadable: the server does not tell the size")


def test_web_addresses_without_a_clip_give_their_reason(make_clip: MakeClip, tmp_path: Path, server: str) -> None:
    make_clip(tmp_path / "broken.mp4")
    assert reason_of(f"{server}/gone.mp4").startswith("missing: ")
    assert reason_of(f"{server}/secret/a.mp4").startswith("unreadable: ClientResponseError: 403")
    assert reason_of(f"{server}/broken.mp4").startswith("unreadable: ")
    assert reason_of("http://127.0.0.1:9/a.mp4").startswith("unreadable: ClientConnectorError")


def test_a_folder_in_memory_is_listed_as_a_local_one(memory: MemoryFileSystem) -> None:
    for name in (
        "run/b.mp4",
        "run/a/x.mp4",
        "run/a.mp4",
        "run/a.txt",
        "run/.x.mp4",
        "walk/ü\n.mp4",
        "README",
        ".git/x/y",
    ):
        memory.pipe(f"/v/{name}", b"x")
    expected = [
        Clip(f"{name}", f"memory://v/{name}", name.partition("/")[0])
        for name in ("run/a.mp4", "run/a/x.mp4", "run/b.mp4", "walk/ü\n.mp4")
    ]
    assert list(open_source("memory://v")) == list(open_source("memory://v/")) == expected
    assert [clip.path for clip in expected] == [clip.place for clip in expected]
    memory.pipe("/v/stray.mp4", b"x")
    with pytest.raises(UserError, match=r"1 file lies in no class folder \(stray.mp4\); in memory://v/"):
        list(open_source("memory://v"))
    with pytest.raises(UserError, match="cannot list the folder 'memory://gone/'"):
        open_source("memory://gone")


def test_a_folder_that_lists_itself_is_not_entered_again(
    memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/v/run/a.mp4", b"x")
    listed = MemoryFileSystem.ls

    def as_object_stores_do(files: MemoryFileSystem, path: str, **kwargs: object) -> list[dict[str, object]]:
        return [{"name": path + "/", "type": "file", "size": 0}, *listed(files, path, **kwargs)]

    monkeypatch.setattr(MemoryFileSystem, "ls", as_object_stores_do)
    assert [clip.id for clip in open_source("memory://v")] == ["run/a.mp4"]


def test_a_csv_in_memory_may_name_remote_and_local_files(tmp_path: Path, memory: MemoryFileSystem) -> None:
    (tmp_path / "c.mp4").write_bytes(b"x")
    rows = ["path,label", "a.mp4,run", "../other//b.mp4,run", f"{tmp_path}/c.mp4,walk", "memory://d//d.mp4,walk"]
    memory.pipe("/v/list.csv", "\n".join(rows).encode())
    assert [(clip.id, clip.path) for clip in open_source("memory://v/list.csv")] == [
        ("a.mp4", "memory://v/a.mp4"),
        ("../other/b.mp4", "memory://other/b.mp4"),
        (f"{tmp_path}/c.mp4", tmp_path / "c.mp4"),
        ("memory://d//d.mp4", "memory://d//d.mp4"),
    ]
    memory.pipe("/v/list.csv", b"path,label\na.mp4,run\nx\n")
    with pytest.raises(UserError, match=r"1 cells .* line 3 of memory://v/list.csv"):
        list(open_source("memory://v/list.csv"))
    with pytest.raises(UserError, match=r"cannot read the list 'memory://v/gone.csv'; FileNotFoundError"):
        list(open_source("memory://v/gone.csv"))


def test_a_csv_and_a_folder_on_a_web_server_are_listed(make_clip: MakeClip, tmp_path: Path, server: str) -> None:
    for name in ("b c.mp4", "a.mp4", "index.txt"):
        (tmp_path / "v/run").mkdir(parents=True, exist_ok=True)
        (tmp_path / "v/run" / name).write_bytes(b"x")
    (tmp_path / "v/list.csv").write_text(f"path,label\nrun/a.mp4,run\n{server}/v/run/b c.mp4,run\n")
    clips = list_clips(f"{server}/v/list.csv?key=1")
    assert [clip.id for clip in clips] == [f"{server}/v/run/b c.mp4", "run/a.mp4"]
    assert [clip.path for clip in clips] == [f"{server}/v/run/b c.mp4", f"{server}/v/run/a.mp4"]
    clips = list_clips(f"{server}/v")
    assert [(clip.id, clip.label) for clip in clips] == [("run/a.mp4", "run"), ("run/b%20c.mp4", "run")]
    assert [clip.path for clip in clips] == [f"{server}/v/run/a.mp4", f"{server}/v/run/b%20c.mp4"]
    for clip in clips:
        with open_clip(clip.path) as file:
            assert file.read() == b"x"


def test_shards_on_a_server_are_refused(memory: MemoryFileSystem) -> None:
    memory.pipe("/v/s.tar", b"x")
    for url in ("memory://v/s.tar", "memory://v", "memory://v/s-{0..9}.tar", "memory://v/s.tar.gz"):
        with pytest.raises(UserError, match=r"no shards from a server; .* copy or mount them"):
            open_source(url)


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the packages behind two schemes be missing."""
    from fsspec.registry import known_implementations

    for scheme in ("gs", "zz"):
        entry = {"class": "no_such_package.Files", "err": "Install zzfs\nto open zz"}
        monkeypatch.setitem(known_implementations, scheme, entry)


@pytest.mark.usefixtures("uninstalled")
def test_a_missing_package_is_named_by_its_extra(tmp_path: Path) -> None:
    hint = r"gs:// needs a package that is not installed; 'gs://b/v/a.mp4'; run pip install 'amfir\[gs\]'"
    (tmp_path / "list.csv").write_text("path,label\ngs://b/v/a.mp4,run\n")
    with pytest.raises(UserError, match="line 2: " + hint):
        list(open_source(tmp_path / "list.csv"))
    assert reason_of("gs://b/v/a.mp4") == "unreadable: " + hint.replace("\\", "")
    with pytest.raises(UserError, match=r"'gs://b/v/'; run pip install 'amfir\[gs\]'"):
        open_source("gs://b/v")
    with pytest.raises(UserError, match=r"'gs://b/v.csv'; run pip install 'amfir\[gs\]'"):
        list(open_source("gs://b/v.csv"))
    with pytest.raises(
        UserError, match="zz:// needs a package that is not installed; 'zz://v/'; Install zzfs to open zz"
    ):
        open_source("zz://v")


def test_a_scheme_that_cannot_be_reached_stops_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no name node")

    monkeypatch.setattr(MemoryFileSystem, "__init__", refuse)
    monkeypatch.setattr(MemoryFileSystem, "_cache", {})
    (tmp_path / "list.csv").write_text("path,label\nmemory://a.mp4,run\n")
    with pytest.raises(UserError, match=r"cannot reach 'memory://a.mp4' \(OSError: no name node\); line 2; mend"):
        list(open_source(tmp_path / "list.csv"))
