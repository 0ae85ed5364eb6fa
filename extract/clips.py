"""What the extraction works on: one video file with its identity and its class."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Clip:
    """A video file of a dataset."""

    id: str
    """Path relative to the dataset, with forward slashes; never the stem, since two folders may hold the same name."""
    path: Path
    """Where the file lies."""
    label: str
    """Name of the clip's class."""
