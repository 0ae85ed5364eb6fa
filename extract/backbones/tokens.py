"""Spatial tokens: features of the parts of an image, from the map that a network pools into its one feature."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from ...cache.errors import UserError
from .backbone import Backbone

GRIDS = {16: 4, 49: 7}
"""Side of the grid for each number of tokens."""


@runtime_checkable
class Mapped(Protocol):
    """A network that gives the map its features are pooled from."""

    def spatial_map(self, images: Tensor) -> Tensor:
        """Turn a network's input into `[B, D, h, w]`, or `[B, T, D, h, w]`."""


def check_tokens(tokens: int) -> None:
    """Refuse a number of tokens that there is no grid for.

    Raises:
        UserError: If it is neither 0 nor in `GRIDS`.
    """
    if tokens and tokens not in GRIDS:
        raise UserError(f"tokens is {tokens}; backbone; use one of {', '.join(map(str, GRIDS))}, or 0 for none")


def with_tokens(backbone: Backbone, tokens: int) -> Backbone:
    """Let a backbone give a feature for each part of its image, instead of one for the whole.

    The map is max-pooled onto a grid; the tokens are in reading order.

    Args:
        backbone: On the CPU.
        tokens: In `GRIDS`.

    Raises:
        UserError: If the network pools no map into its features.
    """
    if backbone.tokens == tokens:
        return backbone
    if backbone.tokens or (backbone.fields > 1 and not isinstance(backbone.network, Mapped)):
        raise _no_map(backbone)
    network = backbone.network if isinstance(backbone.network, Mapped) else _hooked(backbone)
    try:
        with torch.inference_mode():
            shape = network.spatial_map(_sample(backbone)).shape
    except (RuntimeError, AttributeError) as error:  # timm's networks give lists, or tokens that are no grid, as well
        raise _no_map(backbone) from error
    if len(shape) != 4 + backbone.whole or shape[-3] != backbone.dim or shape[-2] * shape[-1] == 1:
        raise _no_map(backbone)
    return replace(backbone, network=Tokens(network, GRIDS[tokens]), tokens=tokens)


class Tokens(nn.Module):
    """A network's map, max-pooled onto a grid."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network = network
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        """Turn a network's input into `[B, P, D]`, or `[B, T, P, D]`."""
        maps: Tensor = self.network.spatial_map(images)  # type: ignore[operator]
        pooled = functional.adaptive_max_pool2d(maps.flatten(0, -4).float(), self.side)
        return pooled.flatten(2).transpose(1, 2).reshape(*maps.shape[:-3], -1, maps.shape[-3])


@dataclass(frozen=True)
class Place:
    """Where in a network a tensor passes."""

    module: str
    """Name of the module."""
    is_input: bool
    """Whether it goes into the module, or comes out."""


class HookedMap(nn.Module):
    """A network with an ear at the place where its map passes."""

    def __init__(self, network: nn.Module, place: Place) -> None:
        super().__init__()
        self.network = network
        self.place = place
        self._heard = threading.local()  # several threads may run one network at a time
        self._handle = _listen(network.get_submodule(place.module), place.is_input, self._hear)

    def spatial_map(self, images: Tensor) -> Tensor:
        """Turn images `[B, 3, S, S]` into the map `[B, D, h, w]`."""
        self.network(images)
        maps: Tensor = self._heard.__dict__.pop("maps")
        return maps

    def close(self) -> None:
        """Take the ear away."""
        self._handle.remove()

    def _hear(self, tensor: Any) -> None:
        self._heard.maps = tensor


def _hooked(backbone: Backbone) -> HookedMap:
    """Find the last map of a network whose mean over space is its feature.

    Raises:
        UserError: If there is none.
    """
    sample = _sample(backbone)
    with torch.inference_mode():
        features, passed = _observe(backbone.network, sample, backbone.dim)
        for place, tensor in reversed(passed):
            if _is_mean(features, tensor):
                hooked = HookedMap(backbone.network, place)
                # A module that runs several times is heard at its last run, which may be another.
                if _is_mean(features, hooked.spatial_map(sample)):
                    return hooked
                hooked.close()
    raise _no_map(backbone)


def _observe(network: nn.Module, sample: Tensor, dim: int) -> tuple[Tensor, list[tuple[Place, Tensor]]]:
    """Run a network; return its features and all maps of as many channels that pass its modules, in order."""
    passed: list[tuple[Place, Tensor]] = []

    def note(name: str, is_input: bool, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor.dim() == 4 and tensor.shape[1] == dim and tensor[0, 0].numel() > 1:
            passed.append((Place(name, is_input), tensor))

    handles = [
        _listen(module, is_input, partial(note, name, is_input))
        for name, module in network.named_modules()
        for is_input in (True, False)
    ]
    try:
        return network(sample), passed
    finally:
        for handle in handles:
            handle.remove()


def _listen(module: nn.Module, is_input: bool, hear: Callable[[Any], None]) -> RemovableHandle:
    """Have a function called with a module's first input, or its output, at each run."""
    if is_input:
        return module.register_forward_pre_hook(lambda _, inputs: hear(inputs[0] if inputs else None))
    return module.register_forward_hook(lambda _, __, output: hear(output))


def _is_mean(features: Tensor, maps: Tensor) -> bool:
    """Return whether features `[B, D]` are the mean of maps `[B, D, h, w]`, up to rounding."""
    tolerance = 1e-4 * float(features.abs().max())
    return torch.allclose(features, maps.mean(dim=(2, 3)), rtol=1e-3, atol=tolerance)


def _sample(backbone: Backbone) -> Tensor:
    """Return one random input of a backbone's network."""
    stack = () if backbone.fields == 1 and not backbone.whole else (backbone.fields,)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, backbone.channels, *stack, backbone.size, backbone.size, generator=generator)


def _no_map(backbone: Backbone) -> UserError:
    """Return the error for a network that has no map."""
    return UserError(
        f"{backbone.name!r} gives no spatial tokens, since its features are no average of a map of theirs; backbone; "
        "ask for 0 tokens, or use another, like resnet50"
    )
