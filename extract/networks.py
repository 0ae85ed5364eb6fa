"""The networks of a job: the devices they run on, their loading, and one run of one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..cache.errors import MachineError, UserError, pick
from .backbones import Backbone, i3d, load_backbone
from .config import ExtractConfig
from .flow import DEVICE_BACKENDS, choose_backend, load_device_backend
from .flow.on_device import PairsToInput
from .prepare import Product, StreamSettings
from .reduce import Want


@dataclass(frozen=True)
class Network:
    """A stream's backbone, with the one size of batch it is run on.

    An item is what one pass takes of a clip: an image, a stack of them, or all fields of a view.
    """

    backbone: Backbone
    """The backbone, on its device."""
    settings: StreamSettings
    """What the decoders make for it."""
    batch_size: int
    """Items of a batch (B)."""
    from_pairs: PairsToInput | None = None
    """What is done with the grey pairs of a batch; None if the items are what the backbone takes."""
    flow_backend: str = ""
    """What computes the flow of a flow stream, never "auto"."""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one frame's features: `(D,)` or `(P, D)`."""
        backbone = self.backbone
        return (backbone.tokens, backbone.dim) if backbone.tokens else (backbone.dim,)

    def items(self, product: NDArray[Any], frames: int) -> NDArray[Any]:
        """Divide a clip's product `[V, F, ...]` for T features a view into items `[n, ...]` in the features' order."""
        backbone = self.backbone
        if backbone.whole:
            return product
        per_item = (backbone.fields,) if backbone.fields > 1 else ()
        return product.reshape(len(product) * frames, *per_item, *product.shape[2:])

    def run(self, items: NDArray[Any], count: int | None = None) -> NDArray[np.float16]:
        """Compute the features of the first items of a batch; call it in inference mode.

        Args:
            items: `[B, ...]`.
            count: How many of them matter; None takes all.

        Returns:
            `[count, k, D]` or `[count, k, P, D]`.

        Raises:
            MachineError: If the device runs out of memory.
            UserError: If a value is not finite.
        """
        with _memory_errors(self.backbone, len(items), self.settings.size):
            batch = _to_device(items, self.backbone.device)
            if self.from_pairs is not None:
                # A pair's flow does not depend on the others, so that none is wasted on the padding.
                batch = _padded(self.from_pairs(batch[:count]), len(items))
            features: NDArray[np.float16] = self.backbone.features(batch)[:count].to(torch.float16).cpu().numpy()
        if not np.isfinite(features).all():
            raise UserError(
                f"backbone {self.backbone.name!r} gives values that are no numbers or too large for float16; "
                f"precision {self.backbone.precision}; check its weights, or use --precision fp32 in a new cache"
            )
        return features


def load_networks(config: ExtractConfig, device: torch.device | None = None) -> dict[str, Network]:
    """Load the network of each stream, onto a device; streams with the same network share it.

    Args:
        config: The job's settings.
        device: Where they run; None takes the job's first device.

    Raises:
        UserError: If a device, a name, a file or the size of the images does not fit.
    """
    device = device or find_devices(config.device)[0]
    backbones: dict[Any, Backbone] = {}
    networks = {}
    for stream in config.streams:
        name, weights = config.backbone_of(stream)
        if stream != "flow" and name == i3d.NAME:  # before its weights are looked for
            raise _takes_flow(name, stream)
        key = (name, weights, config.normalise or stream != "rgb")
        if key not in backbones:
            backbones[key] = _load(name, weights, config, device, normalise=key[2])
        networks[stream] = _network(stream, backbones[key], config)
    return networks


def find_devices(names: str) -> list[torch.device]:
    """Return the devices of a comma-separated list; "auto" is all GPUs, or the CPU where there is none.

    Raises:
        UserError: If there is no such device, or one is named twice.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if "cuda" in names and not gpus:
        raise UserError(f"device is {names!r}, and torch {torch.__version__} sees no GPU; --device; use cpu or auto")
    known = {"cpu": "cpu"} | {f"cuda:{i}": f"cuda:{i}" for i in range(gpus)}
    if gpus:
        known["cuda"] = "cuda:0"
    if names == "auto":
        return [torch.device(f"cuda:{i}") for i in range(gpus)] or [torch.device("cpu")]
    devices = [torch.device(pick({**known, "auto": ""}, name.strip(), "device") or "cpu") for name in names.split(",")]
    if len(set(devices)) < len(devices) or len({device.type for device in devices}) > 1:
        raise UserError(f"devices are {names!r}; --device; name GPUs once each, or the CPU alone")
    return devices


def choose_precision(name: str, device: torch.device) -> str:
    """Return what "auto" stands for on a device: half precision on a GPU."""
    if name != "auto":
        return name
    # As fast as bf16, and its three bits more keep features nearer to fp32's wherever both were compared.
    return "fp32" if device.type == "cpu" else "fp16"


def _load(name: str, weights: Any, config: ExtractConfig, device: torch.device, *, normalise: bool) -> Backbone:
    precision = choose_precision(config.precision, device)
    backbone = load_backbone(name, weights, tokens=config.tokens, precision=precision, normalise=normalise)
    return backbone.to(device)


def _network(stream: str, backbone: Backbone, config: ExtractConfig) -> Network:
    """Put a stream's network together, and try it if its images have another size than it was made for."""
    if backbone.channels == 2 and stream != "flow":
        raise _takes_flow(backbone.name, stream)
    size = config.size or backbone.size
    short_side = config.short_side or size
    if short_side < size:
        raise UserError(
            f"the short side is {short_side} and the images have {size} pixels; --short-side; at least {size}"
        )
    flow = choose_backend(config.flow_backend, backbone.device.type) if stream == "flow" else None
    settings = StreamSettings(
        want=Want(short_side, backbone.fields, pairs=stream == "flow"),
        product=_product(backbone, flow),
        size=size,
        fit=config.fit,
    )
    items_fields = backbone.fields * (config.frames if backbone.whole else 1)
    batch_size = max(1, config.batch_size_on(backbone.device.type) // items_fields)
    from_pairs = None
    if settings.product == "pairs":
        assert flow is not None
        from_pairs = PairsToInput(
            load_device_backend(flow, config.flow_parameters, backbone.device),
            size=size,
            squash=config.fit == "squash",
            scale=None if backbone.channels == 2 else config.flow_scale,
        )
    network = Network(backbone, settings, batch_size, from_pairs, flow or "")
    if size != backbone.size:
        _try(network, config.frames)
    return network


def _takes_flow(name: str, stream: str) -> UserError:
    return UserError(f"backbone {name!r} takes flow; --{stream}; use it with --flow")


def _product(backbone: Backbone, flow: str | None) -> Product:
    """Return what the decoders make for a network, given the flow backend (None: it looks at frames)."""
    if flow is None:
        return "frames"
    if flow in DEVICE_BACKENDS:
        return "pairs"
    return "fields" if backbone.channels == 2 else "rendered"


def _to_device(items: NDArray[Any], device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(items)
    # From pinned memory the copy runs beside the computation; bytes travel as bytes.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _padded(batch: torch.Tensor, size: int) -> torch.Tensor:
    """Add black items up to the size of a batch."""
    missing = size - len(batch)
    return torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch


@contextmanager
def _memory_errors(backbone: Backbone, items: int, size: int) -> Iterator[None]:
    """Turn a lack of memory into one line that names the way out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Of the two allocators only the GPU's has an error class of its own.
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
            raise MachineError(
                f"out of memory on {backbone.device} with {items} items of {size} pixels; "
                f"backbone {backbone.name!r}; use a smaller --batch-size, in a new cache"
            ) from error
        raise


def _try(network: Network, frames: int) -> None:
    """Run a network on one black item.

    Raises:
        UserError: If it takes no images of this side.
    """
    backbone, size = network.backbone, network.settings.size
    fields = backbone.fields * frames if backbone.whole else backbone.fields
    lead = (1, fields) if backbone.whole or fields > 1 else (1,)
    black = torch.zeros((*lead, size, size, backbone.channels), dtype=_DTYPES[backbone.channels])
    try:
        with torch.inference_mode(), _memory_errors(backbone, 1, size):
            backbone.features(black.to(backbone.device))
    except (RuntimeError, AssertionError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise UserError(
            f"backbone {backbone.name!r} takes no images of {size} pixels ({cause}); --size; use {backbone.size}"
        ) from error


_DTYPES: Mapping[int, torch.dtype] = {2: torch.float32, 3: torch.uint8}
