"""The robustness study, on planted features and on a few synthetic videos."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amfir.cache import StreamSpec
from amfir.cache.errors import UserError
from amfir.extract.config import ExtractConfig
from amfir.extract.flow import FarnebackParameters
from amfir.extract.job import extract
from amfir.extract.networks import load_networks
from amfir.extract.spec import stream_spec
from amfir.meta.checkpoint import load_model
from amfir.meta.episodes import EpisodeSampler
from amfir.meta.evaluate import EvaluationConfig, draw_block
from amfir.pipeline.compare_cells import Cell
from amfir.pipeline.compare_store import CompareConfig, Measured
from amfir.pipeline.corrupt import Harm
from amfir.pipeline.datasets import list_clips
from amfir.pipeline.feature_harms import base_statistics, harm_features
from amfir.pipeline.harmed_cache import open_extractor, reconstruct
from amfir.pipeline.studies import robustness
from amfir.pipeline.studies.base import Context, Result, StudyConfig, open_context
from amfir.pipeline.synth import generate

from .plantedcache import plant

EPISODES = 60
COMPARE = CompareConfig(
    way=3,
    query=2,
    episodes=EPISODES,
    train_episodes=32,
    settings=(
        "training.batch_episodes=8",
        "training.interval=16",
        "training.validation_episodes=40",
        "training.learning_rates=[1e-2]",
    ),
    project=6,
)
KEYS = {"harm", "level", "applied_to", "modality", "shot", "method", "fusion", "accuracy", "ci95"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("robustness")
    return open_context(
        StudyConfig(plant(folder / "cache", classes=10), "random:0", folder / "out", compare=COMPARE, shots=(2,))
    )


@pytest.fixture(scope="module")
def result(context: Context) -> Result:
    return robustness.run(context)


def find(result: Result, harm: str, level: float, modality: str) -> dict[str, dict[str, Any]]:
    """Rows of a condition by fusion."""
    wanted = (harm, level, modality)
    return {row["fusion"]: row for row in result.rows if (row["harm"], row["level"], row["modality"]) == wanted}


def test_every_harm_starts_at_the_clean_queries_that_training_was_measured_on(context: Context, result: Result) -> None:
    cell = Cell("amfir", "amfir", "ami", ("rgb", "flow"), 2, 0)
    measured = context.train([cell])[cell]
    assert isinstance(measured, Measured)
    (block,) = [block for block in result.episodes if block.condition == "clean fusion=ami"]
    assert np.array_equal(block.right, measured.right)
    conditions = {(row["harm"], row["modality"]) for row in result.rows}
    each = [("missing", name) for name in ("rgb", "flow")]
    assert conditions == {(h, m) for h in robustness.FEATURE_LEVELS for m in ("both", "rgb", "flow")} | {*each}
    for harm, modality in conditions:
        clean = find(result, harm, 0.0, modality)
        assert list(clean) == ["ami", "late", "select", "belief", "rgb alone", "flow alone"]
        assert clean["ami"]["accuracy"] == pytest.approx(100 * measured.right.mean() / 6)


def test_rows_say_what_was_harmed_and_weights_are_shares(result: Result) -> None:
    for row in result.rows:
        assert set(row) == KEYS | {"weight_rgb", "weight_flow"}
        assert (row["applied_to"], row["shot"], row["method"]) == ("features", 2, "amfir")
        assert row["weight_rgb"] + row["weight_flow"] == pytest.approx(1)
    assert not result.skipped
    assert any("features were harmed, not the videos, since no videos were given" in note for note in result.notes)


def test_a_harmed_modality_is_scored_as_a_plain_loop_scores_it(context: Context, result: Result) -> None:
    """Clean supports, queries of which RGB is dark: embeddings, prototypes and AMI written out."""
    model, _ = load_model(context.folders(Cell("amfir", "amfir", "ami", ("rgb", "flow"), 2, 0))[0])
    data, novel = context.data, context.data.ids(context.split.test)
    base = data.clips_of((*context.split.train, *context.split.val))
    rgb = data.features["rgb"]
    dark = harm_features(rgb, data.clip_ids, Harm("dark", 0.9), base_statistics(rgb, base), "rgb")
    sides = {"support": data.features, "query": {"rgb": dark, "flow": data.features["flow"]}}

    def embed(side: str, name: str) -> torch.Tensor:
        with torch.no_grad():
            return model.head(name).encode(model.projections[name](sides[side][name][:, 0]))[0].double()

    sampler = EpisodeSampler(data.labels, novel, COMPARE.shape(2))
    episodes = draw_block(sampler, EvaluationConfig(COMPARE.shape(2), EPISODES), 0)
    embedded = {side: {name: embed(side, name) for name in ("rgb", "flow")} for side in sides}
    right, weights = np.zeros(EPISODES, int), []
    for e in range(EPISODES):
        for label, clip in [(n, int(clip)) for n in range(3) for clip in episodes.query[e, n]]:
            psi = []
            for name in ("rgb", "flow"):
                prototypes = embedded["support"][name][episodes.support[e]].mean(1)
                scale = model.temperatures[name] * model.head(name).scale  # type: ignore[operator]
                psi.append(scale * (embedded["query"][name][clip] - prototypes).square().sum(-1))
            certain = [torch.softmax(-one, 0).max() for one in psi]
            alpha = [one / sum(certain) for one in certain]
            weights.append(float(alpha[0]))
            right[e] += int((alpha[0] * psi[0] + alpha[1] * psi[1]).argmin()) == label
    (block,) = [b for b in result.episodes if b.condition == "dark=0.9 on=rgb in=features fusion=ami"]
    assert np.array_equal(block.right, right)
    assert find(result, "dark", 0.9, "rgb")["ami"]["weight_rgb"] == pytest.approx(np.mean(weights), rel=1e-4)


def test_a_harm_of_one_modality_leaves_the_other_alone_as_it_was(result: Result) -> None:
    for harm, levels in robustness.FEATURE_LEVELS.items():
        clean = find(result, harm, 0.0, "rgb")
        for level in levels:
            harmed = find(result, harm, level, "rgb")
            assert harmed["flow alone"]["accuracy"] == clean["flow alone"]["accuracy"]
            assert harmed["rgb alone"]["accuracy"] == find(result, harm, level, "both")["rgb alone"]["accuracy"]
    assert find(result, "noise", 2.0, "rgb")["rgb alone"]["accuracy"] < clean["rgb alone"]["accuracy"]


def test_a_missing_modality_is_at_chance_and_without_its_branch_the_other_decides(result: Result) -> None:
    for name, other in (("rgb", "flow"), ("flow", "rgb")):
        rows = find(result, "missing", 1.0, name)
        # All queries look the same: whatever class is nearest is right for a third of them.
        assert rows[f"{name} alone"]["accuracy"] == pytest.approx(100 / 3)
        for fusion in ("ami", "belief"):
            dropped = rows[f"{fusion} without {name}"]
            assert dropped["accuracy"] == rows[f"{other} alone"]["accuracy"]
            assert (dropped[f"weight_{name}"], dropped[f"weight_{other}"]) == (0, 1)


def test_raw_results_give_the_rows_accuracies(result: Result) -> None:
    blocks = {block.condition: block for block in result.episodes}
    assert len(blocks) == len(result.episodes)
    for row in result.rows:
        name = f"{row['harm']}={row['level']:g} on={row['modality']} in=features" if row["level"] else "clean"
        block = blocks[f"{name} fusion={row['fusion']}"]
        assert row["accuracy"] == pytest.approx(100 * block.right.mean() / block.queries)


def test_of_one_modality_all_but_a_missing_one_is_studied(tmp_path: Path) -> None:
    cache = plant(tmp_path / "cache", streams=("rgb",), classes=10)
    config = StudyConfig(cache, "random:0", tmp_path / "out", compare=COMPARE, shots=(1,))
    result = robustness.run(open_context(config))
    assert {row["modality"] for row in result.rows} == {"rgb"}
    assert {row["harm"] for row in result.rows} == set(robustness.FEATURE_LEVELS)
    assert result.skipped == ["missing modality: the cache has rgb only"]


def test_a_training_that_fails_is_said(context: Context) -> None:
    config = replace(context.config, compare=replace(COMPARE, way=9))
    result = robustness.run(Context(config, context.data, context.split))
    assert not result.rows
    assert result.failures[0].startswith("2-shot: ")


# --- Videos ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """Six classes of three short clips, and their features."""
    folder = tmp_path_factory.mktemp("videos")
    generate(folder / "videos", classes=6, clips_per_class=3, size=32, num_frames=5)
    settings = ExtractConfig(frames=2, size=32, workers=1)
    extract(list_clips(folder / "videos"), folder / "cache", settings)
    compare = replace(COMPARE, way=2, query=1, project=0)
    split = str(folder / "videos" / "split.toml")
    return StudyConfig(folder / "cache", split, folder / "out", (), compare, (1,), videos=folder / "videos")


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_videos_are_harmed_extracted_and_deleted_once(synthetic: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "VIDEO_LEVELS", {"noise": (0.4,)})
    result = robustness.run(open_context(synthetic))
    assert not result.skipped
    assert {row["applied_to"] for row in result.rows if row["harm"] == "noise"} == {"videos"}
    rows = find(result, "noise", 0.4, "both")
    assert rows["rgb alone"]["accuracy"] != find(result, "noise", 0.0, "both")["rgb alone"]["accuracy"]
    work = synthetic.out / "robustness" / "work"
    made = files(work)
    assert not [path for path in made if path.suffix == ".mkv"]
    again = robustness.run(open_context(synthetic))
    assert again.rows == result.rows
    assert files(work) == made


def test_other_videos_than_the_caches_are_not_harmed(synthetic: StudyConfig) -> None:
    context = open_context(synthetic)
    clean = context.data
    assert synthetic.videos
    work = synthetic.out / "other"
    open_extractor(synthetic.videos, clean, work)
    other = {**clean.features, "rgb": 1.1 * clean.features["rgb"]}
    with pytest.raises(UserError, match=r"^the rgb features of '.*' differ from those in the cache by 9.1 %; "):
        open_extractor(synthetic.videos, replace(clean, features=other), work)
    strange = [*clean.clip_ids[1:], "zoo/1.mp4"]
    with pytest.raises(UserError, match=r"^1 of 18 clips have no video, such as 'zoo/1.mp4'; "):
        open_extractor(synthetic.videos, replace(clean, clip_ids=strange), work)


def test_finished_clips_are_not_harmed_again_and_seeds_do_not_mix(synthetic: StudyConfig) -> None:
    assert synthetic.videos
    extractor = open_extractor(synthetic.videos, open_context(synthetic).data, synthetic.out / "again")
    two = replace(extractor, clips=extractor.clips[:2])
    told: list[int] = []
    made = two.features(Harm("noise", 0.3), told.append)
    assert (told[0], told[-1]) == (0, 2)
    gone = replace(two, clips=tuple(clip._replace(place=Path("gone")) for clip in two.clips))
    again = gone.features(Harm("noise", 0.3))
    assert all(torch.equal(again.features[name], values) for name, values in made.features.items())
    with pytest.raises(UserError, match=r"^clip '.*' cannot be harmed \(.*\); gone; leave it out$"):
        gone.features(Harm("noise", 0.2))
    with pytest.raises(UserError, match=r"^clip '.*' cannot be harmed"):
        replace(gone, seed=1).features(Harm("noise", 0.3))


def test_where_the_videos_cannot_be_used_the_features_are_harmed_and_that_is_said(
    context: Context, synthetic: StudyConfig
) -> None:
    told: list[str] = []
    config = replace(context.config, videos=synthetic.videos)
    result = robustness.run(Context(config, context.data, context.split, told.append))
    assert {row["applied_to"] for row in result.rows} == {"features"}
    assert result.skipped[0].startswith("harmed videos: 30 of 30 clips have no video, such as 'class 0/000.mp4'; ")
    assert told[-1].startswith("robustness: the features are harmed, not the videos: 30 of 30")


@pytest.mark.parametrize(
    "config",
    [
        ExtractConfig(size=64),
        ExtractConfig(
            frames=3,
            views=2,
            seed=5,
            size=64,
            short_side=80,
            fit="crop",
            normalise=False,
            tokens=16,
            batch_size=3,
            flow_parameters=FarnebackParameters(winsize=21),
            flow_scale=4.0,
        ),
    ],
)
def test_settings_are_read_back_from_the_specs(config: ExtractConfig) -> None:
    config = replace(config, device="cpu")
    specs = {name: stream_spec(name, network, config) for name, network in load_networks(config).items()}
    (again,) = reconstruct(specs)
    assert {name: stream_spec(name, network, again) for name, network in load_networks(again).items()} == specs
    other = replace(specs["flow"], frames=7)
    assert [(job.streams, job.frames) for job in reconstruct({**specs, "flow": other})] == [
        (("rgb",), config.frames),
        (("flow",), 7),
    ]


def test_imported_features_cannot_be_extracted_again() -> None:
    with pytest.raises(UserError, match=r"^stream 'rgb' cannot be extracted again: its spec lacks 'backbone'; "):
        reconstruct({"rgb": StreamSpec("rgb", 8, 1, 16, {"imported": True})})
