"""What a backbone is, and how its weights are read and named."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...cache.errors import UserError


@dataclass(frozen=True)
class Backbone:
    """A network that turns an image into one feature vector."""

    name: str
    """Key under which it was loaded."""
    network: nn.Module
    """Normalised images `[B, 3, S, S]` to features `[B, D]`; in eval mode, without gradients, channels last."""
    dim: int
    """Length of a feature vector (D)."""
    size: int
    """Side of the images it was trained on, in pixels."""
    mean: tuple[float, float, float]
    """Mean of its training images' channels, on the scale 0..1."""
    std: tuple[float, float, float]
    """Standard deviation of these channels."""
    weights_sha256: str
    """Hash of the weights' names and values."""
    packages: tuple[str, ...]
    """Distributions, other than torch, whose code the network runs."""

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device) -> "Backbone":
        """Return the backbone with its network on a device (the network itself is moved)."""
        return replace(self, network=self.network.to(device))

    def features(self, images: Tensor) -> Tensor:
        """Compute the features of images.

        Args:
            images: `[B, S, S, 3]` uint8, RGB, on the network's device.

        Returns:
            `[B, D]` float32.
        """
        mean = torch.tensor(self.mean, device=images.device) * 255
        std = torch.tensor(self.std, device=images.device) * 255
        # The permuted view is channels-last in memory, which is the faster layout for convolutions.
        features: Tensor = self.network(((images - mean) / std).permute(0, 3, 1, 2))
        return features


def freeze(network: nn.Module) -> nn.Module:
    """Put a network into the state in which features are computed."""
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash the names and bytes of a network's weights, so that equal weights have equal hashes in whatever file.

    Batch counters are left out: they do not enter the features, and old files lack them.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if not name.endswith("num_batches_tracked"):
            tensor = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a .pth or .safetensors file, without unpickling anything but tensors.

    Raises:
        UserError: If the file is missing or holds anything else.
    """
    if not path.is_file():
        raise UserError(
            f"there is no weights file {str(path)!r}; --weights; give the path of a .pth or .safetensors file"
        )
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path, device="cpu")
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The restricted unpickler meets a damaged file with exceptions of a dozen kinds.
        cause = str(error).split("\n")[0][:120]
        raise UserError(
            f"cannot read weights ({cause}); {path}; it must be a .pth or .safetensors state dict"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"the file holds no plain state dict; {path}; save network.state_dict() alone")
    return state


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load weights into a network.

    Args:
        network: Changed in place.
        state: Weights; may lack the batch counters, as old files do.
        origin: Where they come from, for the error.

    Raises:
        UserError: If they belong to another network; it names the first tensor missing, extra or of another shape.
    """
    weights = OrderedDict(state)
    # Some networks look for the version of the format, which safetensors files do not have.
    versions = getattr(state, "_metadata", None) or getattr(network.state_dict(), "_metadata", None)
    weights._metadata = versions  # type: ignore[attr-defined]
    try:
        missing, extra = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        misshapen = next((line.strip() for line in str(error).split("\n") if "size mismatch" in line), str(error))
        raise _misfit(misshapen.rstrip("."), origin) from error
    for name in missing:
        if not name.endswith("num_batches_tracked"):
            raise _misfit(f"tensor {name!r} is missing", origin)
    if extra:
        raise _misfit(f"tensor {extra[0]!r} is not in the network", origin)


def _misfit(what: str, origin: str) -> UserError:
    """Return the error for weights of another network."""
    return UserError(f"weights do not fit: {what}; {origin}; give the weights of the named backbone")
