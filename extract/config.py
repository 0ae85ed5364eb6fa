"""What an extraction job is told, and the spec of the streams that follow from it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import av
import cv2

from ..cache import Json, StreamSpec
from ..cache.errors import UserError, pick
from .flow import FLOW_BACKENDS, FarnebackParameters
from .flow.render import SCALE
from .sampling import Sampling
from .worker import DecodeSettings

if TYPE_CHECKING:  # the decoder workers read these settings, and must not import torch
    from .backbones import Backbone

PREPROCESSING = 1
"""Version of the way from a video to a network's input; raised by whoever changes the pixels."""
STREAMS = ("rgb", "flow")
FITS = ("crop", "squash")


@dataclass(frozen=True)
class ExtractConfig:
    """Settings of an extraction job."""

    streams: tuple[str, ...] = STREAMS
    """Modalities to extract."""
    rgb: str = "efficientnet-lite0"
    """Backbone of the RGB stream."""
    flow: str = "efficientnet-lite0"
    """Backbone of the flow stream; it sees flow rendered as an image."""
    rgb_weights: Path | None = None
    """State dict of the RGB backbone; None takes the published one."""
    flow_weights: Path | None = None
    """State dict of the flow backbone; None takes the published one."""
    frames: int = 8
    """Frames of each view."""
    views: int = 1
    """Selections of frames of each clip."""
    seed: int = 0
    """Seed of the random views."""
    size: int | None = None
    """Side of the networks' input in pixels; None takes each backbone's own."""
    fit: Literal["crop", "squash"] = "squash"
    """How a frame becomes a square: its centre is cut out, or the whole is squeezed."""
    batch_size: int | None = None
    """Images in each run of a network; features depend on it in their last bits. None: 4 on a CPU, 64 on a GPU."""
    flow_backend: str = "opencv"
    """What computes the flow."""
    flow_parameters: FarnebackParameters = field(default_factory=FarnebackParameters)
    """Parameters of the flow."""
    flow_scale: float = SCALE
    """Grey levels per pixel of displacement in the rendered flow."""
    workers: int | None = None
    """Decoder processes; None takes one a core."""
    device: str = "auto"
    """Where the networks run: "cpu", "cuda", "cuda:1" ...; "auto" takes a GPU if there is one."""
    retry_failed: bool = False
    """Whether clips that failed in an earlier job are tried again."""
    timeout_seconds: float = 120.0
    """Time after which the decoding of one clip is given up."""

    def __post_init__(self) -> None:
        """Refuse what no job can do."""
        if not self.streams or len(set(self.streams)) != len(self.streams):
            raise UserError(f"streams are {', '.join(self.streams) or 'none'}; --streams; name each stream once")
        for stream in self.streams:
            pick(dict.fromkeys(STREAMS), stream, "stream")
        pick(dict.fromkeys(FITS), self.fit, "fit")
        pick(FLOW_BACKENDS, self.flow_backend, "flow backend")
        _ = self.sampling  # checks frames, views and seed
        for name in ("size", "batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}; extraction; it must be at least 1")
        for name in ("timeout_seconds", "flow_scale"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; extraction; it must be above 0")

    @property
    def sampling(self) -> Sampling:
        """Which frames are taken."""
        return Sampling(self.frames, self.views, self.seed)

    def backbone_of(self, stream: str) -> tuple[str, Path | None]:
        """Return name and weights file of a stream's backbone."""
        return (self.rgb, self.rgb_weights) if stream == "rgb" else (self.flow, self.flow_weights)

    def batch_size_on(self, device: str) -> int:
        """Return the fixed batch size on a kind of device ("cpu", "cuda")."""
        # On a CPU, the activations of few images stay in its caches: 4 was the fastest of 1 ... 32.
        return self.batch_size or (4 if device == "cpu" else 64)


def stream_spec(stream: str, backbone: "Backbone", config: ExtractConfig) -> StreamSpec:
    """Describe a stream by everything that changes its features.

    Args:
        stream: "rgb" or "flow".
        backbone: The stream's network, on the device it will run on.
        config: The job's settings.
    """
    sampling: dict[str, Json] = {"positions": "segments"}
    if config.views > 1:
        sampling["seed"] = config.seed
    versions = {name: version(name) for name in ("torch", *backbone.packages)}
    versions |= {"av": av.__version__, "ffmpeg": av.ffmpeg_version_info, "opencv": cv2.__version__}
    settings: dict[str, Json] = {
        "backbone": {
            "name": backbone.name,
            "weights_sha256": backbone.weights_sha256,
            "size": config.size or backbone.size,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
        },
        "sampling": sampling,
        "fit": config.fit,
        "preprocessing": PREPROCESSING,
        "batch_size": config.batch_size_on(backbone.device.type),
        "device": backbone.device.type,
        "versions": {**versions},
    }
    if stream == "flow":
        settings["flow"] = _flow_settings(config)
    return StreamSpec(stream, config.frames, config.views, backbone.dim, settings)


def decode_settings(config: ExtractConfig, sides: Mapping[str, int]) -> DecodeSettings:
    """Return what the decoder workers do, given the side of each stream's images in pixels."""
    return DecodeSettings(
        sampling=config.sampling,
        sides=dict(sides),
        fit=config.fit,
        flow_backend=config.flow_backend,
        flow_parameters=config.flow_parameters,
        flow_scale=config.flow_scale,
    )


def _flow_settings(config: ExtractConfig) -> dict[str, Json]:
    """Return what only a flow stream depends on."""
    backend = FLOW_BACKENDS[config.flow_backend](config.flow_parameters)
    return {
        "backend": backend.name,
        "version": backend.version,
        "scale": config.flow_scale,
        **asdict(config.flow_parameters),
    }
