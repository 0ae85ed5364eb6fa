"""The networks of a job: the device they run on, their loading, and one run of one."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..cache.errors import MachineError, UserError, pick
from .backbones import Backbone, load_backbone
from .config import ExtractConfig


@dataclass(frozen=True)
class Network:
    """A stream's backbone, with the one shape of batch it is run on."""

    backbone: Backbone
    """The backbone, on its device."""
    side: int
    """Side of the images in pixels (S)."""
    batch_size: int
    """Images of a batch (B)."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Compute the features `[B, D]` of a batch of images `[B, S, S, 3]`; call it in inference mode.

        Raises:
            MachineError: If the device runs out of memory.
        """
        device = self.backbone.device
        try:
            batch = torch.from_numpy(images).to(device)
            features: NDArray[np.float16] = self.backbone.features(batch).to(torch.float16).cpu().numpy()
        except (RuntimeError, MemoryError) as error:
            # Of the two allocators only the GPU's has an error class of its own.
            if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
                raise MachineError(
                    f"out of memory on {device} with {len(images)} images of {self.side} pixels; "
                    f"backbone {self.backbone.name!r}; use a smaller --batch-size, in a new cache"
                ) from error
            raise
        return features


def load_networks(config: ExtractConfig) -> dict[str, Network]:
    """Load the network of each stream, onto the job's device; streams with the same network share it.

    Raises:
        UserError: If a device, a name, a file or the size of the images does not fit.
    """
    device = find_device(config.device)
    wanted = {stream: config.backbone_of(stream) for stream in config.streams}
    networks = {}
    for name, weights in dict.fromkeys(wanted.values()):
        backbone = load_backbone(name, weights).to(device)
        network = Network(backbone, config.size or backbone.size, config.batch_size_on(device.type))
        if network.side != backbone.size:
            _try(network)
        networks[name, weights] = network
    return {stream: networks[key] for stream, key in wanted.items()}


def find_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is the first GPU if there is one.

    Raises:
        UserError: If there is no such device.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    known = {"auto": "cuda:0" if gpus else "cpu", "cpu": "cpu"}
    if gpus:
        known |= {"cuda": "cuda:0"} | {f"cuda:{i}": f"cuda:{i}" for i in range(gpus)}
    return torch.device(pick(known, name, "device"))


def _try(network: Network) -> None:
    """Run a network on one black image.

    Raises:
        UserError: If it takes no images of this side.
    """
    backbone, side = network.backbone, network.side
    try:
        with torch.inference_mode():
            network.run(np.zeros((1, side, side, 3), np.uint8))
    except (RuntimeError, AssertionError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(
            f"backbone {backbone.name!r} takes no images of {side} pixels ({cause}); --size; use {backbone.size}"
        ) from error
