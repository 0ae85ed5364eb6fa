"""What the extraction works on: one video with its identity, its class and the place where it lies."""

from pathlib import Path
from typing import NamedTuple

from .remote import as_place


class Clip(NamedTuple):
    """A video of a dataset. A tuple with few objects in it, since listing a dataset may make millions of them."""

    id: str
    """Name within the dataset, with forward slashes; never the stem, since two folders may hold the same name."""
    place: Path | str
    """Where it lies, as given; see `path`."""
    label: str
    """Name of the clip's class."""
    span: tuple[int, int] | None = None
    """Offset and length in bytes, if the clip is a member of the uncompressed tar at `path`; None for a whole file."""

    @property
    def path(self) -> Path | str:
        """A local file as a `Path`, a URL that fsspec opens as a `str`. Made on demand, since most are never opened."""
        return as_place(self.place) if isinstance(self.place, str) else self.place
