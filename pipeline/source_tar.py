"""Clips in tar shards of the WebDataset layout: the members `KEY.mp4`, `KEY.cls` and so on belong together."""

import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from glob import glob
from itertools import product
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..cache.errors import UserError
from ..extract.clips import Clip
from .repeats import first_repeat
from .tar_members import READ_BYTES, Member, tar_members

VIDEO_SUFFIXES = frozenset(
    "3g2 3gp asf avi divx dv f4v flv gif m2ts m2v m4v mkv mov mp4 mpe mpeg mpg mts mxf ogm ogv rm rmvb ts vob webm wmv"
    " y4m".split()
)
"""Members with these suffixes are clips."""

LABEL_EXTENSIONS = ("cls", "txt", "json")
"""Where a clip's label is looked for, in this order."""
LABEL_KEYS = ("label", "class")
"""Where it is looked for in a JSON object."""
MAX_LABEL_BYTES = 1 << 20

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")


class TarSource:
    """The clips of tar shards, in the order of the shards and of their members.

    The id is `SHARD.tar/MEMBER`. The label is the text of `KEY.cls` or `KEY.txt`, or "label" or "class" in `KEY.json`;
    without such a member, the first folder of the member's name. KEY is the name up to the first dot behind the last
    slash. The first complete iteration also makes sure that no id occurs twice.

    Args:
        shards: The shards.
    """

    def __init__(self, shards: list[Path]) -> None:
        self._shards = [Path(os.path.abspath(shard)) for shard in shards]
        self._checked = False

    def __iter__(self) -> Iterator[Clip]:
        hashes = array("q")
        for clip in self._clips():
            if not self._checked:
                hashes.append(hash(clip.id))
            yield clip
        if self._checked:
            return
        if not hashes:
            raise UserError(
                f"no clips; in {len(self._shards)} tar shards ({str(self._shards[0])!r}, ...); videos are known by "
                "their suffix (.mp4, .avi, .mkv, .webm, ...)"
            )
        if repeat := first_repeat(hashes, lambda: ((clip.id, str(clip.place)) for clip in self._clips())):
            clip_id, first, second = repeat
            raise UserError(f"{clip_id!r} occurs twice; in {first} and {second}; rename or drop one")
        self._checked = True

    def _clips(self) -> Iterator[Clip]:
        for shard in self._shards:
            yield from _shard_clips(shard)


def find_shards(folder: Path) -> list[Path]:
    """Return the tar files in a folder, sorted; none if it has folders too, since then those are the classes.

    Raises:
        UserError: If there are compressed ones among them.
    """
    with os.scandir(folder) as entries:
        names = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                return []
            names.append(entry.name)
    compressed = sorted(name for name in names if name.lower().endswith(COMPRESSED_SUFFIXES))
    if compressed:
        raise UserError(
            f"{len(compressed)} shards are compressed ({compressed[0]!r}, ...); in {folder}; unpack them to plain .tar "
            "files, videos get no smaller by compression"
        )
    return [folder / name for name in sorted(names) if name.lower().endswith(".tar")]


def match_shards(pattern: str) -> list[Path]:
    """Return the tar files that a pattern names, `shard-{000000..000099}.tar` or `*.tar`, in its order.

    Raises:
        UserError: If there are none, or some of a range are missing.
    """
    named = list(_expand_braces(pattern))
    shards = [shard for name in named for shard in (sorted(glob(name)) if re.search(r"[*?[]", name) else [name])]
    missing = [shard for shard in shards if not os.path.lexists(shard)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(shards)} shards are missing ({missing[0]!r}, ...); in {pattern!r}; mend the range"
        )
    if not shards:
        raise UserError(f"no shards; nothing matches {pattern!r}; mend the pattern")
    return [Path(shard) for shard in shards]


def _expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that `{000..099}` and `{a,b}` stand for."""
    parts = re.split(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}", pattern)
    for chosen in product(*(_alternatives(brace) for brace in parts[1::2])):
        yield parts[0] + "".join(value + text for value, text in zip(chosen, parts[2::2], strict=True))


def _alternatives(brace: str) -> list[str]:
    if ".." not in brace or "," in brace:
        return brace.split(",")
    first, last = brace.split("..")
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


def _shard_clips(shard: Path) -> Iterator[Clip]:
    """Yield the clips of a shard."""
    with shard.open("rb", buffering=READ_BYTES) as file:
        for key, group in _groups(tar_members(shard, file)):
            videos = [member for extension, member in group if extension.rpartition(".")[2] in VIDEO_SUFFIXES]
            if videos:
                label = _label_beside(dict(group), _Shard(shard, file)) or _label_in_name(key, shard)
                for video in videos:
                    yield _clip(video, label, shard)


def _groups(members: Iterable[Member]) -> Iterator[tuple[str, list[tuple[str, Member]]]]:
    """Yield each key, the name up to the first dot behind the last slash, with the extensions and members that have it.

    They lie together, so that only those of one key have to be remembered. Hidden files are left out.
    """
    last = ""
    group: list[tuple[str, Member]] = []
    for member in members:
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, _, extension = name.partition(".")
        key = folder + slash + stem
        if key != last:
            if group:
                yield last, group
            last, group = key, []
        if stem:
            group.append((extension.lower(), member))
    if group:
        yield last, group


def _clip(video: Member, label: str, shard: Path) -> Clip:
    if video.kind:
        raise UserError(
            f"{video.name!r} is a {video.kind}; in shard {str(shard)!r}; only regular files are read from tars, so "
            "repack it (tar --hard-dereference --dereference)"
        )
    return Clip(f"{shard.name}/{video.name.removeprefix('./')}", str(shard), label, (video.offset, video.size))


class _Shard(NamedTuple):
    """An open shard."""

    path: Path
    file: BinaryIO

    def read(self, member: Member) -> bytes:
        """Return the bytes of a small member."""
        where = f"{member.name!r} in shard {str(self.path)!r}"
        if member.kind or member.size > MAX_LABEL_BYTES:
            raise UserError(f"no label in a {member.kind or 'file so large'}; {where}; write the class into a file")
        self.file.seek(member.offset)
        data = self.file.read(member.size)
        if len(data) < member.size:
            raise UserError(f"the tar is cut off; within {where}; copy it again, or leave it out by a pattern")
        return data


def _label_beside(beside: dict[str, Member], shard: _Shard) -> str:
    """Return the label that a member beside the video holds; empty if there is none."""
    for extension in LABEL_EXTENSIONS:
        if member := beside.get(extension):
            data = shard.read(member)
            text = _label_in_json(data, member, shard) if extension == "json" else data.decode(errors="surrogateescape")
            if label := text.strip():
                return label
    return ""


def _label_in_json(data: bytes, member: Member, shard: _Shard) -> str:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error}); {member.name!r} in shard {str(shard.path)!r}; mend the file") from error
    found = [content[name] for name in LABEL_KEYS if name in content] if isinstance(content, dict) else []
    return str(found[0]) if found and isinstance(found[0], str | int) else ""


def _label_in_name(key: str, shard: Path) -> str:
    """Return the first folder of a key."""
    folder, slash, _ = key.lstrip("/").partition("/")
    if not slash:
        raise UserError(
            f"no label; for {key!r} in shard {str(shard)!r}; put a {key}.cls with the class beside the video, or the "
            "video into a folder with the class's name; if it is the shard's last, the shard may be cut off"
        )
    return folder
