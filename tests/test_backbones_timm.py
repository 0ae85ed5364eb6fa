"""Networks of timm: files of every kind, names, and the state without timm or without a network."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from amfir.cache.errors import UserError
from amfir.extract.backbones import backbone_names, load_backbone
from amfir.extract.backbones.vision import torchvision

torchvision()
timm = pytest.importorskip("timm", reason="timm is not installed")


def original(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model(name)
    return network.eval().requires_grad_(False)


def random_images(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "head"),
    [("test_vit", "head"), ("test_resnet", "fc"), ("vit_tiny_patch16_224", "head"), ("test_convnext", "head.fc")],
)
def test_features_are_the_input_of_the_classifier(name: str, head: str, tmp_path: Path) -> None:
    network = original(name)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    backbone = load_backbone(f"timm:{name}", tmp_path / "w.pth")
    settings = timm.data.resolve_model_data_config(network)
    images = random_images(2, backbone.size)
    with torch.inference_mode():
        mean, std = torch.tensor(settings["mean"]), torch.tensor(settings["std"])
        logits = network(((images / 255 - mean) / std).permute(0, 3, 1, 2))
        features = backbone.features(images)
        again = network.get_submodule(head)(features[:, 0].clone())
    torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-3 * float(logits.abs().max()))
    assert features.shape == (2, 1, backbone.dim)
    assert (backbone.size, backbone.packages) == (settings["input_size"][1], ("timm",))


def test_the_classifier_in_a_file_does_not_matter(tmp_path: Path) -> None:
    state = original("test_resnet").state_dict()
    trunk = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    torch.save(state, tmp_path / "whole.pth")
    torch.save(trunk | {"fc.weight": torch.zeros(7, 96), "fc.bias": torch.zeros(7)}, tmp_path / "tuned.pth")
    save_file(trunk, tmp_path / "headless.safetensors")
    hashes = {load_backbone("timm:test_resnet", path).weights_sha256 for path in tmp_path.iterdir()}
    assert len(hashes) == 1
    del trunk["layer1.0.conv1.weight"]
    torch.save(trunk, tmp_path / "gap.pth")
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight"):
        load_backbone("timm:test_resnet", tmp_path / "gap.pth")


def test_unknown_names_and_tags_are_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="resnet50"):
        load_backbone("timm:resnet_50")
    with pytest.raises(UserError, match=r"test_vit\.r160_in1k"):
        load_backbone("timm:test_vit.r161_in1k")
    assert {"timm:resnet50", "timm:vit_small_patch14_dinov2", "timm:vit_base_patch16_clip_224"} < set(backbone_names())


def in_a_process_of_its_own(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_without_a_network_the_error_says_how_to_get_the_weights(tmp_path: Path) -> None:
    code = (
        "from amfir.extract.backbones import load_backbone\n"
        "from amfir.cache.errors import UserError\n"
        "try:\n"
        "    load_backbone('timm:test_vit.r160_in1k')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    # The hub's client reads the setting when it is imported.
    output = in_a_process_of_its_own(code, {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": ""})
    assert output.count("\n") == 1
    assert "timm:test_vit.r160_in1k" in output
    assert "--rgb-weights or --flow-weights FILE" in output


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'amfir\[timm\]'"):
        load_backbone("timm:test_vit")
