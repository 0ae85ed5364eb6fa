"""Every video network of torchvision, with its classification layer removed."""

from pathlib import Path

from torch import nn

from .backbone import Backbone
from .classifiers import load_torchvision, remove_linear
from .vision import torchvision

FIELDS = 16
"""Images of a stack: what these networks were trained on, or within it."""


def video_names() -> list[str]:
    """Return torchvision's names of its video networks."""
    models = torchvision().models
    return list(models.list_models(module=models.video))


def load_video(name: str, weights: Path | None = None) -> Backbone:
    """Load a torchvision video network; its features are the input of its classification layer.

    Args:
        name: One of `video_names`.
        weights: State dict file in torchvision's format; None fetches torchvision's own, trained on Kinetics-400.

    Raises:
        UserError: If the file does not fit or cannot be fetched.
    """
    return load_torchvision(name, weights, remove_head, fields=FIELDS)


def remove_head(network: nn.Module) -> int:
    """Cut a video network behind the input of its classification layer, in place.

    Returns:
        The number of features.
    """
    if dim := remove_linear(network):
        return dim
    # S3D classifies each position by a convolution and averages afterwards.
    conv = next(module for module in network.classifier.modules() if isinstance(module, nn.Conv3d))  # type: ignore[union-attr]
    network.classifier = nn.Identity()
    return conv.in_channels
