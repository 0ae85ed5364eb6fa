"""Rows whose content follows from the clip's number, for the tests of the cache and their child processes."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from amfir.cache import Failure, Row, Store, Stream, StreamSpec, StreamWriter

SPEC = StreamSpec("rgb", frames=2, views=1, dim=3, settings={"backbone": "small", "flow": {"winsize": 15}})


def make_row(number: int, take: int = 0, spec: StreamSpec = SPEC) -> Row:
    """Return the row of clip `number`; another take has other features."""
    rng = np.random.default_rng((number, take))
    features = rng.normal(size=(spec.views, spec.frames, spec.dim)).astype(np.float16)
    times = rng.uniform(size=(spec.views, spec.frames))
    return Row(
        f"class {number % 3}/clip {number:04d}.mp4", f"class {number % 3}", features, times, number, 10**18 + number
    )


def make_failure(number: int, message: str = "no frames") -> Failure:
    """Return a failure of clip `number`."""
    row = make_row(number)
    return Failure(row.clip_id, row.label, "no-frames", message, row.source_size, row.source_mtime_ns)


def write_rows(root: Path, numbers: Iterable[int], take: int = 0) -> Path:
    """Write one segment and return its path."""
    before = set(segment_files(root))
    with StreamWriter(root, SPEC) as writer:
        for number in numbers:
            writer.add(make_row(number, take))
    (path,) = set(segment_files(root)) - before
    return path


def segment_files(root: Path) -> list[Path]:
    """Return the segments in the order of their names."""
    return sorted(root.glob("rgb/segments/*.h5"))


def contents(stream: Stream) -> list[tuple[str, str, bytes, bytes]]:
    """Return all of a stream's rows as something that can be compared."""
    rows = zip(stream.clip_ids, stream.labels, stream.features, stream.times, strict=True)
    return [(clip_id, label, features.tobytes(), times.tobytes()) for clip_id, label, features, times in rows]


def expected(numbers: Iterable[int], take: int = 0) -> list[tuple[str, str, bytes, bytes]]:
    """Return what `contents` has to be after `write_rows`."""
    rows = [make_row(number, take) for number in numbers]
    return sorted((row.clip_id, row.label, row.features.tobytes(), row.times.tobytes()) for row in rows)


def read(root: Path) -> list[tuple[str, str, bytes, bytes]]:
    """Return the contents of the one stream of a cache."""
    return contents(Store(root).read("rgb"))


def start_child(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Run code in another Python, with everything of this module imported and `arguments` as strings in `args`."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); args = sys.argv[1:]\n"
    head += "from cacherows import *\n"
    command = [sys.executable, "-c", head + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
