"""The whole extraction on a GPU, against the CPU's; run with `pytest -m gpu`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from amfir.cache import Store
from amfir.cache.errors import MachineError
from amfir.extract.clips import Clip
from amfir.extract.config import ExtractConfig
from amfir.extract.job import extract
from amfir.extract.networks import load_networks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ON_CPU = ExtractConfig(frames=4, size=96, workers=2, device="cpu")
ON_GPU = replace(ON_CPU, device="cuda:0")


@pytest.fixture
def clips(tmp_path: Path, make_clip: Callable[..., Path]) -> list[Clip]:
    return [
        Clip(f"c{i}.mp4", make_clip(tmp_path / f"c{i}.mp4", num_frames=16, seed=i, width=160 + 32 * (i % 2)), "x")
        for i in range(6)
    ]


def features(cache: Path, stream: str) -> NDArray[np.float64]:
    return Store(cache).read(stream).features.astype(np.float64)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
@pytest.mark.parametrize("backend", ["opencv", "torch", "triton"])
def test_a_gpu_s_features_point_where_the_cpu_s_do(
    precision: str, backend: str, clips: list[Clip], tmp_path: Path
) -> None:
    assert extract(clips, tmp_path / "cpu", ON_CPU).done == len(clips)
    config = replace(ON_GPU, precision=precision, flow_backend=backend)
    assert extract(clips, tmp_path / "gpu", config).done == len(clips)
    for stream in ("rgb", "flow"):
        ours, theirs = features(tmp_path / "gpu", stream), features(tmp_path / "cpu", stream)
        cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
        assert cosine.min() > 0.999


def test_two_jobs_on_a_gpu_give_the_same_features(clips: list[Clip], tmp_path: Path) -> None:
    for name in ("one", "other"):
        extract(clips, tmp_path / name, ON_GPU)
    for stream in ("rgb", "flow"):
        assert np.array_equal(features(tmp_path / "one", stream), features(tmp_path / "other", stream))


def test_no_memory_names_the_batch_size() -> None:
    network = load_networks(replace(ON_GPU, streams=("rgb",), batch_size=1))["rgb"]
    free, _ = torch.cuda.mem_get_info(0)
    hog = torch.empty(free - (64 << 20), dtype=torch.uint8, device="cuda:0")
    try:
        with pytest.raises(MachineError, match="--batch-size"), torch.inference_mode():
            network.run(np.zeros((4096, 96, 96, 3), np.uint8))
    finally:
        del hog
        torch.cuda.empty_cache()
