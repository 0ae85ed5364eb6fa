"""From a cache to tensors: which clips, which order, and what is refused."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from amfir.cache import Failure, Row, Store, StreamSpec, StreamWriter, pack
from amfir.cache.errors import UserError
from amfir.meta.projection import Projection, fit_projection
from amfir.pipeline.features import (
    apply_projections,
    fit_projections,
    load_features,
    project_features,
    require_disjoint,
    require_specs,
)
from amfir.pipeline.splits import ClassSplit

from .plantedcache import plant, planted_row, planted_spec


@pytest.fixture
def always_warned() -> Iterator[None]:
    """Torch warns of read-only memory once a process, which another test may have used up."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def test_rgb_comes_first_and_the_order_asked_for_is_kept(tmp_path: Path) -> None:
    root = plant(tmp_path / "cache", classes=2, clips=1)
    assert list(load_features(root).features) == ["rgb", "flow"]
    assert list(load_features(root, ("flow", "rgb")).features) == ["flow", "rgb"]
    assert list(load_features(root, ("flow",)).features) == ["flow"]


def test_every_clip_keeps_its_features_and_its_class(tmp_path: Path) -> None:
    data = load_features(plant(tmp_path / "cache", classes=11, clips=2))
    assert data.class_names == ["class 0", "class 1", "class 10", *(f"class {number}" for number in range(2, 10))]
    assert data.clip_ids == sorted(data.clip_ids)
    assert len(data.clip_ids) == 22
    for row, clip_id in enumerate(data.clip_ids):
        name, _, file = clip_id.partition("/")
        assert data.class_names[int(data.labels[row])] == name
        for modality, values in data.features.items():
            truth = planted_row(planted_spec(modality), name, int(Path(file).stem)).features
            np.testing.assert_array_equal(values[row].numpy(), truth)
    assert data.labels.dtype == torch.int64
    assert data.ids(["class 2", "class 0"]) == [3, 0]
    assert {name: spec.dim for name, spec in data.specs.items()} == {"rgb": 12, "flow": 8}


@pytest.mark.parametrize("packed", [False, True])
def test_only_clips_of_all_streams_are_taken(tmp_path: Path, packed: bool) -> None:
    lacking = {"rgb": ["class 0/000.mp4"], "flow": ["class 1/001.mp4", "class 2/000.mp4", "class 2/001.mp4"]}
    root = plant(tmp_path / "cache", classes=3, clips=2, without=lacking)
    if packed:
        pack(root)
    data = load_features(root)
    assert data.clip_ids == ["class 0/001.mp4", "class 1/000.mp4"]
    assert data.class_names == ["class 0", "class 1"]
    assert data.labels.tolist() == [0, 1]
    for modality, values in data.features.items():
        spec = planted_spec(modality)
        truth = [planted_row(spec, "class 0", 1).features, planted_row(spec, "class 1", 0).features]
        np.testing.assert_array_equal(values.numpy(), np.stack(truth))
    assert len(load_features(root, ("rgb",)).clip_ids) == 5


@pytest.mark.parametrize("packed", [False, True])
def test_streams_with_other_numbers_of_views_are_cut_to_the_views_of_both(tmp_path: Path, packed: bool) -> None:
    root = plant(tmp_path / "cache", classes=2, clips=2, views={"rgb": 2, "flow": 3})
    if packed:
        pack(root)
    data = load_features(root)
    assert data.features["rgb"].shape == (4, 2, 3, 12)
    assert data.features["flow"].shape == (4, 2, 3, 8)
    truth = planted_row(planted_spec("flow", views=3), "class 1", 1).features[:2]
    np.testing.assert_array_equal(data.features["flow"][3].numpy(), truth)


def plant_tokens(root: Path, clips: Sequence[int], views: int = 2) -> StreamSpec:
    """Add a flow stream with 5 tokens a frame to a cache."""
    spec = StreamSpec("flow", frames=3, views=views, dim=4, settings={}, tokens=5)
    with StreamWriter(root, spec) as writer:
        for clip in clips:
            features = np.random.default_rng(clip).normal(size=spec.row_shape).astype(np.float16)
            writer.add(Row(f"class 0/{clip:03d}.mp4", "class 0", features, np.zeros((views, 3)), 1, 1))
    return spec


@pytest.mark.parametrize("packed", [False, True])
def test_spatial_tokens_are_averaged(tmp_path: Path, packed: bool) -> None:
    root = plant(tmp_path / "cache", streams=("rgb",), classes=1, clips=3)
    spec = plant_tokens(root, (0, 2))
    values = {f"class 0/{clip:03d}.mp4": np.random.default_rng(clip).normal(size=spec.row_shape) for clip in (0, 2)}
    if packed:
        pack(root)
    data = load_features(root)
    assert data.clip_ids == list(values)
    assert (data.features["flow"].shape, data.features["flow"].dtype) == ((2, 1, 3, 4), torch.float16)
    truth = np.zeros((2, 3, 4))
    for clip, features in enumerate(values.values()):
        for token in range(5):
            truth[clip] += features.astype(np.float16)[0, :, token].astype(np.float64) / 5
    np.testing.assert_allclose(data.features["flow"][:, 0].numpy(), truth, rtol=2**-11, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_spatial_tokens_are_kept_where_they_are_wanted(tmp_path: Path, packed: bool) -> None:
    root = plant(tmp_path / "cache", streams=("rgb",), classes=1, clips=3)
    spec = plant_tokens(root, (0, 2))
    if packed:
        pack(root)
    data = load_features(root, tokens=True)
    assert data.clip_ids == ["class 0/000.mp4", "class 0/002.mp4"]
    assert data.features["rgb"].shape == (2, 1, 3, 12)
    truth = np.stack([np.random.default_rng(clip).normal(size=spec.row_shape)[:1] for clip in (0, 2)])
    np.testing.assert_array_equal(data.features["flow"].numpy(), truth.astype(np.float16))
    assert torch.equal(load_features(root, tokens=("rgb", "flow")).features["flow"], data.features["flow"])
    mean = load_features(root).features["flow"]
    assert torch.equal(load_features(root, tokens=("rgb",)).features["flow"], mean)
    torch.testing.assert_close(data.features["flow"].float().mean(3).half(), mean)


@pytest.mark.usefixtures("always_warned")
def test_tokens_of_a_packed_cache_stay_memory_mapped(tmp_path: Path) -> None:
    root = plant(tmp_path / "cache", streams=("rgb",), classes=1, clips=3)
    plant_tokens(root, (0, 1, 2), views=1)
    pack(root)
    data = load_features(root, tokens=True)
    assert data.features["flow"].shape == (3, 1, 3, 5, 4)
    assert str(Store(root).read("flow").path) in Path("/proc/self/maps").read_text()


@pytest.mark.usefixtures("always_warned")
def test_a_packed_cache_stays_memory_mapped_and_holds_the_same(tmp_path: Path) -> None:
    root = plant(tmp_path / "cache", classes=3, clips=2)
    before = load_features(root)
    pack(root)
    after = load_features(root)
    assert after.clip_ids == before.clip_ids
    for name, values in after.features.items():
        assert torch.equal(values, before.features[name])
        assert str(Store(root).read(name).path) in Path("/proc/self/maps").read_text()


def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no amfir cache"):
        load_features(tmp_path / "gone")
    root = plant(tmp_path / "cache", streams=("rgb",), classes=2, clips=1)
    with pytest.raises(UserError, match=r"no stream 'flow' in .*cache, which has rgb; extract it: .*--streams flow"):
        load_features(root, ("rgb", "flow"))
    other = plant(
        tmp_path / "other", classes=1, clips=2, without={"rgb": ["class 0/000.mp4"], "flow": ["class 0/001.mp4"]}
    )
    with pytest.raises(UserError, match=r"no clip has features in all of rgb, flow; in .*other"):
        load_features(other)


def test_caches_without_any_clip_are_refused(tmp_path: Path) -> None:
    root = plant(tmp_path / "cache", streams=("rgb",), classes=0)
    with pytest.raises(UserError, match="no clip has features in all of rgb; "):
        load_features(root)
    with StreamWriter(root, planted_spec("rgb")) as writer:
        writer.add_failure(Failure("a.mp4", "a", "no-frames", "no frames", 1, 1))
    with pytest.raises(UserError, match="no clip has features in all of rgb; "):
        load_features(root)
    (root / "rgb").rename(tmp_path / "rgb")
    with pytest.raises(UserError, match=r"no stream in .*cache; extract some first: amfir extract VIDEOS --cache"):
        load_features(root)


@pytest.mark.parametrize("tokens", [False, True])
def test_features_are_projected_by_their_base_clips_alone(tmp_path: Path, tokens: bool) -> None:
    root = plant(tmp_path / "cache", streams=("rgb",), classes=4, clips=6)
    plant_tokens(root, range(6), views=1) if tokens else plant(root, streams=("flow",), classes=4, clips=6)
    data = load_features(root, tokens=tokens)
    base = data.ids(["class 0"])
    projected = project_features(data, base, 6)
    assert {name: values.shape[-1] for name, values in projected.features.items()} == {
        "rgb": 6,
        "flow": 4 + 2 * (not tokens),
    }
    assert (projected.clip_ids, projected.specs) == (data.clip_ids, data.specs)
    assert torch.equal(projected.labels, data.labels)
    clips = (data.labels == base[0]).nonzero().flatten()
    for name, values in data.features.items():
        torch.testing.assert_close(projected.features[name], fit_projection(values, clips, 6).apply(values))
    projections = fit_projections(data, base, 6)
    again = {name: Projection.from_state(made.to_state()) for name, made in projections.items()}
    torch.testing.assert_close(apply_projections(data, again).features, projected.features, rtol=0, atol=0)


def test_projections_without_a_width_or_base_clips_are_refused(tmp_path: Path) -> None:
    data = load_features(plant(tmp_path / "cache", classes=2, clips=1))
    with pytest.raises(UserError, match=r"width of the projected features is 0; features; choose 1 or more"):
        project_features(data, [0], 0)
    with pytest.raises(UserError, match=r"no clip of a base class .*; check the split"):
        project_features(data, [], 4)


def test_features_of_another_spec_are_refused_with_both_sides(tmp_path: Path) -> None:
    data = load_features(plant(tmp_path / "cache", classes=2, clips=1))
    specs = {name: spec.to_json() for name, spec in data.specs.items()}
    require_specs({"specs": specs}, data, tmp_path)
    settings = {"backbone": {"name": "masked"}}
    trained = {**specs, "flow": {**specs["flow"], "settings": settings}}
    with pytest.raises(UserError) as caught:
        require_specs({"specs": trained}, data, tmp_path / "run")
    assert str(caught.value) == (
        'the run was trained on another flow stream: settings.backbone.name: "masked" in training, '
        f'"planted" here; {tmp_path}/run; train again on this cache'
    )
    require_specs({"specs": trained}, load_features(tmp_path / "cache", ("rgb",)), tmp_path)


def test_classes_that_trained_or_validated_a_run_do_not_test_it(tmp_path: Path) -> None:
    provenance = {"split": {"name": "mine.toml", "train": ["a", "b"], "val": ["c"]}}
    require_disjoint(provenance, ClassSplit(("a",), (), ("d",), "s", "s"), tmp_path)
    split = ClassSplit(("a",), (), ("d", "c", "b"), "theirs.toml", "s")
    with pytest.raises(UserError, match=r"2 test classes of 'theirs.toml' trained .* such as 'b'.*: mine.toml"):
        require_disjoint(provenance, split, tmp_path)
