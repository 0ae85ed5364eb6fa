"""I3D for optical flow (Carreira & Zisserman 2017), in the form whose weights on Charades are published."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .backbone import Backbone, freeze, load_strictly, published_weights, read_weights, weights_sha256

Triple = tuple[int, int, int]

NAME = "i3d-flow-charades"
FIELDS = 8
"""Flow fields that become one step in time: the product of the temporal strides."""
CLIP_PIXELS = 20.0
"""Displacement that the network sees as 1; larger ones are clipped."""
CLASSES = 157
"""Classes of Charades."""

MIXED: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Channels of the units b0, b1a, b1b, b2a, b2b, b3b of each inception block."""

POOL_BEFORE: dict[str, tuple[Triple, Triple]] = {
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}
"""Kernel and stride of the max pool in front of a layer."""


def load_i3d(weights: Path | None = None) -> Backbone:
    """Load I3D for flow; a pass over T * 8 fields gives T features of 1024.

    Args:
        weights: State dict file; None fetches the published one.

    Raises:
        UserError: If the file does not fit or cannot be fetched.
    """
    path = weights or published_weights(NAME)
    network = I3D()
    load_strictly(network, read_weights(path), str(path))
    sha256 = weights_sha256(network.state_dict())
    return Backbone(
        name=NAME,
        network=freeze(fold(network.eval())),
        dim=1024,
        size=224,
        mean=(0.0, 0.0),
        std=(CLIP_PIXELS, CLIP_PIXELS),
        weights_sha256=sha256,
        packages=(),
        fields=FIELDS,
        whole=True,
        channels=2,
    )


class I3D(nn.Module):
    """The trunk up to Mixed_5c; the classifier is there for the sake of its weights, and never run."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(2, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        channels = 192
        for name, widths in MIXED.items():
            block = Mixed(channels, widths)
            self.add_module(name, block)
            channels = block.channels
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(channels, CLASSES, 1)})

    def forward(self, fields: Tensor) -> Tensor:
        """Turn flow `[B, 2, N, H, W]` in -1..1 into features `[B, ceil(N / 8), 1024]`, averaged over space."""
        return self.spatial_map(fields).float().mean(dim=(-2, -1))

    def spatial_map(self, fields: Tensor) -> Tensor:
        """Turn flow `[B, 2, N, H, W]` into the maps of Mixed_5c `[B, T, 1024, ceil(H / 32), ceil(W / 32)]`."""
        x = fields
        for name, layer in self.named_children():
            if name != "logits":
                x = layer(max_pool_same(x, *POOL_BEFORE[name]) if name in POOL_BEFORE else x)
        return x.transpose(1, 2)


class Mixed(nn.Module):
    """An inception block: four branches side by side, their channels joined."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.b0 = Unit(channels, b0, 1)
        self.b1a = Unit(channels, b1a, 1)
        self.b1b = Unit(b1a, b1b, 3)
        self.b2a = Unit(channels, b2a, 1)
        self.b2b = Unit(b2a, b2b, 3)
        self.b3b = Unit(channels, b3b, 1)
        self.channels = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        """Turn `[B, C, n, h, w]` into `[B, channels, n, h, w]`."""
        pooled = max_pool_same(x, (3, 3, 3), (1, 1, 1))
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)), dim=1)


class Unit(nn.Module):
    """Convolution with "same" padding, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Turn `[B, C, n, h, w]` into `[B, out, ceil(n / stride), ceil(h / stride), ceil(w / stride)]`."""
        kernel, stride = self.conv3d.kernel_size, self.conv3d.stride
        if max(stride) == 1:  # then "same" padding is symmetric, and the convolution can do it without a copy
            n, h, w = (side // 2 for side in kernel)
            x = functional.conv3d(x, self.conv3d.weight, self.conv3d.bias, padding=(n, h, w))
        else:
            x = self.conv3d(pad_same(x, kernel, stride))
        return functional.relu(self.bn(x), inplace=True)


def max_pool_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Take the maxima of `[B, C, n, h, w]` under windows that may reach into a frame of zeros."""
    return functional.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


def pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad the last axes of a tensor with zeros, so that windows of a kernel and stride cover each of them.

    An axis of n values gives ceil(n / stride) windows, as in TensorFlow; an odd rest goes behind.
    """
    pads: list[int] = []
    sizes = x.shape[-len(kernel) :]
    for size, side, step in zip(reversed(sizes), reversed(kernel), reversed(stride), strict=True):
        total = max(side - (size % step or step), 0)
        pads += (total // 2, total - total // 2)
    return functional.pad(x, pads) if any(pads) else x


def fold(network: I3D) -> I3D:
    """Merge the batch norms into the convolutions, in place: a pass over memory less each, equal up to rounding."""
    for unit in network.modules():
        if isinstance(unit, Unit):
            unit.conv3d = fuse_conv_bn_eval(unit.conv3d, unit.bn)
            unit.bn = nn.Identity()  # type: ignore[assignment]
    return network
