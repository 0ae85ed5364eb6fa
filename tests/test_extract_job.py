"""The extraction job against a plain sequential reference, and all that may go wrong in it."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from amfir.cache import Failure, Store, StreamWriter
from amfir.cache.errors import MachineError, UserError
from amfir.extract.backbones import Backbone, load_backbone
from amfir.extract.backbones.vision import torchvision
from amfir.extract.batcher import Batcher
from amfir.extract.clips import Clip
from amfir.extract.config import ExtractConfig
from amfir.extract.decode import Want, decode_clip
from amfir.extract.flow import HOST_BACKENDS, FarnebackParameters
from amfir.extract.flow.render import render
from amfir.extract.frames import fit
from amfir.extract.job import extract
from amfir.extract.line import run_line
from amfir.extract.networks import find_devices
from amfir.extract.plan import make_plan
from amfir.extract.report import Progress, Tally
from amfir.extract.sampling import Sampling
from amfir.extract.spec import stream_spec
from amfir.extract.stages import stage_seconds
from amfir.extract.worker import Decoded, decode_task

from .extracting import network_of, settings_for

MakeClip = Callable[..., Path]
SMALL = ExtractConfig(frames=3, size=32, workers=1, device="cpu")
TINY = settings_for(ExtractConfig(("rgb",), frames=2), rgb=16)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("efficientnet-lite0")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute as a lane of a job does: features differ in their last bits with the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def clips(tmp_path: Path, make_clip: MakeClip) -> list[Clip]:
    folder = tmp_path / "videos"
    folder.mkdir()
    return [
        Clip(f"c{i}.mp4", make_clip(folder / f"c{i}.mp4", num_frames=5 + i, seed=i, width=64 + 2 * i), f"class {i % 2}")
        for i in range(5)
    ]


def reference(clip: Clip, config: ExtractConfig, backbone: Backbone, batch_size: int) -> dict[str, NDArray[np.float16]]:
    """Extract a clip step by step, every image alone at the end of a batch of noise."""
    side = config.size or backbone.size
    sampling = Sampling(config.frames, config.views, config.seed)
    sampled = decode_clip(clip.path, sampling, {"rgb": Want(side), "flow": Want(side, pairs=True)}, clip_id=clip.id)
    pairs = sampled.arrays["flow"].reshape(-1, *sampled.arrays["flow"].shape[2:])
    flow = HOST_BACKENDS["opencv"](config.flow_parameters)(pairs)
    rendered = render(flow, config.flow_scale)
    images = {"rgb": fit(sampled.arrays["rgb"], side, config.fit), "flow": fit(rendered, side, config.fit)}
    noise = np.random.default_rng(7).integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)
    features: dict[str, NDArray[np.float16]] = {}
    for stream, array in images.items():
        rows = []
        for image in array.reshape(-1, side, side, 3):
            noise[-1] = image
            with one_thread():
                rows.append(backbone.features(torch.from_numpy(noise))[-1].half().numpy())
        features[stream] = np.stack(rows).reshape(config.views, config.frames, -1)
    return features


def bits(cache: Path, stream: str) -> dict[str, tuple[bytes, bytes, str]]:
    data = Store(cache).read(stream)
    return {
        clip_id: (data.features[i].tobytes(), data.times[i].tobytes(), data.labels[i])
        for i, clip_id in enumerate(data.clip_ids)
    }


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        ExtractConfig(frames=2, views=3, size=32, batch_size=5, workers=2, device="cpu", fit="crop", seed=3),
    ],
    ids=["default", "three views"],
)
def test_features_equal_the_sequential_reference_bit_by_bit(
    config: ExtractConfig, clips: list[Clip], backbone: Backbone, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    threads = torch.get_num_threads()
    report = extract(clips, tmp_path / "cache", config, seen.append)
    assert (report.clips, report.done, report.skipped, report.failed, report.changed) == (5, 5, 0, 0, 0)
    assert torch.get_num_threads() == threads
    assert report.clips_per_second == 5 / report.seconds
    assert (seen[-1].total, seen[-1].done, seen[-1].failed) == (5, 5, 0)
    for stream in ("rgb", "flow"):
        data = Store(tmp_path / "cache").read(stream, stream_spec(stream, network_of(backbone, config, stream), config))
        assert list(data.clip_ids) == [clip.id for clip in clips]
        for i, clip in enumerate(clips):
            expected = reference(clip, config, backbone, config.batch_size or 4)[stream]
            assert data.features[i].tobytes() == expected.tobytes()
            assert data.labels[i] == clip.label
            status = Path(clip.path).stat()
            assert data.index.sources[i].tolist() == [status.st_size, status.st_mtime_ns]


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_an_image_has_the_same_features_wherever_it_stands_in_the_batch(batch_size: int, backbone: Backbone) -> None:
    network = network_of(backbone, ExtractConfig(size=96, batch_size=batch_size))
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    results = set()
    with one_thread():
        for place in range(batch_size):
            for levels in (1, 256):
                batch = generator.integers(0, levels, (batch_size, 96, 96, 3), dtype=np.uint8)
                batch[place] = image
                results.add(network.run(batch)[place].tobytes())
    assert len(results) == 1


def test_the_batcher_packs_across_clips_and_pads_the_rest_with_zeros() -> None:
    batcher: Batcher[str] = Batcher(3)
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    first = [*batcher.add(images[:2], ["a0", "a1"]), *batcher.add(images[2:], ["b0", "b1", "b2"])]
    rest = list(batcher.rest())
    assert [batch.slots for batch in first + rest] == [["a0", "a1", "b0"], ["b1", "b2"]]
    assert [batch.items[:, 0, 0, 0].tolist() for batch in first + rest] == [[1, 2, 3], [4, 5, 0]]
    assert list(batcher.rest()) == []


def test_a_second_run_skips_everything_and_a_missing_stream_is_added(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = extract(clips[:3], cache, ExtractConfig(("rgb",), frames=3, size=32, workers=1, device="cpu"))
    assert (first.done, Store(cache).streams()) == (3, ["rgb"])
    before = {path: path.read_bytes() for path in (cache / "rgb").rglob("*") if path.is_file()}
    second = extract(clips[:3], cache, SMALL)
    assert (second.done, second.skipped) == (3, 0)
    assert {path: path.read_bytes() for path in (cache / "rgb").rglob("*") if path.is_file()} == before
    assert list(Store(cache).read("flow").clip_ids) == [clip.id for clip in clips[:3]]
    third = extract(clips[:3], cache, SMALL)
    assert (third.done, third.skipped, third.clips_per_second) == (0, 3, 0)


def test_broken_clips_are_listed_and_the_others_extracted(
    clips: list[Clip], make_clip: MakeClip, tmp_path: Path
) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    os.mkfifo(tmp_path / "pipe.mp4")
    make_clip(tmp_path / "one.mp4", num_frames=1)
    odd = [Clip(name, tmp_path / name, "x") for name in ("text.mp4", "pipe.mp4", "absent.mp4", "one.mp4")]
    cache = tmp_path / "cache"
    report = extract([odd[0], clips[0], *odd[1:], clips[1]], cache, SMALL)
    assert (report.clips, report.done, report.failed) == (6, 2, 4)
    reasons = [(failure.clip_id, failure.reason) for failure in report.failures]
    assert reasons == [
        ("absent.mp4", "missing"),
        ("one.mp4", "single-frame"),
        ("pipe.mp4", "not-a-file"),
        ("text.mp4", "unknown-format"),
    ]
    assert list(Store(cache).read("rgb").clip_ids) == ["c0.mp4", "c1.mp4", "one.mp4"]
    assert list(Store(cache).read("flow").clip_ids) == ["c0.mp4", "c1.mp4"]

    again = extract([*odd, *clips[:2]], cache, SMALL)
    assert (again.done, again.skipped, again.failed) == (0, 2, 4)
    assert [(failure.clip_id, failure.reason) for failure in again.failures] == reasons
    for name in ("text.mp4", "absent.mp4"):
        make_clip(tmp_path / name)
    retried = extract([*odd, *clips[:2]], cache, replace(SMALL, retry_failed=True))
    assert (retried.done, retried.skipped, retried.failed) == (2, 2, 2)


def test_a_file_that_changed_since_is_reported(clips: list[Clip], tmp_path: Path) -> None:
    cache, config = tmp_path / "cache", ExtractConfig(("rgb",), frames=2, size=32, workers=1, device="cpu")
    extract(clips[:2], cache, config)
    before = bits(cache, "rgb")
    os.utime(clips[0].path, ns=(1, 1))
    Path(clips[1].path).unlink()
    report = extract(clips[:2], cache, config)
    assert (report.skipped, report.changed) == (2, 1)
    assert bits(cache, "rgb") == before


def test_a_damaged_segment_is_made_anew(clips: list[Clip], tmp_path: Path) -> None:
    cache, config = tmp_path / "cache", ExtractConfig(("rgb",), frames=2, size=32, workers=1, device="cpu")
    extract(clips[:2], cache, config)
    before = bits(cache, "rgb")
    (segment,) = (cache / "rgb" / "segments").glob("*.h5")
    segment.write_bytes(segment.read_bytes()[:-100])
    assert extract(clips[:2], cache, config).done == 2
    assert bits(cache, "rgb") == before


def test_another_spec_is_refused_and_no_worker_is_left(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    extract(clips[:1], cache, SMALL)
    for config in (ExtractConfig(frames=4, size=32, workers=1), ExtractConfig(frames=3, size=64, workers=1)):
        for listed in (clips[:1], clips[:2]):
            with pytest.raises(UserError, match="in the cache"):
                extract(listed, cache, config)
    assert multiprocessing.active_children() == []


def test_a_clip_listed_twice_and_a_foreign_directory_are_refused(clips: list[Clip], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"c0\.mp4.*twice"):
        extract([clips[0], clips[1], clips[0]], tmp_path / "cache", SMALL)
    with pytest.raises(UserError, match="holds other files and no cache"):
        extract(clips, tmp_path / "videos", SMALL)


def test_a_size_that_the_backbone_cannot_take_is_refused(clips: list[Clip], tmp_path: Path) -> None:
    weights = tmp_path / "vit.pth"
    torch.save(torchvision().models.vit_b_32(weights=None).state_dict(), weights)
    config = ExtractConfig(("rgb",), rgb="vit_b_32", rgb_weights=weights, size=64, workers=1)
    with pytest.raises(UserError, match="takes no images of 64 pixels"):
        extract(clips, tmp_path / "cache", config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"streams": ()}, "streams"),
        ({"streams": ("rgb", "rgb")}, "once"),
        ({"streams": ("depth",)}, "depth"),
        ({"fit": "stretch"}, "fit"),
        ({"flow_backend": "cuda"}, "flow backend"),
        ({"frames": 0}, "frames is 0"),
        ({"views": -1}, "views is -1"),
        ({"size": 0}, "size is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": 0}, "workers is 0"),
        ({"timeout_seconds": 0.0}, "timeout_seconds is 0"),
        ({"flow_scale": float("nan")}, "flow_scale is nan"),
    ],
)
def test_settings_that_no_job_can_use_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExtractConfig(**change)


def test_a_device_that_does_not_exist_is_refused() -> None:
    assert [device.type for device in find_devices("cpu")] == ["cpu"]
    with pytest.raises(UserError, match="cuda:99"):
        find_devices("cuda:99")


def test_the_spec_holds_what_changes_features_and_nothing_else(backbone: Backbone) -> None:
    def fingerprint(stream: str = "flow", **change: Any) -> str:
        config = replace(SMALL, **change)
        return stream_spec(stream, network_of(backbone, config, stream), config).fingerprint

    base = fingerprint()
    same: list[dict[str, Any]] = [{"workers": 2}, {"seed": 5}, {"timeout_seconds": 9.0}, {"streams": ("flow",)}]
    assert {fingerprint(**change) for change in [*same, {"batch_size": 4}]} == {base}
    other: list[dict[str, Any]] = [{"frames": 4}, {"views": 2}, {"size": 64}, {"fit": "crop"}, {"batch_size": 8}]
    for change in [*other, {"flow_scale": 2.0}, {"flow_parameters": FarnebackParameters(winsize=21)}]:
        assert fingerprint(**change) != base
    assert fingerprint(views=2) != fingerprint(views=2, seed=1)
    assert fingerprint("rgb") == fingerprint("rgb", flow_scale=2.0)


def kill_workers() -> None:
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)


def test_a_worker_killed_once_costs_nothing_but_time(clips: list[Clip], tmp_path: Path) -> None:
    extract(clips, tmp_path / "undisturbed", SMALL)
    killed = False

    def kill_once(progress: Progress) -> None:
        nonlocal killed
        if not killed:
            killed = True
            kill_workers()

    report = extract(clips, tmp_path / "cache", SMALL, kill_once)
    assert killed
    assert (report.done, report.failed) == (5, 0)
    for stream in ("rgb", "flow"):
        assert bits(tmp_path / "cache", stream) == bits(tmp_path / "undisturbed", stream)


def test_stage_seconds_names_every_stage(clips: list[Clip], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    seconds = stage_seconds([Clip("text.mp4", tmp_path / "text.mp4", "x"), *clips], SMALL)
    stages = {"decode", "prepare-rgb", "prepare-flow", "network-rgb", "network-flow", "write"}
    assert set(seconds) == stages
    assert all(value > 0 for value in seconds.values())


def test_an_old_failure_of_one_stream_leaves_the_other(backbone: Backbone, clips: list[Clip], tmp_path: Path) -> None:
    """A clip whose flow failed earlier still gets its RGB row, and counts as failed."""
    cache = tmp_path / "cache"
    with StreamWriter(cache, stream_spec("flow", network_of(backbone, SMALL, "flow"), SMALL)) as writer:
        writer.add_failure(Failure(clips[0].id, clips[0].label, "timeout", "too long", 1, 1))
    report = extract(clips[:2], cache, SMALL)
    assert (report.done, report.failed, [failure.reason for failure in report.failures]) == (1, 1, ["timeout"])
    assert list(Store(cache).read("rgb").clip_ids) == ["c0.mp4", "c1.mp4"]
    assert list(Store(cache).read("flow").clip_ids) == ["c1.mp4"]


class Hungry(torch.nn.Module):
    """A network that wants more memory than there is, from its third batch on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.batches += 1
        return torch.zeros(len(images), 2) if self.batches < 3 else torch.empty(1 << 50)


def test_no_memory_for_a_batch_is_one_line_and_what_was_finished_is_kept(clips: list[Clip], tmp_path: Path) -> None:
    backbone = Backbone("hungry", Hungry(), 2, 16, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "0" * 64, ())
    plan = make_plan(clips, tmp_path / "cache", ("rgb",), retry_failed=False)
    tally = Tally(plan, 0.0)
    config = ExtractConfig(("rgb",), frames=2, size=16, batch_size=2)
    network = network_of(backbone, config)
    writer = StreamWriter(tmp_path / "cache", stream_spec("rgb", network, config))
    results = (decode_task(task, TINY) for task in [*plan.tasks()] * 9)
    with pytest.raises(MachineError, match=r"--batch-size") as caught:
        run_line(results, [{"rgb": network}], {"rgb": writer}, tally, lambda _: None)
    assert "\n" not in str(caught.value)
    assert sorted(Store(tmp_path / "cache").done("rgb")) == ["c0.mp4", "c1.mp4"]


def test_a_partial_batch_is_run_when_nothing_comes(clips: list[Clip], backbone: Backbone, tmp_path: Path) -> None:
    plan = make_plan(clips[:1], tmp_path / "cache", ("rgb",), retry_failed=False)
    tally = Tally(plan, 0.0)
    config = ExtractConfig(("rgb",), frames=2, size=32, batch_size=64)
    network = network_of(backbone, config)
    (task,) = plan.tasks()

    def one_clip_then_nothing() -> Iterator[Decoded | None]:
        yield decode_task(task, settings_for(config, rgb=32))
        while not tally.progress().done:
            yield None

    writers = {"rgb": StreamWriter(tmp_path / "cache", stream_spec("rgb", network, config))}
    run_line(one_clip_then_nothing(), [{"rgb": network}], writers, tally, lambda _: None)
    assert list(Store(tmp_path / "cache").done("rgb")) == ["c0.mp4"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written_is_refused_before_the_work(clips: list[Clip], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    extract(clips[:1], cache, SMALL)
    cache.chmod(0o555)
    try:
        assert extract(clips[:1], cache, SMALL).skipped == 1
        with pytest.raises(UserError, match="cannot be written"):
            extract(clips, cache, SMALL)
    finally:
        cache.chmod(0o755)


def test_a_clip_that_fails_again_otherwise_is_counted_once(
    backbone: Backbone, clips: list[Clip], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with StreamWriter(cache, stream_spec("flow", network_of(backbone, SMALL, "flow"), SMALL)) as writer:
        writer.add_failure(Failure(clips[0].id, clips[0].label, "timeout", "too long", 1, 1))
    Path(clips[0].path).write_text("no video any more")
    report = extract(clips[:2], cache, SMALL)
    assert (report.done, report.failed) == (1, 1)
    assert sorted(failure.reason for failure in report.failures) == ["timeout", "unknown-format"]
