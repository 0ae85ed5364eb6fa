"""Streams beyond one image a frame: flow on the networks' device, stacks, whole views, cuts, tokens."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from av.codec.hwaccel import HWAccel
from numpy.typing import NDArray

from amfir.cache import Store
from amfir.cache.errors import UserError
from amfir.extract.backbones import Backbone, i3d, load_backbone
from amfir.extract.batcher import OPEN_SHAPES, Batcher
from amfir.extract.clips import Clip
from amfir.extract.config import ExtractConfig
from amfir.extract.decode import Want, decode_clip
from amfir.extract.flow import FarnebackParameters, load_device_backend
from amfir.extract.flow.on_device import PairsToInput, area_weights, render, squash
from amfir.extract.flow.render import render as render_on_host
from amfir.extract.frames import fit
from amfir.extract.hwaccel import hardware
from amfir.extract.job import extract
from amfir.extract.networks import Network, choose_precision, find_devices, load_networks
from amfir.extract.rows import ClipState, Pending
from amfir.extract.sampling import Sampling, frame_positions
from amfir.extract.spec import agree, stream_spec
from amfir.extract.worker import Decoded, Task

from .extracting import network_of

MakeClip = Callable[..., Path]
SMALL = ExtractConfig(("flow",), frames=2, size=32, workers=1, device="cpu")
CPU = torch.device("cpu")


@pytest.fixture
def clips(tmp_path: Path, make_clip: MakeClip) -> list[Clip]:
    """Two clips of the same shape and one of another."""
    return [
        Clip(f"c{i}.mp4", make_clip(tmp_path / f"c{i}.mp4", num_frames=12, seed=i, width=width), "x")
        for i, width in enumerate((64, 64, 80))
    ]


def features(cache: Path, stream: str) -> NDArray[np.float32]:
    return Store(cache).read(stream).features.astype(np.float32)


def test_flow_on_the_networks_device_gives_what_opencv_gives(clips: list[Clip], tmp_path: Path) -> None:
    assert extract(clips, tmp_path / "opencv", SMALL).done == 3
    report = extract(clips, tmp_path / "torch", replace(SMALL, flow_backend="torch"))
    assert report.done == 3
    ours, theirs = features(tmp_path / "torch", "flow"), features(tmp_path / "opencv", "flow")
    assert np.array_equal(ours, theirs)  # hardly a code differs, and none here
    spec = Store(tmp_path / "torch").spec("flow")
    flow = spec.settings["flow"]
    assert isinstance(flow, dict)
    assert flow["backend"] == "torch"


def test_backends_that_agree_share_a_stream_unless_strictness_is_asked_for(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    extract(clips[:1], cache, SMALL)
    before = Store(cache).spec("flow")
    with pytest.raises(UserError, match=r'flow\.backend: "opencv" in the cache, "torch" asked'):
        extract(clips, cache, replace(SMALL, flow_backend="torch", strict=True))
    assert extract(clips, cache, replace(SMALL, flow_backend="torch")).done == 2
    assert Store(cache).spec("flow") == before
    other = replace(SMALL, flow_backend="torch", flow_scale=3.0)
    with pytest.raises(UserError, match=r"flow\.scale"):
        extract(clips, cache, other)


def test_backends_agree_by_name_and_in_all_else() -> None:
    spec = stream_spec("flow", load_networks(SMALL)["flow"], SMALL)

    def changed(**change: Any) -> Any:
        flow = spec.settings["flow"]
        assert isinstance(flow, dict)
        return replace(spec, settings={**spec.settings, "flow": {**flow, **change}})

    assert agree(spec, changed(backend="triton", version="triton 9"))
    assert not agree(spec, changed(backend="opencv-cuda", version="opencv 5 cuda"))
    assert not agree(spec, changed(backend="torch", winsize=21))
    assert not agree(spec, replace(spec, frames=3))


@pytest.mark.parametrize("how", ["crop", "squash"])
def test_the_input_made_on_a_device_is_the_host_s(how: Any) -> None:
    generator = np.random.default_rng(0)
    flow = (generator.standard_normal((2, 40, 57, 2)) * 6).astype(np.float32)
    rendered = render_on_host(flow)
    assert np.array_equal(render(torch.from_numpy(flow), 255 / 40).numpy(), rendered)
    if how == "squash":
        assert np.array_equal(squash(torch.from_numpy(rendered), 32).numpy(), fit(rendered, 32, "squash"))
        assert np.allclose(squash(torch.from_numpy(flow), 32).numpy(), fit(flow, 32, "squash"), atol=1e-5)


def test_area_weights_are_the_overlaps() -> None:
    """5 pixels on 2: the middle one lies half in each."""
    assert np.allclose(area_weights(5, 2), [[0.4, 0.4, 0.2, 0, 0], [0, 0, 0.2, 0.4, 0.4]])


def test_a_short_side_above_the_size_cuts_the_centre_out(clips: list[Clip], tmp_path: Path) -> None:
    """As the papers do: short side 256, centre 224."""
    config = replace(SMALL, streams=("rgb",), short_side=40, fit="crop")
    assert extract(clips, tmp_path / "cache", config).done == 3
    sampled = decode_clip(clips[2].path, Sampling(2), {"rgb": Want(40)}, clip_id="x")
    images = sampled.arrays["rgb"][0]
    top, left = (images.shape[1] - 32) // 2, (images.shape[2] - 32) // 2
    backbone = load_networks(config)["rgb"].backbone
    with torch.inference_mode():
        cut = torch.from_numpy(images[:, top : top + 32, left : left + 32].copy())
        expected = backbone.features(cut)[:, 0].numpy()
    assert np.allclose(features(tmp_path / "cache", "rgb")[2, 0], expected, atol=1e-2)
    spec = Store(tmp_path / "cache").spec("rgb")
    assert spec.settings["short_side"] == 40
    with pytest.raises(UserError, match="--short-side"):
        load_networks(replace(config, short_side=20))


def test_i3d_takes_eight_fields_a_feature_in_one_pass(clips: list[Clip], tmp_path: Path) -> None:
    weights = i3d_weights(tmp_path)
    config = ExtractConfig(
        ("flow",), flow=i3d.NAME, flow_weights=weights, frames=2, size=32, workers=1, device="cpu", fit="crop"
    )
    assert extract(clips, tmp_path / "opencv", config).done == 3
    sampled = decode_clip(clips[2].path, Sampling(16), {"flow": Want(32, pairs=True)}, clip_id="x")
    pairs = sampled.arrays["flow"][0]
    flow = np.stack([cv2.calcOpticalFlowFarneback(*pair, None, 0.5, 3, 15, 3, 5, 1.2, 0) for pair in pairs])  # type: ignore[call-overload]
    fields = fit(flow.astype(np.float32), 32, "crop")
    backbone = load_backbone(i3d.NAME, weights)
    with torch.inference_mode():
        expected = backbone.features(torch.from_numpy(fields)[None])[0].numpy()
    found = features(tmp_path / "opencv", "flow")
    assert found.shape == (3, 1, 2, 1024)
    assert np.allclose(found[2, 0], expected, rtol=2e-3, atol=1e-3)
    assert np.abs(expected).max() > 0
    network = load_networks(replace(config, batch_size=64))["flow"]
    assert network.batch_size == 4  # 64 fields are 4 clips of 2 x 8
    times = Store(tmp_path / "opencv").read("flow").times
    positions = frame_positions(12, Sampling(16), "x").reshape(2, 8)
    assert np.allclose(times[2, 0], positions.mean(axis=1) / 25)
    assert extract(clips, tmp_path / "torch", replace(config, flow_backend="torch")).done == 3
    assert np.allclose(features(tmp_path / "torch", "flow"), found, rtol=1e-2, atol=1e-3)


def i3d_weights(folder: Path) -> Path:
    """Save an I3D with random weights whose activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(0)
    network = i3d.I3D()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            fan = module.weight[0].numel()
            module.weight.data = torch.randn(module.weight.shape, generator=generator) * (2 / fan) ** 0.5
    path = folder / "i3d.pt"
    torch.save(network.state_dict(), path)
    return path


def test_tokens_are_cached_as_such(clips: list[Clip], tmp_path: Path) -> None:
    config = replace(SMALL, streams=("rgb",), size=64, tokens=16)
    assert extract(clips[:1], tmp_path / "cache", config).done == 1
    assert features(tmp_path / "cache", "rgb").shape == (1, 1, 2, 16, 1280)
    assert Store(tmp_path / "cache").spec("rgb").tokens == 16


def test_i3d_takes_no_frames_and_says_so_before_its_weights_are_looked_for() -> None:
    with pytest.raises(UserError, match="--flow"):
        load_networks(ExtractConfig(("rgb",), rgb=i3d.NAME, device="cpu"))


def test_the_batcher_keeps_shapes_apart_and_few_of_them_open() -> None:
    batcher: Batcher[int] = Batcher(2)

    def add(width: int, slot: int) -> list[tuple[tuple[int, ...], list[int]]]:
        batches = batcher.add(np.ones((1, 2, width), np.uint8), [slot])
        return [(batch.items.shape, batch.slots) for batch in batches]

    assert [add(3, 0), add(4, 1), add(3, 2)] == [[], [], [((2, 2, 3), [0, 2])]]
    for width in range(5, 4 + OPEN_SHAPES):
        assert add(width, width) == []
    assert add(99, 99) == [((2, 2, 4), [1])]
    assert len(list(batcher.rest())) == OPEN_SHAPES


def test_devices_are_named_once_and_are_of_one_kind() -> None:
    for names in ("cpu,cpu", "cuda:99", "cpu,"):
        with pytest.raises(UserError):
            find_devices(names)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_to_be_so() -> None:
    with pytest.raises(UserError, match=r"torch \S+ sees no GPU; --device"):
        find_devices("cuda:7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": "head:6379"}, "--engine ray"),
        ({"batch_size": 100_000}, "--batch-size"),
        ({"tokens": 7}, "0, 16 or 49"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"flow_backend": "tvl1"}, "unknown flow backend"),
        ({"engine": "slurm"}, "unknown engine"),
        ({"hwaccel": "vaapi"}, "unknown hardware decoder"),
        ({"short_side": 0}, "short_side is 0"),
    ],
)
def test_settings_that_cannot_act_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExtractConfig(**change)


def test_half_precision_is_for_gpus() -> None:
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"


class Overflowing(torch.nn.Module):
    """A network whose features leave the range of float16."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.weight * torch.full((len(images), 2), 1e6)


def test_features_that_are_not_finite_end_the_job_in_one_line(clips: list[Clip]) -> None:
    backbone = Backbone("wild", Overflowing(), 2, 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "0" * 64, ())
    with pytest.raises(UserError, match="'wild' gives values that are no numbers"), torch.inference_mode():
        network_of(backbone, ExtractConfig(size=16)).run(np.zeros((4, 16, 16, 3), np.uint8))


class Unit(torch.nn.Module):
    """A network with features of unit length: no numbers at all for a black image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean(dim=(2, 3)) * self.weight
        unit: torch.Tensor = means / means.norm(dim=1, keepdim=True)
        return unit


def test_what_a_network_makes_of_the_padding_does_not_matter() -> None:
    backbone = Backbone("unit", Unit(), 3, 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "0" * 64, ())
    network = network_of(backbone, ExtractConfig(size=16))
    items = np.zeros((4, 16, 16, 3), np.uint8)
    items[:2] = 200
    with torch.inference_mode():
        assert network.run(items, 2).shape == (2, 1, 3)
        with pytest.raises(UserError, match="no numbers"):
            network.run(items)


def test_a_decoder_without_hardware_falls_back_to_software(clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the probe had found a device, and then it is full; where there is one, it decodes."""
    from amfir.extract import container, decode

    expected = decode_clip(clips[0].path, Sampling(4), {"rgb": Want(32)}, clip_id="x").arrays["rgb"]
    for module in (container, decode):
        monkeypatch.setattr(
            module, "hardware", lambda name: HWAccel("cuda", allow_software_fallback=True) if name == "cuda" else None
        )
    found = decode_clip(clips[0].path, Sampling(4), {"rgb": Want(32)}, clip_id="x", hwaccel="cuda").arrays["rgb"]
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_hardware_that_is_not_there_is_none() -> None:
    assert hardware("none") is None
    if not torch.cuda.is_available():
        assert hardware("cuda") is None


class Counting(torch.nn.Module):
    """A network that notes the size of its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        return images.mean(dim=(2, 3))


def network_with(module: torch.nn.Module, **change: Any) -> Network:
    fields = {"fields": 1, "whole": False} | {name: change.pop(name) for name in ("fields", "whole") if name in change}
    backbone = Backbone("stub", module, 3, 16, (0.0,) * 3, (1.0,) * 3, "0" * 64, (), **fields)
    return replace(network_of(backbone, ExtractConfig(size=16), "flow"), **change)


def test_a_batch_that_is_not_full_is_padded_behind_the_flow() -> None:
    """Features depend on the size of the batch in their last bits, so that it is always the same."""
    flow = load_device_backend("torch", FarnebackParameters(), CPU)
    module = Counting()
    network = network_with(module, from_pairs=PairsToInput(flow, size=16, squash=True, scale=6.0))
    pairs = np.random.default_rng(0).integers(0, 256, (4, 2, 16, 20), dtype=np.uint8)
    with torch.inference_mode():
        some, all_of_them = network.run(pairs, 3), network.run(pairs)
    assert module.sizes == [4, 4]
    assert np.array_equal(some, all_of_them[:3])


@pytest.mark.parametrize(
    ("fields", "whole", "shape"), [(1, False, (6, 5)), (4, False, (6, 4, 5)), (4, True, (2, 12, 5))]
)
def test_a_product_is_divided_into_what_one_pass_takes(fields: int, whole: bool, shape: tuple[int, ...]) -> None:
    """Two views of three features."""
    network = network_with(Counting(), fields=fields, whole=whole)
    product = np.arange(2 * 3 * fields * 5, dtype=np.uint8).reshape(2, 3 * fields, 5)
    items = network.items(product, 3)
    assert items.shape == shape
    assert np.array_equal(items.ravel(), product.ravel())


@pytest.mark.parametrize("k", [1, 3])
def test_items_fill_the_features_of_their_views(k: int) -> None:
    """Six features: each by itself, or three at a time."""
    features = np.zeros((2, 3, 4), np.float16)
    expected = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    decoded = Decoded(Task(Clip("c", "c", "x"), ("rgb",)), (1, 1))
    pending = Pending(decoded, "rgb", features, 6 // k, ClipState(1, failed=False))
    for item in reversed(range(6 // k)):
        ready = pending.fill(item, expected.reshape(-1, k, 4)[item])
        assert ready == (item == 0)
    assert np.array_equal(features, expected)
