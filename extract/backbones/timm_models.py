"""Every image network of timm (CLIP's and DINOv2's towers among them), with its classifier removed."""

import importlib
import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ...cache.errors import UserError, pick
from .backbone import Backbone, freeze, load_strictly, read_weights, weights_sha256
from .vision import torchvision

PREFIX = "timm:"
"""What stands before timm's own name."""


def timm_names() -> list[str]:
    """Return the names of timm's networks, with the prefix; none if timm is not installed."""
    if importlib.util.find_spec("timm") is None:
        return []
    return [PREFIX + name for name in _timm().list_models()]


def load_timm(name: str, weights: Path | None = None) -> Backbone:
    """Load a network of timm; its features are what timm gives without a classifier.

    Args:
        name: "timm:" and timm's name, with its tag if wanted ("timm:resnet50.a1_in1k").
        weights: State dict file in timm's format, with any classifier or none; None lets timm download its own.

    Raises:
        UserError: If timm is missing or knows no such network, the file does not fit, or nothing can be downloaded.
    """
    timm = _timm()
    model = _from_file(timm, name, weights) if weights else _downloaded(timm, name)
    model.reset_classifier(0)  # type: ignore[operator]
    settings = timm.data.resolve_model_data_config(model)
    network = TimmNetwork(model)
    size = settings["input_size"][-1]
    return Backbone(
        name=name,
        network=freeze(network),
        dim=_dim(network, size),
        size=size,
        mean=tuple(settings["mean"]),
        std=tuple(settings["std"]),
        weights_sha256=weights_sha256(model.state_dict()),
        packages=("timm",),
    )


class TimmNetwork(nn.Module):
    """A network of timm without its classifier, and the map its features are pooled from."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Turn images `[B, 3, S, S]` into features `[B, D]`."""
        features: Tensor = self.model(images)
        return features

    def spatial_map(self, images: Tensor) -> Tensor:
        """Turn images `[B, 3, S, S]` into the map `[B, D, h, w]` before pooling; of a ViT, its patches' tokens."""
        features: Tensor = self.model.forward_features(images)  # type: ignore[operator]
        if features.dim() == 3:
            patches = features[:, getattr(self.model, "num_prefix_tokens", 0) :]
            side = round(patches.shape[1] ** 0.5)
            return patches.transpose(1, 2).reshape(len(patches), -1, side, side)
        return features.permute(0, 3, 1, 2) if getattr(self.model, "output_fmt", "") == "NHWC" else features


def _timm() -> ModuleType:
    """Import timm.

    Raises:
        UserError: If it is not installed.
    """
    torchvision()  # which timm imports too, and which may need help to be imported
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise UserError("timm is not installed; backbone; pip install 'amfir[timm]'") from error


def _from_file(timm: ModuleType, name: str, weights: Path) -> nn.Module:
    """Return a network with weights from a file; those of a classifier do not matter."""
    model = _create(timm, name, pretrained=False)
    classifiers = model.pretrained_cfg.get("classifier") or ()  # type: ignore[union-attr, operator]
    prefixes = tuple(f"{layer}." for layer in ([classifiers] if isinstance(classifiers, str) else classifiers))
    own = {key: value for key, value in model.state_dict().items() if key.startswith(prefixes)}
    state: Mapping[str, Tensor] = read_weights(weights)
    load_strictly(model, own | {k: v for k, v in state.items() if not k.startswith(prefixes)}, str(weights))
    return model


def _downloaded(timm: ModuleType, name: str) -> nn.Module:
    """Return a network with the weights that timm downloads."""
    try:
        return _create(timm, name, pretrained=True)
    except UserError:
        raise
    except Exception as error:
        # Hubs, proxies and file systems fail with errors of many packages, some of which may not be installed.
        cause = " ".join(str(error).split())[:160]
        raise UserError(
            f"cannot download the weights of {name!r} ({cause}); is there a network? "
            f"fetch model.safetensors from its page on the Hugging Face hub on another machine "
            "and pass --rgb-weights or --flow-weights FILE"
        ) from error


def _create(timm: ModuleType, name: str, *, pretrained: bool) -> nn.Module:
    """Create a network in eval mode, with its classifier."""
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    pick(dict.fromkeys(timm.list_models()), architecture, "timm backbone")
    if tag:
        pick(dict.fromkeys(timm.list_pretrained(f"{architecture}.*")), f"{architecture}.{tag}", "timm backbone")
    # The hub announces each of its attempts; what matters is in the error.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    model: nn.Module = timm.create_model(name.removeprefix(PREFIX), pretrained=pretrained)
    return model.eval()


def _dim(network: nn.Module, size: int) -> int:
    """Return the number of features; timm keeps it under several names, so one image tells."""
    with torch.inference_mode():
        return int(network(torch.zeros(1, 3, size, size)).shape[1])
