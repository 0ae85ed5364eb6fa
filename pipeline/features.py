"""From a cache to the tensors that the second stage works on."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..cache import Store, StreamSpec, differences
from ..cache.errors import UserError
from ..extract.spec import agree
from ..meta.heads import HEADS
from ..meta.projection import Projection, fit_projection
from .splits import ClassSplit


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """The clips that all wanted streams of a cache hold, sorted by clip id."""

    features: dict[str, Tensor]
    """Modality -> [clips, views, T, D_m] ([clips, views, T, P, D_m] with tokens), float16, or float32 once projected;
    as many views as the stream with the fewest has."""
    labels: Tensor
    """Class ids [clips], int64."""
    class_names: list[str]
    """`class_names[i]` names class id i; sorted."""
    clip_ids: list[str]
    """[clips]."""
    specs: dict[str, StreamSpec]
    """Modality -> what made its features."""
    projections: Mapping[str, Projection] = field(default_factory=dict)
    """Modality -> what its features went through since they were read; empty: nothing."""

    def ids(self, names: Sequence[str]) -> list[int]:
        """Class ids of class names."""
        index = {name: class_id for class_id, name in enumerate(self.class_names)}
        return [index[name] for name in names]

    def clips_of(self, names: Sequence[str]) -> Tensor:
        """Indices of the clips of some classes."""
        return torch.isin(self.labels, torch.tensor(self.ids(names))).nonzero().flatten()

    def only(self, modalities: Sequence[str]) -> "FeatureSet":
        """The same clips, some of their modalities."""
        return replace(
            self,
            features={name: self.features[name] for name in modalities},
            specs={name: self.specs[name] for name in modalities},
            projections={name: value for name, value in self.projections.items() if name in modalities},
        )


def load_features(cache: Path, streams: Sequence[str] = (), tokens: bool | Collection[str] = False) -> FeatureSet:
    """Open a cache.

    Args:
        cache: The cache directory.
        streams: Modalities in the order wanted; empty takes all, RGB first.
        tokens: Keep the spatial tokens of streams that hold them, of all or of these; otherwise their mean stands for
            the frame.

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
    kept = (names if tokens else ()) if isinstance(tokens, bool) else tokens
    return FeatureSet(
        {
            name: _tensor(stream.features, [rows[name][clip] for clip in common], views, name in kept)
            for name, stream in read.items()
        },
        torch.tensor([index[label_of[clip]] for clip in common]),
        class_names,
        common,
        {name: stream.spec for name, stream in read.items()},
    )


def load_for(head: str, cache: Path, streams: Sequence[str] = ()) -> FeatureSet:
    """Open a cache for a head: with the spatial tokens of its streams if the head is one that needs them."""
    return load_features(cache, streams, tokens=needs_tokens(head))


def needs_tokens(head: str) -> bool:
    """Whether a head, a key of `HEADS`, needs the spatial tokens of its streams."""
    return bool(HEADS[head].settings.get("spatial"))


def project_features(data: FeatureSet, base_ids: Sequence[int], dim: int) -> FeatureSet:
    """Project every modality onto the principal axes of its base clips' frames.

    Args:
        data: Features of a cache.
        base_ids: Class ids of the base classes; no other clip has a say in the axes.
        dim: Width wanted; a modality that is no wider is only centred and scaled.

    Returns:
        The same clips with float32 features, as `apply_projections` of `fit_projections` gives them.
    """
    return apply_projections(data, fit_projections(data, base_ids, dim))


def fit_projections(data: FeatureSet, base_ids: Sequence[int], dim: int) -> dict[str, Projection]:
    """Fit the projection of each modality on the base clips.

    Raises:
        UserError: If the width is no width, or there is no base clip.
    """
    if dim < 1:
        raise UserError(f"the width of the projected features is {dim}; features; choose 1 or more")
    clips = torch.isin(data.labels, torch.tensor(list(base_ids), dtype=torch.int64)).nonzero().flatten()
    if not len(clips):
        raise UserError("no clip of a base class to fit the projection on; features; check the split")
    return {name: fit_projection(values, clips, dim) for name, values in data.features.items()}


def apply_projections(data: FeatureSet, projections: Mapping[str, Projection]) -> FeatureSet:
    """The same clips, the features of each modality projected; the specs still say what made the features.

    Modalities without a projection, and features that went through theirs already, stay as they are.
    """
    todo = {name: projections[name] for name in data.features if name in projections and name not in data.projections}
    features = {name: todo[name].apply(values) if name in todo else values for name, values in data.features.items()}
    return replace(data, features=features, projections={**data.projections, **todo})


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


def _tensor(features: NDArray[np.float16], rows: list[int], views: int, tokens: bool) -> Tensor:
    """Without a copy where all rows and views are wanted: a packed stream stays memory-mapped.

    The mean of spatial tokens is taken clip by clip, since all of them at once may need more memory than there is.
    """
    if features.ndim == 5 and not tokens:
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
