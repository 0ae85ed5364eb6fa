"""A gallery: labelled clips of a cache as the heads of runs embed them, in an index that is kept beside the run."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..cache.errors import UserError, pick
from ..cache.view import load_view, settled
from ..meta.search import PrototypeIndex
from ..meta.search.backends import APPROXIMATE, BACKENDS, build_backend, choose_backend
from ..meta.search.files import MANIFEST
from .embedder import Embedder, Progress, embed_in_blocks
from .features import FeatureSet, require_disjoint
from .splits import load_split

PER = {"clip": "each clip is a prototype", "class": "the mean of a class's clips is one"}
"""What a prototype stands for."""

DIGITS = 16
"""Hexadecimal digits of a hash that people may have to compare."""

Say = Callable[[str], None]
"""Takes a line for the user."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """Labelled clips, and what of them becomes a prototype."""

    cache: Path
    """Where their features are."""
    data: FeatureSet
    """With the streams that the runs look at."""
    clips: Tensor
    """Which of the cache's clips, indices [n], rising."""
    per: str
    """A key of `PER`."""
    split: str
    """Of which these are the test classes' clips; "none": all clips."""

    @cached_property
    def labels(self) -> Tensor:
        """Class ids of the clips, [n]."""
        return self.data.labels[self.clips]

    @cached_property
    def class_ids(self) -> Tensor:
        """Of the classes that these clips are of, rising."""
        class_ids: Tensor = torch.unique(self.labels)
        return class_ids

    @property
    def class_names(self) -> list[str]:
        """Of the same."""
        return [self.data.class_names[class_id] for class_id in self.class_ids.tolist()]

    @property
    def prototype_labels(self) -> Tensor:
        """Class id of each prototype, [N]."""
        return self.labels if self.per == "clip" else self.class_ids

    def name(self, prototype: int) -> str:
        """The clip id of a prototype; the class's name where a class is one."""
        if self.per == "clip":
            return self.data.clip_ids[int(self.clips[prototype])]
        return self.data.class_names[int(self.class_ids[prototype])]


def open_gallery(embedder: Embedder, cache: Path, split: str | None = None, per: str = "clip") -> Gallery:
    """Open a cache whose clips become prototypes.

    Args:
        embedder: The runs.
        cache: Its directory.
        split: Only the clips of its test classes; None: all clips.
        per: A key of `PER`.

    Raises:
        UserError: If the cache or the split does not fit the runs, or the clips are all of one class.
    """
    pick(PER, per, "kind of prototype")
    data = embedder.load(cache)
    clips = torch.arange(len(data.labels))
    if split is not None:
        parts = load_split(split, data.class_names)
        for folder, made in zip(embedder.folders, embedder.made, strict=True):
            require_disjoint(made, parts, folder)
        clips = data.clips_of(parts.test)
    gallery = Gallery(cache, data, clips, per, split or "none")
    if (classes := len(gallery.class_ids)) < 2:
        raise UserError(f"the gallery has clips of {classes} class; {cache}; give one of two classes at least")
    return gallery


@dataclass(frozen=True)
class Place:
    """Where an index is kept."""

    folder: Path
    """Made if it is not there."""
    named: bool = False
    """Whether the user named it: an index of something else there is then refused, not replaced."""
    rebuild: bool = False
    """Make it anew, whatever is there."""


def require_backend(name: str) -> None:
    """Refuse what is neither a key of `BACKENDS` nor "auto".

    Raises:
        UserError: If it is not.
    """
    pick({**BACKENDS, "auto": ""}, name, "search backend")


def take_index(
    embedder: Embedder, gallery: Gallery, backend: str, place: Place, say: Say, progress: Progress | None = None
) -> tuple[PrototypeIndex, bool]:
    """Load the gallery's index, or build and keep it.

    Args:
        embedder: The runs.
        gallery: Of which the index is.
        backend: A key of `BACKENDS`, or "auto": the fastest exact one.
        place: Where it is kept.
        say: Told why an index that is there is not taken.
        progress: Told after each block of clips that is embedded.

    Returns:
        The index, and whether it was loaded.

    Raises:
        UserError: If the backend is unknown, features are not finite, or the index at a named place is of another run
            or gallery, or damaged.
    """
    require_backend(backend)
    made_of = fingerprint(embedder, gallery)
    found = _load(place, made_of, say)
    if found is None:
        num = len(gallery.prototype_labels)
        blocks = _blocks(embedder, gallery, progress or (lambda *_: None))
        index = PrototypeIndex.from_blocks(blocks, num, embedder.temperatures, backend=backend)
        index.save(place.folder, made_of)
        return index, False
    index = _searched_by(found, backend)
    # The prototypes are there; an approximate backend takes long to build, too.
    if index is not found and index.backend.name in APPROXIMATE:
        index.save(place.folder, made_of)
    return index, True


def fingerprint(embedder: Embedder, gallery: Gallery) -> dict[str, str]:
    """What an index is made of, in words and hashes that fit into a line: of equal ones the prototypes are equal.

    Of the split there is what it chooses: it may be written in several ways, and its file may change.
    """
    digest = _digest_of_clips(gallery)
    return {
        "run": "+".join(_digest_of_run(folder) for folder in embedder.folders),
        "streams": ",".join(embedder.streams),
        "per": gallery.per,
        "gallery": f"{len(gallery.clips)} clips of {len(gallery.class_ids)} classes ({digest})",
    }


def _digest_of_run(folder: Path) -> str:
    # It names the tensors' file by a hash of all that both hold.
    return hashlib.sha256((folder / "model.json").read_bytes()).hexdigest()[:DIGITS]


def _digest_of_clips(gallery: Gallery) -> str:
    """Hash of the specs and of every byte of the clips: ids, labels, features."""
    wanted = {gallery.data.clip_ids[clip] for clip in gallery.clips.tolist()}
    digest = hashlib.sha256()
    for name, spec in gallery.data.specs.items():
        digest.update(f"{name} {spec.fingerprint}".encode())
        index = settled(gallery.cache, partial(load_view, gallery.cache, spec)).merged(spec)
        rows = [row for row, clip_id in enumerate(index.clip_ids) if clip_id in wanted]
        digest.update(np.ascontiguousarray(index.checksums[rows]).tobytes())
    return digest.hexdigest()[:DIGITS]


def _load(place: Place, made_of: Mapping[str, str], say: Say) -> PrototypeIndex | None:
    if place.rebuild or not (place.folder / MANIFEST).is_file():
        return None
    try:
        return PrototypeIndex.load(place.folder, made_of)
    except UserError as error:
        if place.named:
            raise UserError(f"{error}: --rebuild, or another --index") from None
        say(f"{str(error).partition(';')[0]}: it is built anew")
        return None


def _searched_by(index: PrototypeIndex, backend: str) -> PrototypeIndex:
    """The same prototypes, searched by another backend if it is not the one that is wanted."""
    wanted = choose_backend(len(index.matrix)) if backend == "auto" else backend
    if index.backend.name == wanted:
        return index
    return PrototypeIndex(index.space, index.matrix, build_backend(wanted, index.matrix, index.space.layout))


def _blocks(embedder: Embedder, gallery: Gallery, progress: Progress) -> Iterator[dict[str, Tensor]]:
    """The prototypes, in blocks."""
    embedded = embed_in_blocks(embedder, gallery.data, gallery.clips, progress)
    if gallery.per == "clip":
        yield from (values for _, values in embedded)
        return
    classes = torch.bucketize(gallery.labels, gallery.class_ids)
    counts = classes.bincount().double()
    sums: dict[str, Tensor] = {}
    for start, block in embedded:
        for name, values in block.items():
            total = sums.setdefault(name, torch.zeros(len(counts), values.shape[1], dtype=torch.float64))
            total.index_add_(0, classes[start : start + len(values)], values.double())
    yield {name: total / counts[:, None] for name, total in sums.items()}
