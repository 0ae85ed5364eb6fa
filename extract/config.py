"""What an extraction job is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..cache.errors import UserError, pick
from .flow import BACKENDS, FarnebackParameters
from .flow.render import SCALE
from .hwaccel import HWACCELS
from .prepare import FlowSettings
from .sampling import Sampling
from .worker import DecodeSettings

if TYPE_CHECKING:  # the decoder workers read these settings, and must not import torch
    from .networks import Network

STREAMS = ("rgb", "flow")
FITS = ("crop", "squash")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ENGINES = ("local", "ray")
MAX_BATCH = 4096
PRESETS: dict[str, dict[str, object]] = {
    "papers": {"rgb": "resnet50", "flow": "i3d-flow-charades", "short_side": 256, "size": 224, "fit": "crop"}
}
"""Settings that belong together, by name: "papers" is the protocol of AMFAR and AMFIR."""


@dataclass(frozen=True)
class ExtractConfig:
    """Settings of an extraction job."""

    streams: tuple[str, ...] = STREAMS
    """Modalities to extract."""
    rgb: str = "efficientnet-lite0"
    """Backbone of the RGB stream."""
    flow: str = "efficientnet-lite0"
    """Backbone of the flow stream; one made for images sees flow rendered as an image."""
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
    short_side: int | None = None
    """Short side in pixels to which frames are resized before the cut and before the flow; None takes `size`."""
    fit: Literal["crop", "squash"] = "squash"
    """How a frame becomes a square: its centre is cut out, or the whole is squeezed."""
    normalise: bool = True
    """Whether RGB images are normalised as in the backbone's training; TRX's and HyRSM's readers leave it out."""
    tokens: int = 0
    """Spatial tokens of each frame: 0 caches one vector a frame, 16 or 49 cache so many."""
    batch_size: int | None = None
    """Images in each run of a network; features depend on it in their last bits. None: 4 on a CPU, 64 on a GPU."""
    precision: str = "auto"
    """Numbers that the networks compute with: "fp32", "bf16" or "fp16"; "auto" is fp32 on a CPU, half on a GPU."""
    flow_backend: str = "auto"
    """What computes the flow: a name in `flow.BACKENDS`; "auto" is OpenCV on a CPU, Triton on a GPU."""
    flow_parameters: FarnebackParameters = field(default_factory=FarnebackParameters)
    """Parameters of the flow."""
    flow_scale: float = SCALE
    """Grey levels per pixel of displacement in the rendered flow."""
    workers: int | None = None
    """Decoder processes; None takes one a core."""
    device: str = "auto"
    """Where the networks run: "cpu", "cuda:1", "cuda:0,cuda:1" ...; "auto" takes all GPUs if there are any."""
    hwaccel: str = "none"
    """Hardware that decodes where it can: "none" or "cuda"."""
    engine: str = "local"
    """What spreads the work: "local" processes, or a "ray" cluster."""
    address: str | None = None
    """Address of the Ray cluster; None takes RAY_ADDRESS, or starts a cluster on this machine."""
    strict: bool = False
    """Whether a cached flow stream of another backend is refused though both agree up to rounding."""
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
        choices = {
            "flow backend": (BACKENDS, self.flow_backend),
            "precision": (PRECISIONS, self.precision),
            "hardware decoder": (HWACCELS, self.hwaccel),
            "engine": (ENGINES, self.engine),
        }
        for what, (known, name) in choices.items():
            pick(dict.fromkeys(known), name, what)
        if self.address is not None and self.engine != "ray":
            raise UserError(f"address is {self.address!r}; --address; it goes with --engine ray")
        if self.batch_size is not None and self.batch_size > MAX_BATCH:
            raise UserError(f"batch_size is {self.batch_size}; --batch-size; more than {MAX_BATCH} only costs memory")
        if self.tokens not in (0, 16, 49):
            raise UserError(f"tokens is {self.tokens}; extraction; it must be 0, 16 or 49")
        _ = self.sampling  # checks frames, views and seed
        for name in ("size", "short_side", "batch_size", "workers"):
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


def decode_settings(config: ExtractConfig, networks: "Mapping[str, Network]") -> DecodeSettings:
    """Return what the decoder workers do for the networks of the streams."""
    backend = next((network.flow_backend for network in networks.values() if network.flow_backend), "")
    flow = FlowSettings(backend, config.flow_parameters, config.flow_scale)
    streams = {stream: network.settings for stream, network in networks.items()}
    return DecodeSettings(config.sampling, streams, flow, config.hwaccel)
