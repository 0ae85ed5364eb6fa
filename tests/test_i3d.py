"""I3D: its tensors by the naming rules, "same" padding by brute force, the whole network against plain convolutions."""

import re
from collections import OrderedDict
from dataclasses import replace
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from amfir.cache.errors import UserError
from amfir.extract.backbones import load_backbone
from amfir.extract.backbones.backbone import Backbone, weights_sha256
from amfir.extract.backbones.i3d import I3D, max_pool_same, pad_same

NAME = "i3d-flow-charades"
BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
BLOCKS = {
    "3b": (192, 64, 96, 128, 16, 32, 32),
    "3c": (256, 128, 128, 192, 32, 96, 64),
    "4b": (480, 192, 96, 208, 16, 48, 64),
    "4c": (512, 160, 112, 224, 24, 64, 64),
    "4d": (512, 128, 128, 256, 24, 64, 64),
    "4e": (512, 112, 144, 288, 32, 64, 64),
    "4f": (528, 256, 160, 320, 32, 128, 128),
    "5b": (832, 256, 160, 320, 32, 128, 128),
    "5c": (832, 384, 192, 384, 48, 128, 128),
}
"""Input channels and the widths of the six units of each inception block."""

State = OrderedDict[str, Tensor]


def listed_shapes() -> dict[str, tuple[int, ...]]:
    """Write out the 344 tensors of the published network."""
    convs = {
        "Conv3d_1a_7x7": (64, 2, 7, 7, 7),
        "Conv3d_2b_1x1": (64, 64, 1, 1, 1),
        "Conv3d_2c_3x3": (192, 64, 3, 3, 3),
    }
    for block, (channels, *widths) in BLOCKS.items():
        b0, b1a, b1b, b2a, b2b, b3b = widths
        inputs = (channels, channels, b1a, channels, b2a, channels)
        for branch, out, into in zip(BRANCHES, (b0, b1a, b1b, b2a, b2b, b3b), inputs, strict=True):
            side = 3 if branch in ("b1b", "b2b") else 1
            convs[f"Mixed_{block}.{branch}"] = (out, into, side, side, side)
    shapes: dict[str, tuple[int, ...]] = {"logits.conv3d.weight": (157, 1024, 1, 1, 1), "logits.conv3d.bias": (157,)}
    for name, shape in convs.items():
        shapes[f"{name}.conv3d.weight"] = shape
        shapes |= {f"{name}.bn.{part}": shape[:1] for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    return shapes


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights by the listing, in float32, with which the activations neither die nor explode."""
    generator = torch.Generator().manual_seed(0)
    weights: State = OrderedDict()
    for name, shape in listed_shapes().items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("conv3d.weight"):
            weights[name] = noise * (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(7)
        elif name.endswith(("running_var", "bn.weight")):
            weights[name] = (noise * 0.1).exp()
        else:
            weights[name] = noise * 0.1
    return weights


@pytest.fixture(scope="module")
def backbone(state: State, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = tmp_path_factory.mktemp("i3d") / "flow_charades.pt"
    torch.save(state, path)
    return load_backbone(NAME, path)


def random_flow(*shape: int, pixels: float = 15.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3)) * pixels


def test_the_tensors_are_those_of_the_published_checkpoint() -> None:
    own = {name: tuple(tensor.shape) for name, tensor in I3D().state_dict().items()}
    listed = listed_shapes()
    assert own == listed
    assert len(listed) == 344
    assert sum(name.endswith("num_batches_tracked") for name in listed) == 57
    norms = [module for module in I3D().modules() if isinstance(module, nn.BatchNorm3d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.01)}


def padded(line: NDArray[np.float64], kernel: int, stride: int) -> NDArray[np.float64]:
    """Pad one line by TensorFlow's own rule, which starts from the number of windows."""
    total = max((ceil(len(line) / stride) - 1) * stride + kernel - len(line), 0)
    longer = np.zeros(len(line) + total)
    longer[total // 2 : total // 2 + len(line)] = line
    return longer


@pytest.mark.parametrize(("kernel", "stride"), list(product((1, 2, 3, 7), (1, 2))))
def test_same_padding_of_every_size(kernel: int, stride: int) -> None:
    for size in range(1, 18):
        line = np.random.default_rng(size).normal(size=size)
        result = pad_same(torch.from_numpy(line), (kernel,), (stride,))
        np.testing.assert_array_equal(result.numpy(), padded(line, kernel, stride))
        windows = (len(result) - kernel) // stride + 1
        assert windows == ceil(size / stride)


@pytest.mark.parametrize("sizes", [(5, 4, 7), (2, 5, 6), (1, 1, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [((3, 3, 3), (2, 2, 2)), ((1, 3, 3), (1, 2, 2)), ((7, 7, 7), (2, 2, 2))])
def test_convolution_and_pool_of_padded_volumes(
    sizes: tuple[int, int, int], kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(4)
    volume, weight = rng.normal(size=sizes), rng.normal(size=kernel)
    longer = volume
    for axis in range(3):
        longer = np.apply_along_axis(padded, axis, longer, kernel[axis], stride[axis])
    out = [ceil(size / step) for size, step in zip(sizes, stride, strict=True)]
    sums, maxima = np.zeros(out), np.zeros(out)
    for place in np.ndindex(*out):
        cut = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, stride, kernel, strict=True))
        sums[place], maxima[place] = (longer[cut] * weight).sum(), longer[cut].max()
    x = torch.from_numpy(volume)[None, None]
    w = torch.from_numpy(weight)[None, None]
    np.testing.assert_allclose(functional.conv3d(pad_same(x, kernel, stride), w, stride=stride)[0, 0], sums, atol=1e-12)
    np.testing.assert_allclose(max_pool_same(x, kernel, stride)[0, 0], maxima, atol=0)


def plain_pad(x: Tensor, kernel: int, stride: int, axes: tuple[int, ...] = (2, 3, 4)) -> Tensor:
    """Pad axes with zeros, one after the other, by joining blocks."""
    for axis in axes:
        n = x.shape[axis]
        total = max(kernel - stride, 0) if n % stride == 0 else max(kernel - n % stride, 0)
        front, behind = total // 2, total - total // 2
        blocks = [x.new_zeros([*x.shape[:axis], length, *x.shape[axis + 1 :]]) for length in (front, behind)]
        x = torch.cat([blocks[0], x, blocks[1]], dim=axis)
    return x


def plain_unit(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.conv3d.weight"].double()
    x = functional.conv3d(plain_pad(x, weight.shape[-1], stride), weight, stride=stride)
    gain, bias, mean, var = (
        state[f"{name}.bn.{part}"].double()[:, None, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return ((x - mean) / (var + 1e-3).sqrt() * gain + bias).clamp_min(0)


def plain_spatial_pool(x: Tensor) -> Tensor:
    return functional.max_pool3d(plain_pad(x, 3, 2, (3, 4)), (1, 3, 3), (1, 2, 2))


def plain_block(state: State, block: str, x: Tensor) -> Tensor:
    name = f"Mixed_{block}"
    b1 = plain_unit(state, f"{name}.b1b", plain_unit(state, f"{name}.b1a", x))
    b2 = plain_unit(state, f"{name}.b2b", plain_unit(state, f"{name}.b2a", x))
    b3 = plain_unit(state, f"{name}.b3b", functional.max_pool3d(plain_pad(x, 3, 1), 3, 1))
    return torch.cat([plain_unit(state, f"{name}.b0", x), b1, b2, b3], dim=1)


def plain_maps(state: State, flow: Tensor) -> Tensor:
    """Turn flow in pixels `[B, N, H, W, 2]` into the maps of Mixed_5c, step by step in float64."""
    x = (flow.double().permute(0, 4, 1, 2, 3) / 20).clamp(-1, 1)
    x = plain_spatial_pool(plain_unit(state, "Conv3d_1a_7x7", x, 2))
    x = plain_unit(state, "Conv3d_2c_3x3", plain_unit(state, "Conv3d_2b_1x1", x))
    x = plain_block(state, "3c", plain_block(state, "3b", plain_spatial_pool(x)))
    x = functional.max_pool3d(plain_pad(x, 3, 2), 3, 2)
    for block in ("4b", "4c", "4d", "4e", "4f"):
        x = plain_block(state, block, x)
    x = functional.max_pool3d(plain_pad(x, 2, 2), 2, 2)
    return plain_block(state, "5c", plain_block(state, "5b", x))


@pytest.mark.parametrize("shape", [(2, 16, 64, 64, 2), (1, 11, 37, 50, 2), (1, 1, 33, 32, 2)])
def test_features_are_those_of_plain_convolutions_in_double_precision(
    shape: tuple[int, ...], state: State, backbone: Backbone
) -> None:
    flow = random_flow(*shape)  # a fifth of it lies beyond 20 pixels
    expected = plain_maps(state, flow).mean(dim=(3, 4)).transpose(1, 2).float()
    with torch.inference_mode():
        features = backbone.features(flow)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))


def test_every_number_of_fields_gives_a_feature_for_each_eight(backbone: Backbone) -> None:
    flow = random_flow(1, 64, 17, 16, 2)
    with torch.inference_mode():
        for count in range(1, 65):
            features = backbone.features(flow[:, :count])
            assert features.shape == (1, ceil(count / 8), 1024)
            assert torch.isfinite(features).all()
    assert (backbone.fields, backbone.whole, backbone.channels, backbone.size) == (8, True, 2, 224)


def test_flow_is_never_normalised_as_images_are(backbone: Backbone, state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pt")
    raw = load_backbone(NAME, tmp_path / "w.pt", normalise=False)
    assert (raw.mean, raw.std) == (backbone.mean, backbone.std) == ((0.0, 0.0), (20.0, 20.0))


@pytest.mark.parametrize("tag", ["cpu", "cuda:0"])
@pytest.mark.parametrize("counters", [True, False])
def test_old_checkpoints_load(
    tag: str, counters: bool, state: State, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = OrderedDict((k, v) for k, v in state.items() if counters or not k.endswith("num_batches_tracked"))
    assert len(kept) == (344 if counters else 287)
    path = tmp_path / "flow_charades.pt"
    with monkeypatch.context() as patch:  # the file of a machine with a GPU
        patch.setattr("torch.serialization.location_tag", lambda _: tag)
        torch.save(kept, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:2] != b"PK"
    if tag == "cuda:0" and not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)
    loaded = load_backbone(NAME, path)
    assert loaded.weights_sha256 == weights_sha256(state) == backbone.weights_sha256


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen"])
def test_a_checkpoint_of_another_network_is_refused_by_the_name_of_a_tensor(
    change: str, state: State, tmp_path: Path
) -> None:
    other = OrderedDict(state)
    if change == "missing":
        del other["Mixed_4d.b1b.bn.running_var"]
    elif change == "extra":
        other["Mixed_5c.b3a.conv3d.weight"] = torch.zeros(1)
    else:
        other["logits.conv3d.weight"] = torch.zeros(400, 1024, 1, 1, 1)
    tensor = {
        "missing": "Mixed_4d.b1b.bn.running_var",
        "extra": "Mixed_5c.b3a.conv3d.weight",
        "misshapen": "logits.conv3d.weight",
    }[change]
    torch.save(other, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=re.escape(tensor)) as caught:
        load_backbone(NAME, tmp_path / "w.pt")
    assert "\n" not in str(caught.value)


def test_the_published_weights_are_taken_from_where_they_were_fetched_to(
    state: State, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    from amfir.extract.weights import find_weights

    path = find_weights(NAME).path
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    assert load_backbone(NAME).weights_sha256 == backbone.weights_sha256


@pytest.mark.parametrize(("precision", "same"), [("fp32", True), ("bf16", False)])
def test_reduced_precision_changes_features_by_little(precision: str, same: bool, backbone: Backbone) -> None:
    coarse = functional.interpolate(random_flow(3, 2, 2, 4, 4, pixels=6.0), (16, 64, 64), mode="trilinear")
    flow = coarse.permute(0, 2, 3, 4, 1).contiguous()
    with torch.inference_mode():
        exact = backbone.features(flow)
        features = replace(backbone, precision=precision).features(flow)
    assert features.dtype == torch.float32
    assert torch.equal(features, exact) == same
    assert float(torch.cosine_similarity(features, exact, dim=-1).min()) >= 0.999
