"""Networks that turn a frame into a feature vector, by name."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ...cache.errors import pick
from .backbone import Backbone
from .classifiers import classifier_names, load_classifier
from .efficientnet_lite import load_efficientnet_lite0

BACKBONES: dict[str, Callable[[Path | None], Backbone]] = {"efficientnet-lite0": load_efficientnet_lite0}
"""Loaders of the networks that are no torchvision classifiers; those come under torchvision's names."""


def load_backbone(name: str, weights: Path | None = None) -> Backbone:
    """Load a backbone with its weights, on the CPU.

    Args:
        name: One of `backbone_names`.
        weights: State dict file; None takes the weights published with the network.

    Raises:
        UserError: If the name is unknown, or the weights cannot be had or do not fit.
    """
    if name in BACKBONES:  # before torchvision is asked, whose import takes a second
        return BACKBONES[name](weights)
    return pick(_all_loaders(), name, "backbone")(weights)


def backbone_names() -> list[str]:
    """Return the names of all backbones."""
    return sorted(_all_loaders())


def _all_loaders() -> dict[str, Callable[[Path | None], Backbone]]:
    """Return the own loaders and one for each torchvision classifier."""
    return BACKBONES | {name: partial(load_classifier, name) for name in classifier_names()}


__all__ = ["BACKBONES", "Backbone", "backbone_names", "load_backbone"]
