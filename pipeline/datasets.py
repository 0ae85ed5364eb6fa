"""Which clips a dataset has: a folder per class, a CSV `path,label[,split]`, or tar shards; local, or on a server.

Only names are read here. Whether a file is a video is for the extractor to find out, which answers with a reason code;
so in a folder every file is a candidate unless its name says that it accompanies videos (hidden files, notes, lists).
"""

import re
from collections.abc import Iterable
from pathlib import Path

from ..cache.errors import UserError
from ..extract.clips import Checked, Clip
from ..extract.remote import as_place, bare, scheme_of
from .source_csv import PARTS, CsvSource, csv_split
from .source_folder import FolderSource, list_folder
from .source_tar import COMPRESSED_SUFFIXES, TarSource, find_shards, match_shards

__all__ = ["PARTS", "csv_split", "list_clips", "open_source"]

_FORMS = "name a folder with one folder a class, a CSV file or tar shards"
_REMOTE_TARS = (
    "tar shards are listed by reading their headers one after the other, which takes hours on a server; copy or mount "
    "them, or name a folder or a CSV"
)


def open_source(videos: str | Path) -> Iterable[Clip]:
    """Open a dataset, so that its clips can be iterated, again and again in one order.

    The clips are listed on the way, so that memory does not grow with their number. Complaints about the list as a
    whole (an id twice, no clips at all) come at the end of the first complete iteration.

    Args:
        videos: A folder with one folder a class, a CSV, a tar, a folder of tars, or a pattern of tars like
            `train-{000000..000099}.tar`. As a `str`, also the URL of a folder or a CSV.

    Returns:
        The clips. Iterating raises UserError if the list is bad.

    Raises:
        UserError: If there is no such dataset, or none of a kind that is known.
    """
    place = as_place(videos) if isinstance(videos, str) else videos
    return _open_remote(place) if isinstance(place, str) else _open_local(place, str(videos))


def list_clips(videos: str | Path) -> list[Clip]:
    """List the clips of a small dataset, sorted by id.

    Raises:
        UserError: If `videos` is missing, has no clips or clips without a class, or if the list is bad.
    """
    source = open_source(videos)
    clips = sorted(source)
    if isinstance(source, Checked):
        source.require(clips)
    return clips


def _open_local(path: Path, given: str) -> Iterable[Clip]:
    if path.is_dir():
        shards = find_shards(path)
        return TarSource(shards) if shards else FolderSource(path)
    name = path.name.lower()
    if name.endswith(COMPRESSED_SUFFIXES):
        raise UserError(f"{given!r} is compressed; only plain .tar shards are read; unpack it, videos get no smaller")
    if path.exists():
        if name.endswith(".tar"):
            return TarSource([path])
        if not name.endswith(".csv"):
            raise UserError(f"{str(path)!r} is neither a folder nor a .csv file nor a .tar shard; {_FORMS}")
        return CsvSource(path)
    if name.endswith(".tar") and re.search(r"[*?\[{]", given):
        return TarSource(match_shards(given))
    scheme = scheme_of(given)
    unknown = f", and {scheme}:// is no scheme that fsspec knows" if scheme else ""
    raise UserError(f"no such data set: {given!r}{unknown}; {_FORMS}")


def _open_remote(url: str) -> Iterable[Clip]:
    name = bare(url).lower()
    if name.endswith(".csv"):
        return CsvSource(url)
    if name.endswith((".tar", *COMPRESSED_SUFFIXES)):
        raise UserError(f"no shards from a server; {url!r}; {_REMOTE_TARS}")
    entries = list_folder(url if url.endswith("/") else url + "/").entries
    if not any(is_folder for _, is_folder in entries) and any(name.endswith(".tar") for name, _ in entries):
        raise UserError(f"no shards from a server; {url!r}; {_REMOTE_TARS}")
    return FolderSource(url)
