"""What the extraction works on: one video with its identity, its class and the place where it lies."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

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


@runtime_checkable
class Checked(Protocol):
    """A list of clips that was written down, so that files of it that are missing are mistakes in the list."""

    def __iter__(self) -> Iterator[Clip]:
        """Go through the list."""
        ...

    def require(self, clips: Iterable[Clip]) -> None:
        """Make sure that the files of some of its clips are there.

        Raises:
            UserError: If they are not.
        """
        ...
