"""Settings and networks of an extraction, as the tests need them."""

from amfir.extract.backbones import Backbone
from amfir.extract.config import ExtractConfig
from amfir.extract.networks import Network
from amfir.extract.prepare import FlowSettings, StreamSettings
from amfir.extract.reduce import Want
from amfir.extract.worker import DecodeSettings


def stream_settings(stream: str, size: int, config: ExtractConfig) -> StreamSettings:
    """Return what is made for an image network of this input size."""
    flow = stream == "flow"
    return StreamSettings(Want(size, pairs=flow), "rendered" if flow else "frames", size, config.fit)


def settings_for(config: ExtractConfig, **sizes: int) -> DecodeSettings:
    """Return what the decoder workers do for image networks of these input sizes."""
    streams = {stream: stream_settings(stream, size, config) for stream, size in sizes.items()}
    return DecodeSettings(config.sampling, streams, FlowSettings("opencv", config.flow_parameters, config.flow_scale))


def network_of(backbone: Backbone, config: ExtractConfig, stream: str = "rgb") -> Network:
    """Return an image network on the CPU as a job would run it."""
    settings = stream_settings(stream, config.size or backbone.size, config)
    flow_backend = "opencv" if stream == "flow" else ""
    return Network(backbone, settings, config.batch_size_on("cpu"), flow_backend=flow_backend)
