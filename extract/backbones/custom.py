"""Networks of the user's own, as "module:factory"."""

import importlib
from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path

import torch
from torch import Tensor, nn

from ...cache.errors import UserError
from .backbone import Backbone, freeze, load_strictly, read_weights, weights_sha256

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What a bare module is fed: images of this side, normalised by ImageNet's statistics."""
TRIAL_FRAMES = 2


def load_custom(name: str, weights: Path | None = None) -> Backbone:
    """Load what a function of the user's returns: a network, or a whole `Backbone`.

    Args:
        name: "module:factory"; the module is imported, and factory() called. It returns an `nn.Module` that turns
            images `[B, 3, 224, 224]`, normalised by ImageNet's statistics, into features `[B, D]`, or a `Backbone`.
        weights: State dict file, loaded into the network; None leaves it as the factory made it.

    Raises:
        UserError: If any of this fails.
    """
    made = _made(name)
    network = made.network if isinstance(made, Backbone) else made
    if next(network.parameters(), None) is None:
        raise _failure(name, "its network has no parameters", "return a network that has some")
    if weights:
        load_strictly(network, read_weights(weights), str(weights))
    sha256 = weights_sha256(network.state_dict())
    freeze(network)
    if isinstance(made, Backbone):
        backbone = replace(made, name=name, weights_sha256=sha256)
    else:
        backbone = Backbone(name, network, _dim(name, network), SIZE, MEAN, STD, sha256, _packages(name))
    _check(backbone)
    return backbone


def _made(name: str) -> Backbone | nn.Module:
    """Import the module and call the factory."""
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        # Importing runs the user's code, which may raise anything.
        raise _failure(name, f"importing {module_name!r} fails ({_line(error)})", "is it on PYTHONPATH?") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        what = "is not callable" if hasattr(module, attribute) else "does not exist"
        raise _failure(name, f"{attribute!r} {what}", f"name a function of {module_name!r}")
    try:
        made = factory()
    except Exception as error:
        # The factory is the user's code too.
        raise _failure(name, f"{attribute}() fails ({_line(error)})", "it is called without arguments") from error
    if not isinstance(made, Backbone | nn.Module):
        raise _failure(name, f"it returned a {type(made).__name__}", "return an nn.Module or a Backbone")
    return made


def _dim(name: str, network: nn.Module) -> int:
    """Return the length of the features of a bare module."""
    try:
        with torch.inference_mode():
            features = network(torch.zeros(1, 3, SIZE, SIZE))
    except Exception as error:
        # The network is the user's code too.
        raise _failure(name, f"its network fails ({_line(error)})", f"it is fed [B, 3, {SIZE}, {SIZE}]") from error
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != 1:
        got = _shape(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise _failure(name, f"its network turns one image into {got}", "return features [B, D]")
    return features.shape[1]


def _check(backbone: Backbone) -> None:
    """Refuse a backbone that does not do as its fields say."""
    frames = TRIAL_FRAMES if backbone.whole else 1
    stack = (1,) if backbone.fields == 1 and not backbone.whole else (1, frames * backbone.fields)
    kind = torch.uint8 if backbone.channels == 3 else torch.float32
    images = torch.zeros(*stack, backbone.size, backbone.size, backbone.channels, dtype=kind)
    expected = (1, frames, *([backbone.tokens] if backbone.tokens else []), backbone.dim)
    try:
        with torch.inference_mode():
            features = backbone.features(images)
    except Exception as error:
        # The network is the user's code too.
        raise _failure(backbone.name, f"it fails on {_shape(images.shape)} ({_line(error)})", "mend it") from error
    if features.shape != expected:
        what = f"it turns {_shape(images.shape)} into {_shape(features.shape)}"
        raise _failure(backbone.name, what, f"by its fields that must be {_shape(expected)}")


def _packages(name: str) -> tuple[str, ...]:
    """Return the distribution that a module was installed with, if any."""
    return tuple(packages_distributions().get(name.partition(":")[0].split(".")[0], [])[:1])


def _shape(sizes: tuple[int, ...]) -> str:
    """Write a shape for a message."""
    return f"[{', '.join(map(str, sizes))}]"


def _line(error: Exception) -> str:
    """Return what an exception says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def _failure(name: str, what: str, remedy: str) -> UserError:
    """Return the error for a backbone of the user's own."""
    return UserError(f"{what}; backbone {name!r}; {remedy}")
