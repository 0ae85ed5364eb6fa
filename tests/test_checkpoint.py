"""Models and trainings survive a round trip, an interruption and damage."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta import checkpoint
from amfir.meta.belief import fit_belief
from amfir.meta.checkpoint import has_model, has_training, load_model, load_training, save_model, save_training
from amfir.meta.episodes import EpisodeSampler
from amfir.meta.model import Model
from amfir.meta.train import Task, Training, start_training, train

from .planted import make_task

pytestmark = pytest.mark.usefixtures("one_thread")

PROVENANCE: dict[str, Any] = {"method": "amfir", "training": {"seed": 0, "learning_rate": 0.01}, "streams": ["rgb"]}


def make_model(seed: int = 0, belief: bool = True, **settings: Any) -> Model:
    model = start_training(make_task(seed=seed, **settings)).model
    if belief:
        psi = torch.rand(2, 20, 6, 3, generator=torch.Generator().manual_seed(seed))
        model.belief = fit_belief(psi, psi.mean(-1), torch.arange(3).repeat_interleave(2))
    return model


def assert_equal(one: Model, two: Model) -> None:
    assert one.modalities == two.modalities
    assert one.temperatures == two.temperatures
    assert [one.branch(n).spec for n in one.modalities] == [two.branch(n).spec for n in two.modalities]
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
    assert (one.belief is None) == (two.belief is None)
    if one.belief and two.belief:
        assert all(torch.equal(value, two.belief.to_state()[name]) for name, value in one.belief.to_state().items())


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("belief", [True, False])
def test_a_model_survives_with_all_it_says(tmp_path: Path, belief: bool) -> None:
    model, task = make_model(belief=belief), make_task()
    assert not has_model(tmp_path)
    save_model(tmp_path, model, PROVENANCE)
    assert has_model(tmp_path)
    loaded, provenance = load_model(tmp_path)
    assert_equal(loaded, model)
    assert provenance == PROVENANCE
    assert not loaded.training
    episodes = EpisodeSampler(task.labels, task.val_ids, task.config.shape).sample(5, torch.Generator())
    assert torch.equal(*(each.eval().scorer(task.features)(episodes).psi for each in (model, loaded)))


def test_one_and_three_modalities_survive_in_order(tmp_path: Path) -> None:
    for widths in ({"rgb": 7}, {"rgb": 7, "flow": 5, "audio": 6}):
        model = make_model(belief=False, widths=widths)
        save_model(tmp_path, model, {})
        assert_equal(load_model(tmp_path)[0], model)


def test_files_are_tensors_and_json_and_old_ones_go(tmp_path: Path) -> None:
    for seed in range(3):
        save_model(tmp_path, make_model(seed), {"seed": seed})
        save_training(tmp_path, start_training(make_task(seed=seed)), {"seed": seed})
    assert len(files(tmp_path)) == 4
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    for path in tmp_path.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            with safe_open(path, "pt") as opened:
                assert "branches.rgb.head.weight" in " ".join(opened.keys())
    assert load_model(tmp_path)[1] == {"seed": 2}


def test_saving_the_same_twice_keeps_it(tmp_path: Path) -> None:
    for _ in range(2):
        save_model(tmp_path, make_model(), PROVENANCE)
    assert_equal(load_model(tmp_path)[0], make_model())


# --- resuming -------------------------------------------------------------------------------------------------------


def state_of(training: Training) -> dict[str, Tensor]:
    state = {f"model.{name}": value.clone() for name, value in training.model.state_dict().items()}
    state |= {f"best.{name}": value for name, value in training.best.items()}
    for position, values in training.optimizer.state_dict()["state"].items():
        state |= {f"{position}.{n}": v.clone() for n, v in values.items() if isinstance(v, Tensor)}
    return {**state, "generator": training.generator.get_state()}


def assert_same(one: Training, two: Training) -> None:
    for name in ("log", "episodes", "best_episodes", "best_accuracy", "stale"):
        assert getattr(one, name) == getattr(two, name)
    first, second = state_of(one), state_of(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def interrupted(task: Task, folder: Path, after: int) -> Training:
    """Save after every record, stop after some, and go on from the files in new objects."""
    training = start_training(task)
    for count, _ in enumerate(train(task, training), 1):
        save_training(folder, training, PROVENANCE)
        if count == after:
            break
    resumed = load_training(folder, task, PROVENANCE)
    assert_same(resumed, training)
    for _ in train(task, resumed):
        pass
    return resumed


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd", "views": 2}, {"num_val": 0}, {"patience": 1}])
def test_a_resumed_training_ends_like_an_undisturbed_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    task = make_task(episodes=40, **settings)  # intervals of 16, batches of 4, so the last interval is short
    undisturbed = start_training(task)
    records = len(list(train(task, undisturbed)))
    for after in range(1, records + 1):
        assert_same(interrupted(task, tmp_path, after), undisturbed)


def test_whether_a_training_was_saved(tmp_path: Path) -> None:
    assert not has_training(tmp_path)
    save_training(tmp_path, start_training(make_task()), {})
    assert has_training(tmp_path)
    assert not has_model(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "amfar"}, "was started with method = amfir, now amfar"),
        ({"training": {"seed": 0, "learning_rate": 0.1}}, r"training.learning_rate = 0.01, now 0.1"),
        ({"training": {"seed": 0}}, r"training.learning_rate = 0.01, now None"),
        ({"streams": ["rgb", "flow"]}, r"streams = \['rgb'\], now \['rgb', 'flow'\]"),
        ({"fusion": "late"}, "fusion = None, now late"),
    ],
)
def test_resuming_with_other_settings_is_refused_naming_them(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    task = make_task()
    save_training(tmp_path, start_training(task), PROVENANCE)
    with pytest.raises(UserError, match=message) as caught:
        load_training(tmp_path, task, {**PROVENANCE, **changed})
    assert "\n" not in str(caught.value)


# --- damage ---------------------------------------------------------------------------------------------------------


def refused(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("saved")
    save_model(folder, make_model(), PROVENANCE)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lay(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return folder


def test_files_that_are_not_there_are_refused(tmp_path: Path, saved: dict[str, bytes]) -> None:
    refused(tmp_path / "nowhere")
    refused(tmp_path)
    for name in saved:
        lay(tmp_path, saved)
        (tmp_path / name).unlink()
        refused(tmp_path)
    with pytest.raises(UserError, match="no training in"):
        load_training(tmp_path, make_task(), PROVENANCE)


def test_truncated_files_are_refused(tmp_path: Path, saved: dict[str, bytes]) -> None:
    for name, content in saved.items():
        for size in (0, 1, 8, len(content) // 2, len(content) - 3):
            lay(tmp_path, {**saved, name: content[:size]})
            refused(tmp_path)


def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path: Path, saved: dict[str, bytes]) -> None:
    for name, content in saved.items():
        for position in range(0, len(content), max(1, len(content) // 150)):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            lay(tmp_path, {**saved, name: bytes(flipped)})
            if name.endswith(".json") and reads_the_same(bytes(flipped), content):
                assert_equal(load_model(tmp_path)[0], make_model())
            else:
                refused(tmp_path)


def reads_the_same(one: bytes, two: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(two))
    except ValueError:
        return False


def test_a_changed_setting_of_the_head_is_refused(tmp_path: Path, saved: dict[str, bytes]) -> None:
    changed = saved["model.json"].replace(b'"order_weight": 0.5', b'"order_weight": 0.7')
    assert changed != saved["model.json"]
    refused(lay(tmp_path, {**saved, "model.json": changed}))


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "{}", '{"tensors": 3}', '{"tensors": ""}', '{"tensors": "/etc/passwd"}', "\udcff"]
)
def test_foreign_json_is_refused(tmp_path: Path, saved: dict[str, bytes], text: str) -> None:
    lay(tmp_path, {**saved, "model.json": text.encode("utf-8", "surrogateescape")})
    refused(tmp_path)
    lay(tmp_path, {"training.json": text.encode("utf-8", "surrogateescape")})
    with pytest.raises(UserError, match="training is damaged"):
        load_training(tmp_path, make_task(), PROVENANCE)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [("head", "otam2", "unknown head 'otam2'"), ("settings", {"width2": 1}, "unknown setting of head 'temporal'")],
)
def test_a_model_whose_head_is_gone_names_its_folder(tmp_path: Path, part: str, value: object, message: str) -> None:
    model = start_training(make_task()).model
    save_model(tmp_path, model, {})
    tensors, data = checkpoint._read(tmp_path, "model")
    data["branches"][0][part] = value
    checkpoint._write(tmp_path, "model", tensors, data)
    with pytest.raises(UserError, match=f"this amfir cannot .*{message}.*; in {tmp_path}; train again"):
        load_model(tmp_path)


@pytest.mark.parametrize("data", [{"branches": {}}, {"branches": [{}], "provenance": {}}, {"provenance": 1}])
def test_whole_files_of_another_kind_are_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    for name in ("model", "training"):
        checkpoint._write(tmp_path, name, {"weight": torch.zeros(2)}, data)
    refused(tmp_path)
    with pytest.raises(UserError):
        load_training(tmp_path, make_task(), PROVENANCE)


def test_a_training_of_other_features_is_refused(tmp_path: Path) -> None:
    save_training(tmp_path, start_training(make_task(widths={"rgb": 6})), PROVENANCE)
    with pytest.raises(UserError, match="training is damaged") as caught:
        load_training(tmp_path, make_task(widths={"rgb": 8}), PROVENANCE)
    assert "\n" not in str(caught.value)


# --- kills ----------------------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", range(4))
def test_a_kill_while_saving_leaves_the_old_pair_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Stop before either file is written whole, or before either is renamed."""
    old, new = make_model(0), make_model(1)
    save_model(tmp_path, old, {"seed": 0})
    calls = {"fsync": 0, "replace": 0}
    replace_file, fsync = Path.replace, os.fsync

    def count(kind: str) -> None:
        calls[kind] += 1
        if (kind, calls[kind]) == (("fsync", 1), ("replace", 1), ("fsync", 2), ("replace", 2))[step]:
            raise KilledError

    def dying_fsync(descriptor: int) -> None:
        count("fsync")
        fsync(descriptor)

    def dying_replace(self: Path, target: Path) -> Path:
        count("replace")
        return replace_file(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", dying_fsync)
        patched.setattr(Path, "replace", dying_replace)
        with pytest.raises(KilledError):
            save_model(tmp_path, new, {"seed": 1})
    loaded, provenance = load_model(tmp_path)
    assert provenance == {"seed": 0}
    assert_equal(loaded, old)
    save_model(tmp_path, new, {"seed": 1})
    assert_equal(load_model(tmp_path)[0], new)
    assert not [name for name in files(tmp_path) if name.endswith(".partial") and ".json" in name]


def test_a_kill_before_the_old_tensors_went_leaves_the_new_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path, make_model(0), {"seed": 0})

    def die(self: Path) -> None:
        raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", die)
        with pytest.raises(KilledError):
            save_model(tmp_path, make_model(1), {"seed": 1})
    loaded, provenance = load_model(tmp_path)
    assert provenance == {"seed": 1}
    assert_equal(loaded, make_model(1))
    save_model(tmp_path, make_model(2), {"seed": 2})
    assert len(files(tmp_path)) == 2


def test_a_full_disk_leaves_the_old_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, make_model(0), {"seed": 0})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save_model(tmp_path, make_model(1), {"seed": 1})
    assert_equal(load_model(tmp_path)[0], make_model(0))


def test_the_training_task_is_not_changed_by_a_resume(tmp_path: Path) -> None:
    task = make_task(episodes=16)
    save_training(tmp_path, start_training(task), PROVENANCE)
    longer = replace(task, config=replace(task.config, episodes=32))
    assert load_training(tmp_path, longer, PROVENANCE).episodes == 0
