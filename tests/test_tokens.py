"""Spatial tokens: against maps taken by hand and adaptive max pooling by its definition; networks without a map."""

from concurrent.futures import ThreadPoolExecutor
from math import ceil
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from amfir.cache.errors import UserError
from amfir.extract.backbones import Backbone, load_backbone
from amfir.extract.backbones.i3d import I3D
from amfir.extract.backbones.vision import torchvision


def saved(name: str, folder: Path) -> Path:
    """Save random weights of a torchvision network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision().models.get_model(name, weights=None)
    torch.save(network.state_dict(), folder / f"{name}.pth")
    return folder / f"{name}.pth"


def random_images(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def tokens_of(maps: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Max-pool maps `[B, D, h, w]` onto a grid by the definition of its bins; tokens `[B, P, D]` in reading order."""
    height, width = maps.shape[2:]
    tokens = []
    for i in range(side):
        for j in range(side):
            rows = slice(i * height // side, ceil((i + 1) * height / side))
            columns = slice(j * width // side, ceil((j + 1) * width / side))
            tokens.append(maps[:, :, rows, columns].max(axis=(2, 3)))
    return np.stack(tokens, axis=1)


@pytest.mark.parametrize(("side", "tokens"), [(224, 16), (224, 49), (64, 49)])
def test_tokens_of_resnet_are_its_last_map_on_a_grid(side: int, tokens: int, tmp_path: Path) -> None:
    path = saved("resnet18", tmp_path)
    backbone, plain = load_backbone("resnet18", path, tokens=tokens), load_backbone("resnet18", path)
    network = torchvision().models.resnet18().eval().requires_grad_(False)
    network.load_state_dict(torch.load(path, weights_only=True))
    images = random_images(2, side)
    with torch.inference_mode():
        pixels = (images / 255 - torch.tensor(plain.mean)) / torch.tensor(plain.std)
        trunk = nn.Sequential(*list(network.children())[:-2])  # without average pool and classifier
        expected = tokens_of(trunk(pixels.permute(0, 3, 1, 2)).numpy(), {16: 4, 49: 7}[tokens])
        features = backbone.features(images)
    assert features.shape == (2, 1, tokens, 512)
    assert (backbone.tokens, plain.tokens) == (tokens, 0)
    assert backbone.weights_sha256 == plain.weights_sha256
    np.testing.assert_allclose(features[:, 0].numpy(), expected, rtol=1e-3, atol=1e-4 * expected.max())


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet-lite0",
        "squeezenet1_1",
        "shufflenet_v2_x0_5",
        "mnasnet0_5",
        "regnet_y_400mf",
        "efficientnet_b0",
    ],
)
def test_the_mean_of_the_49_cells_of_a_map_is_the_feature(name: str, tmp_path: Path) -> None:
    path = None if name == "efficientnet-lite0" else saved(name, tmp_path)
    backbone, plain = load_backbone(name, path, tokens=49), load_backbone(name, path)
    images = random_images(1, 127 if name == "squeezenet1_1" else 224)  # whose maps have 7 x 7 cells
    with torch.inference_mode():
        cells, features = backbone.features(images), plain.features(images)
    assert cells.shape == (1, 1, 49, plain.dim)
    assert float(cells.std(dim=2).max()) > 0
    torch.testing.assert_close(cells.mean(dim=2), features, rtol=1e-3, atol=1e-4 * float(features.abs().max()))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "r3d_18"])
def test_networks_that_pool_no_map_into_their_feature_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{name}.*tokens") as caught:
        load_backbone(name, saved(name, tmp_path), tokens=16)
    assert "\n" not in str(caught.value)


def test_other_numbers_of_tokens_are_refused() -> None:
    for tokens in (1, 25, -16):
        with pytest.raises(UserError, match="16, 49"):
            load_backbone("efficientnet-lite0", tokens=tokens)


def test_tokens_of_i3d_are_its_map_at_each_step_in_time(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(I3D().state_dict(), tmp_path / "w.pt")
    backbone = load_backbone("i3d-flow-charades", tmp_path / "w.pt", tokens=16)
    plain = load_backbone("i3d-flow-charades", tmp_path / "w.pt")
    flow = torch.randn(2, 16, 40, 64, 2, generator=torch.Generator().manual_seed(2)) * 5
    with torch.inference_mode():
        maps = plain.network.spatial_map((flow / 20).clamp(-1, 1).permute(0, 4, 1, 2, 3))  # type: ignore[operator]
        features = backbone.features(flow)
    assert maps.shape == (2, 2, 1024, 2, 2)
    assert features.shape == (2, 2, 16, 1024)
    for step in range(2):
        expected = tokens_of(maps[:, step].numpy(), 4)
        np.testing.assert_allclose(features[:, step].numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "prefix"), [("test_vit", 1), ("test_vit_relpos", 0)])
def test_tokens_of_a_vision_transformer_are_those_of_its_patches(name: str, prefix: int, tmp_path: Path) -> None:
    torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed")
    network = timm.create_model(name).eval().requires_grad_(False)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    backbone = load_backbone(f"timm:{name}", tmp_path / "w.pth", tokens=16)
    images = random_images(2, 160)
    with torch.inference_mode():
        pixels = (images / 255 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
        patches = network.forward_features(pixels.permute(0, 3, 1, 2))[:, prefix:].numpy()
        features = backbone.features(images)
    maps = np.stack([patches[:, 10 * row : 10 * row + 10] for row in range(10)], axis=1)  # [B, 10, 10, D]
    expected = tokens_of(maps.transpose(0, 3, 1, 2), 4)
    np.testing.assert_allclose(features[:, 0].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_timm_networks_with_channels_last_and_of_those_without_a_grid(tmp_path: Path) -> None:
    torchvision()
    timm = pytest.importorskip("timm", reason="timm is not installed")
    network = timm.create_model("swin_tiny_patch4_window7_224").eval()
    torch.save(network.state_dict(), tmp_path / "swin.pth")
    backbone = load_backbone("timm:swin_tiny_patch4_window7_224", tmp_path / "swin.pth", tokens=49)
    images = random_images(1, 224)
    with torch.inference_mode():
        features = backbone.features(images)
        pixels = (images / 255 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
        maps = network.forward_features(pixels.permute(0, 3, 1, 2))
    torch.testing.assert_close(features[0, 0], maps.flatten(1, 2)[0], rtol=1e-3, atol=1e-4)
    for name in ("test_mambaout", "coat_tiny"):  # of another width than the features, and a list
        torch.save(timm.create_model(name).state_dict(), tmp_path / "w.pth")
        with pytest.raises(UserError, match=f"{name}.*tokens"):
            load_backbone(f"timm:{name}", tmp_path / "w.pth", tokens=49)


def test_lanes_that_share_a_network_do_not_get_each_others_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meeting_point.py").write_text(
        "import torch\n"
        "class Network(torch.nn.Module):\n"
        "    barrier = None\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Conv2d(3, 5, 1)\n"
        "    def forward(self, x):\n"
        "        maps = self.layer(x)\n"
        "        if self.barrier:\n"
        "            self.barrier.wait(10)\n"
        "        return maps.mean(dim=(2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    backbone = load_backbone("meeting_point:Network", tokens=16)
    inputs = [random_images(1, 32), random_images(1, 64)]

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            return backbone.features(images)

    alone = [run(images) for images in inputs]
    # Now each run waits, after its map has passed, until the other's has.
    monkeypatch.setattr(type(backbone.network.get_submodule("network.network")), "barrier", Barrier(2))
    with ThreadPoolExecutor(2) as threads:
        for one, other in zip(alone, threads.map(run, inputs), strict=True):
            assert torch.equal(one, other)


def test_a_map_that_cannot_be_told_from_a_later_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "layer_run_twice.py").write_text(
        "import torch\n"
        "class Network(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Conv2d(3, 5, 1)\n"
        "    def forward(self, x):\n"
        "        features = self.layer(x)\n"
        "        self.layer(2 * x)\n"
        "        return features.mean(dim=(2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_backbone("layer_run_twice:Network").dim == 5
    with pytest.raises(UserError, match="tokens"):
        load_backbone("layer_run_twice:Network", tokens=16)


def test_a_backbone_of_ones_own_may_bring_its_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "with_tokens.py").write_text(
        "import torch\n"
        "from amfir.extract.backbones import Backbone\n"
        "class Network(torch.nn.Conv2d):\n"
        "    def forward(self, x):\n"
        "        return torch.nn.functional.adaptive_max_pool2d(super().forward(x), 4).flatten(2).transpose(1, 2)\n"
        "def factory():\n"
        "    return Backbone('x', Network(3, 5, 1), 5, 32, (0.0,) * 3, (1.0,) * 3, '', (), tokens=16)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    backbone: Backbone = load_backbone("with_tokens:factory", tokens=16)
    with torch.inference_mode():
        assert backbone.features(random_images(2, 32)).shape == (2, 1, 16, 5)
    with pytest.raises(UserError, match="tokens"):
        load_backbone("with_tokens:factory", tokens=49)
