"""From a cache to the tensors that the second stage works on."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cache import Store, StreamSpec, differences
from ..cache.errors import UserError
from ..extract.spec import agree
from .splits import ClassSplit


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The clips that all wanted streams of a cache hold, sorted by clip id."""

    features: dict[str, Tensor]
    """Modality -> [clips, views, T, D_m], float16; as many views as the stream with the fewest has."""
    labels: Tensor
    """Class ids [clips], int64."""
    class_names: list[str]
    """`class_names[i]` names class id i; sorted."""
    clip_ids: list[str]
    """[clips]."""
    specs: dict[str, StreamSpec]
    """Modality -> what made its features."""

    def ids(self, names: Sequence[str]) -> list[int]:
        """Class ids of class names."""
        index = {name: class_id for class_id, name in enumerate(self.class_names)}
        return [index[name] for name in names]


def load_features(cache: Path, streams: Sequence[str] = ()) -> FeatureSet:
    """Open a cache.

    Args:
        cache: The cache directory.
        streams: Modalities in the order wanted; empty takes all, RGB first.

    Raises:
        UserError: If it is no cache, lacks a stream, is damaged, or no clip is in all streams.
    """
    store = Store(cache)
    present = store.streams()
    if not present:
        raise UserError(f"no stream in {cache}; extract some first: amfir extract VIDEOS --cache {cache}")
    names = list(streams) or sorted(present, key=lambda name: (name != "rgb", name))
    if lacking := [name for name in names if name not in present]:
        raise UserError(
            f"no stream {lacking[0]!r} in {cache}, which has {', '.join(present)}; "
            f"extract it: amfir extract VIDEOS --cache {cache} --streams {lacking[0]}"
        )
    read = {name: store.read(name) for name in names}
    rows = {name: {clip: row for row, clip in enumerate(stream.clip_ids)} for name, stream in read.items()}
    common = sorted(set.intersection(*(set(index) for index in rows.values())))
    if not common:
        raise UserError(f"no clip has features in all of {', '.join(names)}; in {cache}; run amfir extract again")
    first = read[names[0]]
    label_of = dict(zip(first.clip_ids, first.labels, strict=True))
    class_names = sorted({label_of[clip] for clip in common})
    index = {name: class_id for class_id, name in enumerate(class_names)}
    views = min(stream.spec.views for stream in read.values())
    return FeatureSet(
        {name: _tensor(stream.features, [rows[name][clip] for clip in common], views) for name, stream in read.items()},
        torch.tensor([index[label_of[clip]] for clip in common]),
        class_names,
        common,
        {name: stream.spec for name, stream in read.items()},
    )


def require_specs(provenance: Mapping[str, Any], data: FeatureSet, run: Path) -> None:
    """Refuse features that were made otherwise than those a run was trained on.

    Raises:
        UserError: Showing both sides.
    """
    for name, made in provenance["specs"].items():
        trained = StreamSpec.from_json(made)
        if name in data.specs and not agree(trained, data.specs[name]):
            found = differences(trained, data.specs[name])
            lines = (line.removesuffix("asked").replace(" in the cache, ", " in training, ") + "here" for line in found)
            shown = "; ".join(lines)
            raise UserError(f"the run was trained on another {name} stream: {shown}; {run}; train again on this cache")


def require_disjoint(provenance: Mapping[str, Any], split: ClassSplit, run: Path) -> None:
    """Refuse to test a run on classes that it was trained on.

    Raises:
        UserError: Naming them.
    """
    known = {*provenance["split"]["train"], *provenance["split"]["val"]}
    if shared := sorted(known & set(split.test)):
        raise UserError(
            f"{len(shared)} test classes of {split.name!r} trained the run, such as {shared[0]!r}; {run}; "
            f"use the split it was trained with: {provenance['split']['name']}"
        )


def _tensor(features: NDArray[np.float16], rows: list[int], views: int) -> Tensor:
    """Without a copy where all rows and views are wanted: a packed stream stays memory-mapped.

    Of spatial tokens it gives the mean, clip by clip, since all of them at once may need more memory than there is.
    """
    if features.ndim == 5:
        mean = np.empty((len(rows), views, features.shape[2], features.shape[4]), np.float16)
        for clip, row in enumerate(rows):
            mean[clip] = features[row, :views].mean(axis=2, dtype=np.float32)
        return torch.from_numpy(mean)
    if rows != list(range(len(features))) or views != features.shape[1]:
        return torch.from_numpy(features[rows, :views])
    with warnings.catch_warnings():
        # Nothing writes to features; the warning is about a tensor over read-only memory.
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(features)
