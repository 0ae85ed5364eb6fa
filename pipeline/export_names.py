"""File names for clips, which may be called anything."""

import hashlib
import re

_UNSAFE = re.compile(r'[<>:"|?*\\/]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_NAME_BYTES = 180


def utf8_text(text: str) -> str:
    """Return a text that UTF-8 can hold: what was no UTF-8 in a file's name becomes escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def file_name(clip_id: str, label: str) -> str:
    """Return where a clip lies below its stream's folder; no id leads out of it.

    As the id, where that begins with the class and any file system takes it: the import then gives the same id without
    the list, too. Otherwise LABEL/LAST-DIGEST.npy, with what is not safe in a name replaced.
    """
    parts = clip_id.split("/")
    if parts[0] == label and len(parts) > 1 and all(map(_is_safe, parts)):
        return f"{clip_id}.npy"
    digest = hashlib.sha256(clip_id.encode()).hexdigest()[:16]
    return f"{_safe(label)}/{_safe(parts[-1])}-{digest}.npy"


def _is_safe(part: str) -> bool:
    # A folder called like a file, x.npy, could stand in the way of the file of clip x.
    return part == _safe(part) and not part.lower().endswith(".npy")


def _safe(part: str) -> str:
    """Return a name that is no path, is not hidden, and is allowed everywhere."""
    shown = "".join(char if char.isprintable() else "_" for char in _UNSAFE.sub("_", part))
    short = shown.encode()[:_NAME_BYTES].decode(errors="ignore").strip(" .")
    return f"_{short}" if not short or _RESERVED.fullmatch(short) else short
