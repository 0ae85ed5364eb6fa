"""The study of examples on planted features and small videos, against a loop over the queries."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from amfir.extract.clips import Clip
from amfir.extract.decode import DecodeError
from amfir.extract.flow import HOST_BACKENDS, FarnebackParameters
from amfir.meta.checkpoint import load_model
from amfir.meta.episodes import EpisodeSampler
from amfir.meta.evaluate import EvaluationConfig, observations
from amfir.pipeline.compare_cells import Cell
from amfir.pipeline.compare_store import CompareConfig
from amfir.pipeline.studies import examples
from amfir.pipeline.studies.base import Context, Result, StudyConfig, open_context
from amfir.pipeline.studies.examples import clip_pictures, run

from .plantedcache import plant

FAST = ("training.batch_episodes=8", "training.interval=16", "training.validation_episodes=20")
COMPARE = CompareConfig(
    way=3, query=2, episodes=300, train_episodes=16, settings=(*FAST, "training.learning_rates=1e-3")
)
MODALITIES = ("rgb", "flow")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    root = tmp_path_factory.mktemp("examples")
    cache = plant(root / "cache", classes=10)
    return open_context(StudyConfig(cache, "random:0", root / "out", compare=COMPARE, shots=(1, 5)))


@pytest.fixture(scope="module")
def result(context: Context) -> Result:
    return run(context)


def queries(context: Context) -> Iterator[tuple[str, str, dict[str, str], dict[str, float], dict[str, float]]]:
    """Clip, label, predictions, AMI's weights and free energies of every query, one after the other."""
    (folder,) = context.folders(Cell("amfir", "amfir", "ami", MODALITIES, 1))
    model, data = load_model(folder)[0], context.data
    clips, ids = data.clips_of(context.split.test), data.ids(context.split.test)
    config = EvaluationConfig(COMPARE.shape(1), COMPARE.episodes)
    sampler = EpisodeSampler(data.labels[clips], ids, config.shape)
    chunks = observations(model.scorer(data.features, clips), sampler, config, range(config.num_blocks))
    for episodes, seen in chunks:
        for b in range(len(episodes)):
            names = [data.class_names[data.labels[clips[clip]]] for clip in episodes.query[b, :, 0]]
            for i, clip in enumerate(episodes.query[b].flatten().tolist()):
                p = seen.posteriors[:, b, i].double()
                certainty = p.amax(-1)
                yield (
                    data.clip_ids[int(clips[clip])],
                    names[i // 2],
                    {name: names[int(p[m].argmax())] for m, name in enumerate(MODALITIES)},
                    {name: float(certainty[m] / certainty.sum()) for m, name in enumerate(MODALITIES)},
                    {name: float((p[m] * 3).log().mean()) for m, name in enumerate(MODALITIES)},
                )


def test_rows_are_those_of_a_loop_over_the_queries(context: Context, result: Result) -> None:
    shown: Counter[str] = Counter()
    alone: dict[str, dict[str, list[Any]]] = {name: defaultdict(list) for name in MODALITIES}
    for clip, label, predictions, weights, energies in queries(context):
        shown[clip] += 1
        right = [name for name in MODALITIES if predictions[name] == label]
        if len(right) == 1:
            alone[right[0]][clip].append((predictions, weights, energies))
    for name in MODALITIES:
        rows = [row for row in result.rows if row["right"] == name]
        shares = {clip: len(found) / shown[clip] for clip, found in alone[name].items() if shown[clip] >= 20}
        expected = sorted(shares, key=lambda clip: (-shares[clip], clip))[:6]
        assert [row["clip_id"] for row in rows] == expected
        for row in rows:
            found = alone[name][row["clip_id"]]
            other = "flow" if name == "rgb" else "rgb"
            mistakes = Counter(predictions[other] for predictions, _, _ in found)
            assert (row["episodes"], row["alone"]) == (shown[row["clip_id"]], len(found))
            assert row["share"] == pytest.approx(100 * shares[row["clip_id"]])
            assert row["label"] == row["predictions"][name] == row["clip_id"].split("/")[0]
            assert mistakes[row["predictions"][other]] == max(mistakes.values())
            for m in MODALITIES:
                assert row["weights"][m] == pytest.approx(np.mean([weights[m] for _, weights, _ in found]), abs=1e-6)
                energy = np.mean([energies[m] for _, _, energies in found])
                assert row["free_energy"][m] == pytest.approx(energy, abs=1e-5)


def test_without_videos_the_pictures_are_missing_and_that_is_said(result: Result) -> None:
    assert len(result.rows) == 12
    assert all(row["frame"] == row["flow"] == "" for row in result.rows)
    assert result.skipped == ["pictures of the clips: the videos are not given; add --videos DIR"]
    assert "files" not in result.extra


def read(picture: bytes) -> NDArray[np.uint8]:
    assert picture[:3] == b"\xff\xd8\xff"
    return np.asarray(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR_RGB), np.uint8)


def test_videos_give_pictures_and_a_video_that_is_gone_or_broken_is_noted(
    context: Context, result: Result, tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    ids = list(dict.fromkeys(row["clip_id"] for row in result.rows))
    gone, broken, *others = ids
    for clip in (broken, *others):
        (tmp_path / clip).parent.mkdir(exist_ok=True)
        make_clip(tmp_path / clip, num_frames=3, width=128, height=96)
    (tmp_path / broken).write_bytes(b"no video")
    found = run(replace_config(context, videos=tmp_path))
    files = found.extra["files"]
    for row in found.rows:
        if row["clip_id"] in (gone, broken):
            assert row["frame"] == row["flow"] == ""
        else:
            assert read(files[row["frame"]]).shape == read(files[row["flow"]]).shape == (144, 192, 3)
    shown = [row for row in found.rows if row["frame"]]
    assert set(files) == {row["frame"] for row in shown} | {row["flow"] for row in shown}
    assert {row["frame"] for row in shown} < {f"{m}-{i}-frame.jpg" for m in MODALITIES for i in range(6)}
    noted = [note for note in found.notes if note.startswith("No picture of")]
    assert f"No picture of {gone}: it is not among the videos." in noted
    assert any(note.startswith(f"No picture of {broken}: ") for note in noted)
    assert found.skipped == []


def test_a_folder_that_is_no_dataset_costs_the_pictures_only(context: Context, tmp_path: Path) -> None:
    found = run(replace_config(context, videos=tmp_path / "nothing"))
    assert len(found.rows) == 12
    (reason,) = found.skipped
    assert reason.startswith("pictures of the clips: no such data set")


def replace_config(context: Context, **changes: Any) -> Context:
    return Context(replace(context.config, **changes), context.data, context.split)


def test_pictures_are_the_middle_sampled_frame_and_its_motion(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    """A white square on black that moves right by 3 pixels a frame: red in the flow, in the frame where it then is."""
    frames = [np.zeros((96, 192, 3), np.uint8) for _ in range(16)]
    texture = np.random.default_rng(0).integers(120, 255, (40, 40, 1), np.uint8)
    for number, frame in enumerate(frames):
        frame[28:68, 20 + 3 * number : 60 + 3 * number] = texture
    path = make_clip(tmp_path / "clip.mp4", frames=frames, width=192, height=96)
    flow = HOST_BACKENDS["opencv"](FarnebackParameters())
    pictures = clip_pictures(Clip("clip.mp4", path, "moves"), 8, flow)
    shown = read(pictures["frame"]).mean(-1)
    # 8 of 16 frames: the middle one (position 4) is frame 9.
    columns = np.nonzero(shown[30:66].mean(0) > 60)[0]
    assert abs(columns[0] - 47) <= 2
    assert abs(columns[-1] - 86) <= 2
    motion = read(pictures["flow"])[48, 66]
    assert motion[0] > 180
    assert max(motion[1:]) < 100


def test_a_clip_of_one_frame_has_no_flow_and_a_broken_one_raises(
    tmp_path: Path, make_clip: Callable[..., Path]
) -> None:
    flow = HOST_BACKENDS["opencv"](FarnebackParameters())
    still = make_clip(tmp_path / "still.mp4", num_frames=1)
    assert set(clip_pictures(Clip("still.mp4", still, "still"), 8, flow)) == {"frame"}
    with pytest.raises(DecodeError):
        clip_pictures(Clip("gone.mp4", tmp_path / "gone.mp4", "gone"), 8, flow)


def test_a_tall_clip_is_shrunk_to_its_height(tmp_path: Path, make_clip: Callable[..., Path]) -> None:
    path = make_clip(tmp_path / "tall.mp4", num_frames=2, width=48, height=96)
    flow = HOST_BACKENDS["opencv"](FarnebackParameters())
    pictures = clip_pictures(Clip("tall.mp4", path, "tall"), 8, flow)
    assert read(pictures["frame"]).shape == read(pictures["flow"]).shape == (192, 96, 3)


def test_one_modality_has_no_examples(tmp_path: Path) -> None:
    cache = plant(tmp_path / "cache", streams=("rgb",))
    found = run(open_context(StudyConfig(cache, "random:0", tmp_path / "out", compare=COMPARE)))
    assert found.rows == []
    assert found.skipped == ["all of it: it needs two modalities; the cache has rgb only"]


def test_few_episodes_still_give_examples(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no clip is shown as often as is asked for, those that are shown most count."""
    monkeypatch.setattr(examples, "MIN_SHOWN", 10**6)
    assert run(context).rows
