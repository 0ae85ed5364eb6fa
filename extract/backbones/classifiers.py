"""Every image classifier of torchvision, with its classification layer removed."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...cache.errors import UserError
from .backbone import Backbone, freeze, load_strictly, read_weights, weights_sha256
from .vision import torchvision

# With ImageNet weights these two map the usual normalisation to their own; the other option only silences a warning.
_INCEPTION = {"transform_input": True, "init_weights": False}
_OPTIONS: dict[str, dict[str, Any]] = {"googlenet": _INCEPTION, "inception_v3": _INCEPTION}


def classifier_names() -> list[str]:
    """Return torchvision's names of its image classifiers."""
    models = torchvision().models
    return list(models.list_models(module=models))


def load_classifier(name: str, weights: Path | None = None) -> Backbone:
    """Load a torchvision classifier; its features are the input of its last linear layer.

    Args:
        name: One of `classifier_names`.
        weights: State dict file in torchvision's format; None downloads torchvision's own (IMAGENET1K_V1 where it
            exists, since published results use it).

    Raises:
        UserError: If the file does not fit, or nothing can be downloaded.
    """
    models = torchvision().models
    network: nn.Module = models.get_model(name, weights=None, **_OPTIONS.get(name, {}))
    choices = models.get_model_weights(name)
    official = getattr(choices, "IMAGENET1K_V1", choices.DEFAULT)
    state = read_weights(weights) if weights else _download(official, name)
    load_strictly(network, _modern_names(state), str(weights or official.url))
    sha256 = weights_sha256(network.state_dict())
    dim = remove_classifier(network)
    preset = official.transforms()
    return Backbone(
        name=name,
        network=freeze(network),
        dim=dim,
        size=preset.crop_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        weights_sha256=sha256,
        packages=("torchvision",),
    )


def remove_classifier(network: nn.Module) -> int:
    """Cut a torchvision classifier behind the input of its last linear layer, in place.

    Returns:
        The number of features.
    """
    linears = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if linears:
        name, last = linears[-1]
        network.set_submodule(name, nn.Identity())
        return last.in_features
    # SqueezeNet classifies each position by a convolution and pools afterwards.
    conv = next(module for module in network.classifier.modules() if isinstance(module, nn.Conv2d))  # type: ignore[union-attr]
    network.classifier = nn.AdaptiveAvgPool2d(1)
    return conv.in_channels


def _download(official: Any, name: str) -> dict[str, Tensor]:
    """Fetch torchvision's own weights, or say how to get them on a machine without a network."""
    try:
        state: dict[str, Tensor] = official.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError) as error:
        cause = str(error).split("\n")[0]
        raise UserError(
            f"cannot download the weights of {name!r} ({cause}); is there a network? "
            f"fetch {official.url} on another machine and pass --weights FILE"
        ) from error
    return state


def _modern_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename the layers of torchvision's DenseNet files, which are older than its code ("norm.1" for "norm1")."""
    pattern = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    renamed = OrderedDict((pattern.sub(r"\1\2", name), tensor) for name, tensor in state.items())
    renamed._metadata = getattr(state, "_metadata", None)  # type: ignore[attr-defined]
    return renamed
