"""Temperatures and belief from held-out base classes, against a loop over the folds."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from amfir.meta import calibrate as module
from amfir.meta.belief import fit_belief
from amfir.meta.calibrate import calibrate
from amfir.meta.episodes import EpisodeSampler, EpisodeShape
from amfir.meta.evaluate import EvaluationConfig, score_episodes
from amfir.meta.heads.temporal import HeadConfig
from amfir.meta.model import Model
from amfir.meta.temperature import fit_temperature
from amfir.meta.train import Task, Training, start_training, train

from .planted import make_task

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def fewer_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FOLD_EPISODES", 300)


def trained(task: Task) -> Training:
    training = start_training(task)
    for _ in train(task, training):
        pass
    training.model.eval()
    return training


def scores(model: Model, task: Task, classes: list[int], shape: EpisodeShape, seed: int) -> tuple[Tensor, Tensor]:
    """psi at temperature 1 and psi to the mean prototype."""
    sampler = EpisodeSampler(task.labels, classes, shape)
    kept = model.temperatures
    model.set_temperatures(dict.fromkeys(model.modalities, 1.0))
    found = score_episodes(model.scorer(task.features), sampler, EvaluationConfig(shape, 300, seed))
    model.set_temperatures(kept)
    return found


def cross_entropy(psi: Tensor, temperature: float, labels: Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(-temperature * psi.flatten(0, 1), labels.repeat(len(psi))))


def test_folds_share_out_the_classes() -> None:
    for count, way, sizes in (
        (4, 5, [2, 2]),
        (5, 5, [3, 2]),
        (12, 5, [6, 6]),
        (15, 5, [5, 5, 5]),
        (64, 5, [22, 21, 21]),
    ):
        folds = module._folds(range(100, 100 + count), way, seed=0)
        assert sorted(map(len, folds), reverse=True) == sizes
        assert sorted(class_id for fold in folds for class_id in fold) == list(range(100, 100 + count))
    assert module._folds(range(12), 3, 0) != module._folds(range(12), 3, 1)


def test_temperatures_and_belief_are_those_of_held_out_classes() -> None:
    task = make_task(seed=5)
    model = trained(task).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(model, task, episodes=32)
    found = []
    folds = module._folds(range(9), 3, 5)
    assert len(folds) == 3
    for fold in folds:
        others = [c for c in range(9) if c not in fold]
        config = replace(task.config, episodes=32)
        part = Task(task.features, task.labels, others, (), task.class_names, task.method, task.profile, config)
        found.append(scores(trained(part).model, task, fold, EpisodeShape(3, 1, 3), 5))
    psi, centre = (torch.cat([each[i] for each in found], 1) for i in range(2))
    labels = torch.arange(3).repeat_interleave(3)
    expected = [fit_temperature(values, labels) for values in psi]
    assert list(model.temperatures.values()) == pytest.approx(expected, rel=1e-5)
    scale = torch.tensor(expected)
    belief = fit_belief(psi * scale.view(2, 1, 1, 1), centre * scale.view(2, 1, 1), labels)
    assert model.belief is not None
    for name, value in belief.to_state().items():
        torch.testing.assert_close(model.belief.to_state()[name], value, rtol=1e-3, atol=1e-4)
    for name, value in model.state_dict().items():
        assert name.endswith("log_temperature") or torch.equal(value, before[name])


def test_folds_smaller_than_the_way_lower_it() -> None:
    task = make_task(shape=EpisodeShape(4, 1, 3), num_val=0)
    task = replace(task, train_ids=range(4))
    training = start_training(task)
    calibrate(training.model, task, episodes=4)
    found = []
    for fold in module._folds(range(4), 4, 0):
        others = [c for c in range(4) if c not in fold]
        config = replace(task.config, episodes=4, shape=EpisodeShape(2, 1, 3))
        model = trained(replace(task, train_ids=others, config=config)).model
        found.append(scores(model, task, fold, EpisodeShape(2, 1, 3), 0)[0])
    labels = torch.arange(2).repeat_interleave(3)
    expected = [fit_temperature(values, labels) for values in torch.cat(found, 1)]
    assert list(training.model.temperatures.values()) == pytest.approx(expected, rel=1e-5)


def test_fewer_than_four_classes_leave_the_model_as_it_is() -> None:
    task = replace(make_task(), train_ids=range(3), val_ids=())
    model = start_training(task).model
    before = model.temperatures
    calibrate(model, task, episodes=8)
    assert model.temperatures == before
    assert model.belief is None


def test_classes_outside_the_base_are_never_touched() -> None:
    task = make_task()
    spoiled = {name: values.clone() for name, values in task.features.items()}
    for values in spoiled.values():
        values[task.labels >= 9] = torch.nan
    models = [start_training(task).model for _ in range(2)]
    calibrate(models[0], task, episodes=8)
    calibrate(models[1], replace(task, features=spoiled), episodes=8)
    assert models[0].temperatures == models[1].temperatures


@pytest.mark.parametrize("widths", [{"rgb": 10}, {"rgb": 10, "flow": 6}, {"rgb": 10, "flow": 6, "audio": 4}])
def test_there_is_a_belief_where_there_is_a_choice(widths: dict[str, int]) -> None:
    task = make_task(widths=widths)
    model = start_training(task).model
    calibrate(model, task, episodes=0)
    assert (model.belief is None) == (len(widths) == 1)
    if model.belief is not None:
        assert model.belief.bias.shape == (len(widths),)


def test_held_out_temperatures_beat_those_of_the_training_classes_on_new_classes() -> None:
    widths = {"rgb": 60, "flow": 40}
    task = make_task(
        widths=widths, head=HeadConfig(dim=40, width=0), hold=0.0, episodes=200, learning_rates=(0.01,), num_val=0
    )
    task = replace(task, train_ids=range(8))
    training = trained(task)
    shape, labels = EpisodeShape(3, 1, 3), torch.arange(3).repeat_interleave(3)
    seen = scores(training.model, task, list(range(8)), shape, 1)[0]
    fresh = scores(training.model, task, list(range(8, 12)), shape, 2)[0]
    calibrate(training.model, task, training.best_episodes)
    for m, name in enumerate(widths):
        in_sample, held_out = fit_temperature(seen[m], labels), training.model.temperatures[name]
        assert held_out < in_sample
        assert cross_entropy(fresh[m], held_out, labels) < 0.8 * cross_entropy(fresh[m], in_sample, labels)
