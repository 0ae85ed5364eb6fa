"""What a backbone is, and how its weights are read and named."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ...cache.errors import UserError

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats in which a network may compute."""


@dataclass(frozen=True)
class Backbone:
    """A network that turns images, stacks of images or flow into feature vectors."""

    name: str
    """Key under which it was loaded."""
    network: nn.Module
    """Normalised `[B, C, S, S]`, or `[B, C, fields, S, S]`, to `[B, D]` (with tokens `[B, P, D]`; if `whole`,
    `[B, T, D]` or `[B, T, P, D]`); in eval mode, without gradients, channels last."""
    dim: int
    """Length of a feature vector (D)."""
    size: int
    """Side of the images it was trained on, in pixels."""
    mean: tuple[float, ...]
    """Mean of its training images' channels, on the scale 0..1; of flow, in pixels."""
    std: tuple[float, ...]
    """Standard deviation of these channels; of flow, the displacement that becomes 1, beyond which it is clipped."""
    weights_sha256: str
    """Hash of the weights' names and values."""
    packages: tuple[str, ...]
    """Distributions, other than torch, whose code the network runs."""
    fields: int = 1
    """Images that one frame's feature is made of."""
    whole: bool = False
    """Whether one pass takes the images of all T frames of a view and gives T features; else each frame has its own."""
    channels: int = 3
    """3: RGB images, uint8; 2: flow (u, v) in pixels, float32."""
    tokens: int = 0
    """Places for each of which a feature has a vector (P); 0: it is one vector."""
    precision: str = "fp32"
    """Number format of the network's layers, one of `PRECISIONS`; features are float32 all the same."""

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device) -> "Backbone":
        """Return the backbone with its network on a device (the network itself is moved)."""
        return replace(self, network=self.network.to(device))

    def features(self, images: Tensor) -> Tensor:
        """Compute features; T below is the number of frames of a view.

        Args:
            images: On the network's device: `[B, S, S, 3]` uint8 if `fields` is 1, else `[B, fields, S, S, 3]`;
                if `whole`, `[B, T * fields, S, S, 2]` float32 (C = `channels`).

        Returns:
            `[B, k, D]` float32 with k = 1, or T if `whole`; with tokens `[B, k, P, D]`.
        """
        # The moved axis is a view, channels-last in memory, which is the faster layout for convolutions.
        pixels = self._normalised(images).movedim(-1, 1)
        half = self.precision != "fp32"
        with torch.autocast(images.device.type, PRECISIONS[self.precision]) if half else nullcontext():
            features: Tensor = self.network(pixels)
        features = features.float()
        return features if self.whole else features.unsqueeze(1)

    def _normalised(self, images: Tensor) -> Tensor:
        """Bring the channels, which are the last axis, to the statistics of the training."""
        mean, std = self._statistics
        if self.channels == 2:
            return ((images - mean) / std).clamp(-1, 1)
        return (images - mean) / std

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation in the units of the input, kept on the device: each copy to a GPU would wait for it."""
        unit = 255 if self.channels == 3 else 1
        mean, std = ((torch.tensor(values) * unit).to(self.device) for values in (self.mean, self.std))
        return mean, std


def freeze(network: nn.Module) -> nn.Module:
    """Put a network into the state in which features are computed."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    network.eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.dim() in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])
    return network


def published_weights(name: str) -> Path:
    """Return the file of the weights that are published for a network, fetched if it is not here.

    Raises:
        UserError: If it cannot be fetched.
    """
    from ..weights import weights_file  # which asks torchvision: a file of one's own does not need that

    return weights_file(name)


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
            f"there is no weights file {str(path)!r}; --rgb-weights or --flow-weights; "
            "give the path of a .pth or .safetensors file"
        )
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path, device="cpu")
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # The restricted unpickler meets a damaged file with exceptions of a dozen kinds.
        raise UserError(
            f"no weights can be read from the file of {path.stat().st_size} bytes ({type(error).__name__}), it is cut "
            f"off or no state dict of tensors alone; {path}; copy or fetch it again, as .pth or .safetensors"
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
