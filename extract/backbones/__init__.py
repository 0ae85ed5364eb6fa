"""Networks that turn images, stacks of images or flow into feature vectors, by name."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...cache.errors import pick
from . import i3d
from .backbone import PRECISIONS, Backbone
from .classifiers import classifier_names, load_classifier
from .custom import load_custom
from .efficientnet_lite import load_efficientnet_lite0
from .timm_models import PREFIX, load_timm, timm_names
from .tokens import check_tokens, with_tokens
from .video import load_video, video_names

Loader = Callable[[Path | None], Backbone]

BACKBONES: dict[str, Loader] = {"efficientnet-lite0": load_efficientnet_lite0, i3d.NAME: i3d.load_i3d}
"""Loaders of the networks that come from no collection."""


def load_backbone(
    name: str,
    weights: Path | None = None,
    *,
    tokens: int = 0,
    precision: str = "fp32",
    normalise: bool = True,
) -> Backbone:
    """Load a backbone with its weights, on the CPU.

    Args:
        name: One of `backbone_names`; "timm:NAME" with a tag of timm's; or "module:factory" for a network of one's own.
        weights: State dict file; None takes the weights published with the network.
        tokens: Features per image, on a grid: 16 or 49; 0 for one feature of the whole.
        precision: Number format of the network's layers: "fp32", "bf16" or "fp16".
        normalise: Whether images are brought to the mean and deviation of the network's training images; if not, their
            values are only divided by 255. Flow is always scaled as its network wants it.

    Raises:
        UserError: If a name is unknown, the weights cannot be had or do not fit, or the network gives no tokens.
    """
    check_tokens(tokens)
    pick(PRECISIONS, precision, "precision")
    backbone = _loader(name)(weights)
    if tokens:
        backbone = with_tokens(backbone, tokens)
    if not normalise and backbone.channels == 3:
        backbone = replace(backbone, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return replace(backbone, precision=precision)


def backbone_names() -> list[str]:
    """Return the names of all installed backbones."""
    return sorted([*_named_loaders(), *timm_names()])


def _loader(name: str) -> Loader:
    """Return what loads a name.

    Raises:
        UserError: If the name is unknown.
    """
    if name in BACKBONES:  # before torchvision is asked, whose import takes a second
        return BACKBONES[name]
    if name.startswith(PREFIX):
        return partial(load_timm, name)
    if ":" in name:
        return partial(load_custom, name)
    return pick(_named_loaders(), name, "backbone")


def _named_loaders() -> dict[str, Loader]:
    """Return the own loaders and one for each network of torchvision."""
    classifiers: dict[str, Loader] = {name: partial(load_classifier, name) for name in classifier_names()}
    videos: dict[str, Loader] = {name: partial(load_video, name) for name in video_names()}
    return BACKBONES | classifiers | videos


__all__ = ["BACKBONES", "Backbone", "backbone_names", "load_backbone"]
