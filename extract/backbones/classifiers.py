"""Every image classifier of torchvision, with its classification layer removed."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .backbone import Backbone, freeze, load_strictly, published_weights, read_weights, weights_sha256
from .vision import torchvision

# With ImageNet weights these two map the usual normalisation to their own; the other option only silences a warning.
_INCEPTION = {"transform_input": True, "init_weights": False}
_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": _INCEPTION,
    "inception_v3": _INCEPTION,
    "vit_h_14": {"image_size": 518},  # the one network whose first published weights are for larger images
}


def classifier_names() -> list[str]:
    """Return torchvision's names of its image classifiers."""
    models = torchvision().models
    return list(models.list_models(module=models))


def load_classifier(name: str, weights: Path | None = None) -> Backbone:
    """Load a torchvision classifier; its features are the input of its last linear layer.

    Args:
        name: One of `classifier_names`.
        weights: State dict file in torchvision's format; None fetches torchvision's own (IMAGENET1K_V1 where it
            exists, since published results use it).

    Raises:
        UserError: If the file does not fit or cannot be fetched.
    """
    return load_torchvision(name, weights, remove_classifier, fields=1)


def load_torchvision(name: str, weights: Path | None, cut: Callable[[nn.Module], int], *, fields: int) -> Backbone:
    """Load any network of torchvision.

    Args:
        name: torchvision's name of it.
        weights: State dict file; None fetches torchvision's own.
        cut: Removes the classification layer, in place, and returns the number of features.
        fields: Images in the stack it takes.

    Raises:
        UserError: If the file does not fit or cannot be fetched.
    """
    models = torchvision().models
    network: nn.Module = models.get_model(name, weights=None, **_OPTIONS.get(name, {}))
    path = weights or published_weights(name)
    load_strictly(network, _modern_names(read_weights(path)), str(path))
    sha256 = weights_sha256(network.state_dict())
    dim = cut(network)
    preset = models.get_model_weights(name).DEFAULT.transforms()
    return Backbone(
        name=name,
        network=freeze(network),
        dim=dim,
        size=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        weights_sha256=sha256,
        packages=("torchvision",),
        fields=fields,
    )


def remove_classifier(network: nn.Module) -> int:
    """Cut a torchvision classifier behind the input of its classification layer, in place.

    Returns:
        The number of features.
    """
    if dim := remove_linear(network):
        return dim
    # SqueezeNet classifies each position by a convolution and pools afterwards.
    conv = next(module for module in network.classifier.modules() if isinstance(module, nn.Conv2d))  # type: ignore[union-attr]
    network.classifier = nn.AdaptiveAvgPool2d(1)
    return conv.in_channels


def remove_linear(network: nn.Module) -> int:
    """Replace the last linear layer of a network by nothing, in place.

    Returns:
        The number of its inputs; 0 if the network has no linear layer.
    """
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        return 0
    name, last = linears[-1]
    network.set_submodule(name, nn.Identity())
    return last.in_features


def _modern_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename the layers of torchvision's DenseNet files, which are older than its code ("norm.1" for "norm1")."""
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    renamed = OrderedDict((pattern.sub(r"\1\2", name), tensor) for name, tensor in state.items())
    renamed._metadata = getattr(state, "_metadata", None)  # type: ignore[attr-defined]
    return renamed
