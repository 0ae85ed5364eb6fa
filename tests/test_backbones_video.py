"""torchvision's video networks: their features against the original networks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from amfir.extract.backbones import Backbone, backbone_names, load_backbone
from amfir.extract.backbones.video import remove_head, video_names
from amfir.extract.backbones.vision import torchvision


def original(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = torchvision().models.get_model(name, weights=None)
    return network.eval().requires_grad_(False)


def normalised(backbone: Backbone, stacks: Tensor) -> Tensor:
    """Normalise `[B, 16, S, S, 3]` uint8 the long way, in float64, channel by channel."""
    planes = [(stacks[..., c].double() / 255 - backbone.mean[c]) / backbone.std[c] for c in range(3)]
    return torch.stack(planes, dim=1).float()


@pytest.mark.parametrize(
    ("name", "side", "head", "size", "dim"),
    [
        ("r3d_18", 32, "fc", 112, 512),
        ("r2plus1d_18", 32, "fc", 112, 512),
        ("s3d", 224, "classifier.1", 224, 1024),
        ("swin3d_t", 32, "head", 224, 768),
    ],
)
def test_features_are_the_input_of_the_classification_layer(
    name: str, side: int, head: str, size: int, dim: int, tmp_path: Path
) -> None:
    network = original(name)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    backbone = load_backbone(name, tmp_path / "w.pth")
    generator = torch.Generator().manual_seed(1)
    stacks = torch.randint(0, 256, (1, 16, side, side, 3), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        features = backbone.features(stacks)
        logits = network(normalised(backbone, stacks))
        layer = network.get_submodule(head)
        # S3D's layer is a convolution, and classifies one volume of 1 x 1 x 1.
        volume = features[0, 0, :, None, None, None] if isinstance(layer, nn.Conv3d) else features[0, 0]
        again = layer(volume.clone()).flatten()
    torch.testing.assert_close(again, logits[0], rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
    assert features.shape == (1, 1, dim)
    assert (backbone.dim, backbone.size, backbone.fields, backbone.whole) == (dim, size, 16, False)


def test_every_video_network_of_torchvision_has_a_head_that_comes_off() -> None:
    assert len(video_names()) >= 9
    assert set(video_names()) < set(backbone_names())
    for name in video_names():
        with torch.device("meta"):
            network: nn.Module = torchvision().models.get_model(name, weights=None).eval()
            side = 112 if name.endswith("_18") else 224
            dim = remove_head(network)
            if name.startswith("swin3d"):  # asks its tensors for their values, which meta tensors do not have
                continue
            assert network(torch.zeros(1, 3, 16, side, side)).shape == (1, dim)
