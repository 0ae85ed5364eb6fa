"""What decides a stream's features, written down."""

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import av
import cv2

from ..cache import Json, Store, StreamSpec, differences
from .config import ExtractConfig
from .flow import AGREEING, HOST_BACKENDS
from .networks import Network

PREPROCESSING = 1
"""Version of the way from a video to a network's input; raised by whoever changes the pixels."""


def stream_spec(stream: str, network: Network, config: ExtractConfig) -> StreamSpec:
    """Describe a stream by everything that changes its features.

    Args:
        stream: "rgb" or "flow".
        network: The stream's network, on the device it will run on.
        config: The job's settings.
    """
    backbone, kind = network.backbone, network.backbone.device.type
    versions = {name: version(name) for name in ("torch", *backbone.packages)}
    versions |= {"av": av.__version__, "ffmpeg": av.ffmpeg_version_info, "opencv": cv2.__version__}
    settings: dict[str, Json] = {
        "backbone": {
            "name": backbone.name,
            "weights_sha256": backbone.weights_sha256,
            "size": network.settings.size,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
        },
        "sampling": _sampling(network, config),
        "fit": config.fit,
        "preprocessing": PREPROCESSING,
        "batch_size": config.batch_size_on(kind),
        "device": kind,
        "versions": {**versions},
    }
    if network.settings.want.short_side != network.settings.size:
        settings["short_side"] = network.settings.want.short_side
    if backbone.precision != "fp32":
        settings["precision"] = backbone.precision
    if config.hwaccel != "none":
        settings["hwaccel"] = config.hwaccel
    if stream == "flow":
        settings["flow"] = _flow(network, config)
    return StreamSpec(stream, config.frames, config.views, backbone.dim, settings, tokens=backbone.tokens)


def settled_spec(cache: Path, stream: str, network: Network, config: ExtractConfig) -> StreamSpec:
    """Return the spec under which a job writes a stream: the cache's own, if both agree up to rounding."""
    asked = stream_spec(stream, network, config)
    if config.strict or not (cache / stream).is_dir():
        return asked
    cached = Store(cache).spec(stream)
    return cached if agree(cached, asked) else asked


def agree(cached: StreamSpec, asked: StreamSpec) -> bool:
    """Tell whether two specs differ in nothing but two flow backends that agree up to rounding."""
    if not differences(cached, asked):
        return True
    if not {_backend(cached), _backend(asked)} <= AGREEING:
        return False
    return not differences(_without_backend(cached), _without_backend(asked))


def _sampling(network: Network, config: ExtractConfig) -> dict[str, Json]:
    sampling: dict[str, Json] = {"positions": "segments"}
    if config.views > 1:
        sampling["seed"] = config.seed
    if network.backbone.fields > 1:
        sampling["fields"] = network.backbone.fields
    return sampling


def _flow(network: Network, config: ExtractConfig) -> dict[str, Json]:
    """Return what only a flow stream depends on."""
    settings: dict[str, Json] = {**asdict(config.flow_parameters)}
    if network.from_pairs is not None:
        settings |= {"backend": network.from_pairs.flow.name, "version": network.from_pairs.flow.version}
    else:
        backend = HOST_BACKENDS[network.flow_backend](config.flow_parameters)
        settings |= {"backend": backend.name, "version": backend.version}
    if network.backbone.channels == 3:
        settings["scale"] = config.flow_scale
    return settings


def _backend(spec: StreamSpec) -> Json:
    flow = spec.settings.get("flow")
    return flow.get("backend") if isinstance(flow, dict) else None


def _without_backend(spec: StreamSpec) -> StreamSpec:
    flow = spec.settings["flow"]
    assert isinstance(flow, dict)
    rest = {name: value for name, value in flow.items() if name not in ("backend", "version")}
    return StreamSpec(
        spec.modality, spec.frames, spec.views, spec.dim, {**spec.settings, "flow": rest}, tokens=spec.tokens
    )
