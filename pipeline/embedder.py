"""Trained runs as embedders of clips: the clips of a cache, as the runs' heads see them, block by block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cache.errors import UserError
from ..meta.checkpoint import load_model
from ..meta.embedded import ENCODED_AT_ONCE, distance_factors, embed_clips, prototype_heads
from ..meta.model import Model
from ..meta.threads import one_thread
from .features import FeatureSet, load_features, require_specs
from .runs import require_own_streams

Progress = Callable[[int, int], None]
"""Called with the clips that are ready and all of them."""


@dataclass(frozen=True, eq=False)
class Embedder:
    """Trained runs whose heads embed clips: one, or several that look at different modalities."""

    folders: tuple[Path, ...]
    """Of the runs."""
    models: tuple[Model, ...]
    """Of each run."""
    made: tuple[Mapping[str, Any], ...]
    """How each was trained."""

    @property
    def streams(self) -> tuple[str, ...]:
        """Modalities that the runs look at."""
        return tuple(name for model in self.models for name in model.streams)

    @property
    def temperatures(self) -> dict[str, float]:
        """Branch -> tau, the factor of its squared distances."""
        return {name: tau for model in self.models for name, tau in distance_factors(model).items()}

    @property
    def trained_classes(self) -> set[str]:
        """Names of the classes that trained or validated a run."""
        return {name for one in self.made for part in ("train", "val") for name in one["split"][part]}

    def load(self, cache: Path) -> FeatureSet:
        """Open a cache whose streams are made as those that the runs were trained on.

        Raises:
            UserError: If they are not, or it lacks one.
        """
        data = load_features(cache, self.streams)
        for folder, made in zip(self.folders, self.made, strict=True):
            require_specs(made, data, folder)
        return data

    def embed(self, data: FeatureSet, clips: Tensor) -> dict[str, Tensor]:
        """Embed view 0 of some clips, indices [n]: branch -> [n, d]; only their features are read and projected."""
        found: dict[str, Tensor] = {}
        with one_thread():
            for model in self.models:
                features = {name: data.features[name][clips, :1] for name in model.streams}
                ready = {
                    name: model.projections[name].apply(values) if name in model.projections else values
                    for name, values in features.items()
                }
                found |= embed_clips(model, ready, torch.arange(len(clips))).embeddings
        return found


def load_embedder(folders: Sequence[Path]) -> Embedder:
    """Take up trained runs.

    Raises:
        UserError: If there is no model, two runs look at one modality, or a head has no vector prototypes or compares
            them otherwise than by the squared Euclidean distance.
    """
    loaded = [load_model(folder) for folder in folders]
    for folder, (model, _) in zip(folders, loaded, strict=True):
        for head in prototype_heads(model).values():
            if head.distance != "squared-euclidean":
                raise UserError(
                    f"the run compares by the distance {head.distance!r}; {folder}; an index knows the squared "
                    "Euclidean one only: give a run whose head has it, such as amfir or protonet"
                )
    models = tuple(model for model, _ in loaded)
    require_own_streams(models, folders)
    return Embedder(tuple(folders), models, tuple(made for _, made in loaded))


def embed_in_blocks(
    embedder: Embedder, data: FeatureSet, clips: Tensor, progress: Progress | None = None
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Embed clips, indices [n]: the place of each block's first clip in `clips`, and branch -> [up to 512, d]."""
    for start in range(0, len(clips), ENCODED_AT_ONCE):
        part = clips[start : start + ENCODED_AT_ONCE]
        yield start, embedder.embed(data, part)
        if progress:
            progress(start + len(part), len(clips))
