"""Small synthetic features with a known structure, and a training task on them."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from amfir.meta.episodes import EpisodeShape
from amfir.meta.heads.temporal import HeadConfig
from amfir.meta.methods import parse_method
from amfir.meta.profiles import Profile
from amfir.meta.train import Task, TrainConfig

WIDTHS = {"rgb": 12, "flow": 8}


def planted(
    classes: int = 12,
    clips: int = 8,
    views: int = 1,
    frames: int = 3,
    widths: Mapping[str, int] = WIDTHS,
    nuisance: float = 3.0,
    seed: int = 0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Classes differ in the first half of the features; clips of one class differ far more, but in the second half."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(clips)
    features = {}
    for name, width in widths.items():
        half = width // 2
        clip_values = torch.randn(len(labels), width, generator=generator) * 0.6
        clip_values[:, :half] += torch.randn(classes, half, generator=generator)[labels]
        clip_values[:, half:] *= nuisance / 0.6
        shown = clip_values[:, None, None].repeat(1, views, frames, 1)
        features[name] = shown + 0.3 * torch.randn(shown.shape, generator=generator)
    return features, labels


def make_task(
    *,
    method: str = "amfir",
    num_val: int = 3,
    views: int = 1,
    head: HeadConfig | None = None,
    hold: float = 0.01,
    profile: Profile | None = None,
    widths: Mapping[str, int] = WIDTHS,
    **settings: Any,
) -> Task:
    """Six training classes, then `num_val` validation classes; heads too weakly whitened to be good at the start."""
    features, labels = planted(views=views, widths=widths)
    defaults: dict[str, Any] = {
        "shape": EpisodeShape(3, 1, 3),
        "episodes": 48,
        "batch_episodes": 4,
        "learning_rates": (0.01,),
        "interval": 16,
        "validation_episodes": 60,
    }
    return Task(
        features,
        labels,
        range(6),
        range(6, 6 + num_val),
        [f"class {i}" for i in range(12)],
        parse_method(method),
        profile or Profile(asdict(replace(head or HeadConfig(dim=8, shrinkage=100.0, width=0), hold=hold)), {}),
        TrainConfig(**{**defaults, **settings}),
    )
