"""Temperature scaling on validation classes, against a search over a grid and the belief fitted by hand."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta.belief import Belief, fit_belief
from amfir.meta.episodes import Episodes, EpisodeSampler, EpisodeShape
from amfir.meta.evaluate import EvaluationConfig, observations
from amfir.meta.model import Model
from amfir.meta.scaling import (
    drop_temperatures,
    rescale,
    use_validation_temperatures,
    validation_ids,
)
from amfir.meta.train import Task, start_training

from .planted import make_task

SHAPE = EpisodeShape(3, 1, 2)
VAL = (6, 7, 8)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def task() -> Task:
    return make_task()


@pytest.fixture
def model(task: Task) -> Model:
    """AMFIR at its start."""
    return start_training(task).model.eval()


def temperatures_of_a_copy(model: Model, *arguments: Any, **settings: Any) -> dict[str, float]:
    """The temperatures that a copy of the model gets."""
    own = deepcopy(model)
    use_validation_temperatures(own, *arguments, **settings)
    return own.temperatures


def raw_distances(model: Model, task: Task, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """psi and psi to the mean prototype at temperature 1, as embeddings by hand give them, float64."""
    config = EvaluationConfig(SHAPE, 400, 0)
    clips = torch.isin(task.labels, torch.tensor(classes)).nonzero().flatten()
    sampler = EpisodeSampler(task.labels[clips], classes, SHAPE)

    drawn: list[Episodes] = []

    class Spy:
        modalities = model.modalities

        def __call__(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
            drawn.append(episodes)
            size = (len(episodes), SHAPE.way * SHAPE.query)
            return torch.rand(2, *size, SHAPE.way), torch.rand(2, *size)

    list(observations(Spy(), sampler, config, range(config.num_blocks)))  # type: ignore[arg-type]
    psi, centre = [], []
    for name in model.modalities:
        embedded = model.head(name).embed(task.features[name][clips, 0].float()).detach().double()  # type: ignore[operator]
        support = torch.cat([embedded[part.support].mean(2) for part in drawn])
        query = torch.cat([embedded[part.query.flatten(1)] for part in drawn])
        psi.append((query[:, :, None] - support[:, None]).square().sum(-1))
        centre.append((query - support.mean(1, keepdim=True)).square().sum(-1))
    return torch.stack(psi), torch.stack(centre)


def cross_entropy(psi: Tensor, temperature: float) -> float:
    labels = SHAPE.query_labels().repeat(len(psi))
    return float(torch.nn.functional.cross_entropy(-temperature * psi.flatten(0, 1), labels))


def test_no_other_temperature_explains_the_validation_classes_better(model: Model, task: Task) -> None:
    found = temperatures_of_a_copy(model, task.features, task.labels, VAL, SHAPE, episodes=400)
    psi, _ = raw_distances(model, task, VAL)
    assert set(found) == {"rgb", "flow"}
    for name, values in zip(model.modalities, psi, strict=True):
        least = cross_entropy(values, found[name])
        grid = torch.logspace(-3, 3, 500).tolist()
        assert all(least <= cross_entropy(values, tau) + 1e-7 for tau in grid)
        assert cross_entropy(values, found[name] * 1.1) > least


def test_the_heads_themselves_are_left_alone(model: Model, task: Task) -> None:
    heads = {name: deepcopy(model.head(name).state_dict()) for name in model.modalities}
    use_validation_temperatures(model, task.features, task.labels, VAL, SHAPE, episodes=100)
    for name, before in heads.items():
        after = model.head(name).state_dict()
        assert all(torch.equal(after[key], value) for key, value in before.items())


def test_other_classes_and_other_temperatures_of_the_model_change_nothing(model: Model, task: Task) -> None:
    found = temperatures_of_a_copy(model, task.features, task.labels, VAL, SHAPE, episodes=100)
    spoiled = {name: values.clone() for name, values in task.features.items()}
    for values in spoiled.values():
        values[~torch.isin(task.labels, torch.tensor(VAL))] = torch.nan
    model.set_temperatures({"rgb": 5.0, "flow": 0.1})
    assert temperatures_of_a_copy(model, spoiled, task.labels, VAL, SHAPE, episodes=100) == found


def test_a_wider_way_takes_all_validation_classes(model: Model, task: Task) -> None:
    wide = EpisodeShape(5, 1, 2)
    found = temperatures_of_a_copy(model, task.features, task.labels, VAL, wide, episodes=100)
    assert found == temperatures_of_a_copy(model, task.features, task.labels, VAL, SHAPE, episodes=100)


def test_the_belief_is_fitted_anew_on_the_same_episodes(model: Model, task: Task) -> None:
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    model.belief = Belief(zeros, zeros + 1, zeros[0], zeros[:, 0])
    use_validation_temperatures(model, task.features, task.labels, VAL, SHAPE, episodes=400)
    expected = temperatures_of_a_copy(model, task.features, task.labels, VAL, SHAPE, episodes=400)
    psi, centre = raw_distances(model, task, VAL)
    factors = torch.tensor([expected["rgb"], expected["flow"]], dtype=torch.float64)[:, None, None]
    fitted = fit_belief(psi * factors[..., None], centre * factors, SHAPE.query_labels())
    assert model.temperatures == pytest.approx(expected, rel=1e-6)
    assert model.belief is not None
    for name, value in fitted.to_state().items():
        torch.testing.assert_close(model.belief.to_state()[name], value, rtol=1e-3, atol=1e-3)


def test_a_model_without_a_belief_gets_none(model: Model, task: Task) -> None:
    use_validation_temperatures(model, task.features, task.labels, VAL, SHAPE, episodes=100)
    assert model.belief is None


def test_without_temperatures_distances_are_the_heads_own(model: Model) -> None:
    zeros = torch.zeros(2, 4, dtype=torch.float64)
    model.belief = Belief(zeros, zeros + 1, zeros[0], zeros[:, 0])
    drop_temperatures(model)
    assert model.temperatures == {"rgb": 1.0, "flow": 1.0}
    assert model.belief is None


def test_classes_that_are_never_mistaken_are_refused(model: Model, task: Task) -> None:
    apart = {name: values.clone() for name, values in task.features.items()}
    for values in apart.values():
        values[:] = 100.0 * torch.eye(12, values.shape[-1])[task.labels][:, None, None]
    with pytest.raises(UserError, match="rgb is right in every query of the 3 validation classes"):
        temperatures_of_a_copy(model, apart, task.labels, VAL, SHAPE, episodes=50)


def test_too_few_classes_or_clips_are_refused(model: Model, task: Task) -> None:
    with pytest.raises(UserError, match="1 validation classes; temperatures are fitted on two or more"):
        temperatures_of_a_copy(model, task.features, task.labels, (6,), SHAPE)
    with pytest.raises(UserError, match="class 'class 6' has 8 clips"):
        temperatures_of_a_copy(
            model, task.features, task.labels, VAL, EpisodeShape(3, 5, 5), class_names=task.class_names
        )


def test_validation_classes_are_those_that_all_runs_held_out() -> None:
    names = ["bend", "jump", "run", "walk"]
    runs = [{"split": {"val": ["jump", "run", "walk", "gone"]}}, {"split": {"val": ["walk", "jump", "gone"]}}]
    assert validation_ids(runs, names) == [1, 3]
    assert validation_ids(runs[:1], names) == [1, 2, 3]
    with pytest.raises(UserError, match="the run held out no validation classes"):
        validation_ids([{"split": {"val": []}}], names)
    with pytest.raises(UserError, match="held out 3 validation classes, 1 in this cache"):
        validation_ids(runs[1:], ["walk"])


def test_a_name_says_which_temperatures(model: Model, task: Task) -> None:
    runs = [{"split": {"val": ["class 6", "class 7", "class 8"]}}]
    config = EvaluationConfig(SHAPE, 1000, 3)
    own = model.temperatures

    def asked(name: str) -> dict[str, float]:
        rescale(model, name, runs, task.features, task.labels, task.class_names, config)
        return model.temperatures

    assert asked("run") == own
    fitted = temperatures_of_a_copy(model, task.features, task.labels, VAL, SHAPE, seed=3)
    assert asked("validation") == pytest.approx(fitted, rel=1e-6)
    assert asked("none") == {"rgb": 1.0, "flow": 1.0}
    with pytest.raises(UserError, match="unknown temperature 'valid'; did you mean 'validation'"):
        asked("valid")
