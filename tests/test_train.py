"""Meta-training on planted features: it learns, it repeats itself bit by bit, and it stops where it should."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from amfir.cache.errors import UserError
from amfir.meta import train as train_module
from amfir.meta.active import free_energy, groups, observe
from amfir.meta.episodes import EpisodeSampler, EpisodeShape
from amfir.meta.evaluate import EvaluationConfig, evaluate_scorer
from amfir.meta.heads import Head
from amfir.meta.train import Record, Task, TrainConfig, Training, start_training, train

from .planted import make_task

pytestmark = pytest.mark.usefixtures("one_thread")


def run(task: Task) -> Training:
    training = start_training(task)
    for _ in train(task, training):
        pass
    return training


def weights(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def validation_accuracy(task: Task, training: Training) -> float:
    shape = replace(task.config.shape, way=min(task.config.shape.way, len(task.val_ids)))
    config = EvaluationConfig(shape, task.config.validation_episodes, fusion=task.method.fusion)
    model = training.model.eval()
    return evaluate_scorer(model.scorer(task.features), task.labels, task.val_ids, config).accuracy


def distances(task: Task, training: Training, sampler: EpisodeSampler) -> Tensor:
    """psi of the next four episodes."""
    episodes = sampler.sample(4, training.generator)
    return training.model.learn(task.features, episodes, task.config.shape.query_labels())[0]


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["temporal-lf", "amfar", "amfir"])
def test_it_learns_what_planted_classes_share(method: str) -> None:
    training = run(make_task(method=method, episodes=160, interval=80))
    first, last = training.log[0], training.log[-1]
    assert training.best_accuracy > first["validation"] + 5
    assert last["loss"] < training.log[1]["loss"]


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 0.01), ("sgd", 0.1)])
def test_both_optimisers_lower_the_cross_entropy_of_each_head(optimizer: str, rate: float) -> None:
    training = run(make_task(optimizer=optimizer, learning_rates=(rate,), episodes=160, interval=32, num_val=0))
    assert type(training.optimizer).__name__.lower() == optimizer
    for name in ("rgb", "flow"):
        assert training.log[-1][f"cross-entropy/{name}"] < 0.9 * training.log[1][f"cross-entropy/{name}"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_first_step_is_that_of_the_optimiser_without_decay(optimizer: str) -> None:
    task = make_task(optimizer=optimizer, learning_rates=(0.1,), hold=0.0, episodes=4, method="temporal-lf", num_val=0)
    training, reference = start_training(task), start_training(task)
    sampler = EpisodeSampler(task.labels, task.train_ids, task.config.shape)
    psi = distances(task, reference, sampler)
    loss = torch.nn.functional.cross_entropy(-psi.flatten(0, 2), task.config.shape.query_labels().repeat(8)) * 2
    loss.backward()  # type: ignore[no-untyped-call]
    for _ in train(task, training):
        pass
    for name, value in reference.model.named_parameters():
        assert value.grad is not None
        step = value.grad if optimizer == "sgd" else value.grad / (value.grad.abs() + 1e-8)
        torch.testing.assert_close(training.model.state_dict()[name], value.detach() - 0.1 * step, rtol=1e-4, atol=1e-5)


def test_a_batch_that_goes_through_the_heads_in_pieces_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(optimizer="sgd", learning_rates=(0.1,), episodes=16, num_val=0)
    whole = run(task)
    monkeypatch.setattr(train_module, "MAX_VALUES", 1)
    pieces = run(task)
    for name, value in weights(whole).items():
        torch.testing.assert_close(pieces.model.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert pieces.log[-1]["loss"] == pytest.approx(whole.log[-1]["loss"], rel=1e-4)


def drift(head: Head) -> float:
    weight, begin = head.get_parameter("weight").detach(), head.get_buffer("begin")
    return float((weight - begin).square().sum() / begin.square().sum())


def test_hold_keeps_heads_near_their_start() -> None:
    drifts = []
    for hold in (0.0, 1.0, 30.0):
        training = run(make_task(hold=hold, num_val=0, episodes=96))
        drifts.append(sum(drift(training.model.head(name)) for name in ("rgb", "flow")))
    assert drifts[0] > 1.1 * drifts[1] > 1.5 * drifts[2] > 0


@pytest.mark.parametrize("widths", [{"rgb": 12}, {"rgb": 12, "flow": 8, "audio": 6}])
def test_any_number_of_modalities_trains(widths: dict[str, int]) -> None:
    task = make_task(widths=widths, episodes=16)
    before, after = weights(start_training(task)), weights(run(replace(task, val_ids=())))
    for name in widths:
        assert not torch.equal(before[f"branches.{name}.head.weight"], after[f"branches.{name}.head.weight"])
        assert torch.equal(before[f"branches.{name}.head.begin"], after[f"branches.{name}.head.begin"])


def test_training_shows_every_stored_view_and_validation_only_the_first() -> None:
    task = make_task(views=2, episodes=16, num_val=0)
    spoiled = {name: values.clone() for name, values in task.features.items()}
    for values in spoiled.values():
        values[:, 1] += 1
    assert equal(weights(start_training(task)), weights(start_training(replace(task, features=spoiled))))
    assert not equal(weights(run(task)), weights(run(replace(task, features=spoiled))))
    still = make_task(views=2, episodes=0)
    one_view = {name: values[:, :1] for name, values in still.features.items()}
    assert run(still).log == run(replace(still, features=one_view)).log


def test_other_classes_are_never_touched() -> None:
    task = make_task(episodes=16)
    spoiled = {name: values.clone() for name, values in task.features.items()}
    for values in spoiled.values():
        values[task.labels >= 9] = torch.nan
    again = run(replace(task, features=spoiled))
    assert equal(weights(run(task)), weights(again))
    for values in spoiled.values():
        values[task.labels >= 6] = torch.nan
    blind = replace(task, val_ids=())
    assert equal(weights(run(blind)), weights(run(replace(blind, features=spoiled))))


# --- the log --------------------------------------------------------------------------------------------------------


def test_the_log_has_a_record_an_interval_with_the_promised_figures() -> None:
    training = run(make_task(episodes=40, interval=16, patience=9))
    assert [record["episodes"] for record in training.log] == [0, 16, 32, 40]
    assert training.log[0].keys() == {"episodes", "validation"}
    figures = {f"{what}/{m}" for what in ("cross-entropy", "accuracy", "free-energy", "group") for m in ("rgb", "flow")}
    for record in training.log[1:]:
        assert record.keys() == {"episodes", "loss", "distillation", "accuracy", "validation"} | figures
        assert 0 <= record["group/rgb"] + record["group/flow"] <= 1 + 1e-6
        assert record["free-energy/rgb"] <= 0


def test_a_record_is_the_mean_over_its_updates() -> None:
    task = make_task(method="temporal-lf", episodes=8, interval=8, num_val=0, hold=0.0, learning_rates=(1e-12,))
    training, reference = start_training(task), start_training(task)
    sampler = EpisodeSampler(task.labels, task.train_ids, task.config.shape)
    labels = task.config.shape.query_labels()
    expected: dict[str, float] = dict.fromkeys(("loss", "accuracy/flow", "free-energy/flow", "group/flow"), 0.0)
    expected["accuracy"] = 0.0
    for _ in range(2):
        with torch.no_grad():
            psi = distances(task, reference, sampler)
        seen = observe(psi, labels)
        for m in range(2):
            log_p = torch.log_softmax(-psi[m], -1)
            expected["loss"] -= log_p.gather(-1, labels.expand(4, 9)[..., None]).mean().item() / 2
        expected["accuracy/flow"] += 50 * (psi[1].argmin(-1) == labels).double().mean().item()
        fused = psi.neg().softmax(-1).sum(0)
        expected["accuracy"] += 50 * (fused.argmax(-1) == labels).double().mean().item()
        expected["free-energy/flow"] += free_energy(seen)[1].mean().item() / 2
        expected["group/flow"] += groups(seen)[1].double().mean().item() / 2
    record = list(train(task, training))[-1]
    assert {name: record[name] for name in expected} == pytest.approx(expected, rel=1e-4)


# --- when it ends ---------------------------------------------------------------------------------------------------


def script(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    """Let validations find these accuracies, in turn, the last one for ever."""
    left = list(accuracies)

    def fixed(*args: Any, **settings: Any) -> Any:
        found = evaluate_scorer(*args, **settings)
        return replace(found, accuracy=left.pop(0) if len(left) > 1 else left[0])

    monkeypatch.setattr(train_module, "evaluate_scorer", fixed)


def snapshots(task: Task) -> tuple[Training, list[tuple[Record, dict[str, Tensor]]]]:
    training = start_training(task)
    return training, [(record, weights(training)) for record in train(task, training)]


def test_it_stops_after_its_patience_with_the_best_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [50, 60, 70, 70, 69, 71])
    training, seen = snapshots(make_task(episodes=160, patience=2))
    assert [record["validation"] for record, _ in seen] == [50, 60, 70, 70, 69]
    assert (training.episodes, training.best_episodes, training.best_accuracy) == (64, 32, 70)
    assert equal(weights(training), seen[2][1])
    assert not equal(weights(training), seen[-1][1])


def test_a_better_validation_renews_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [50, 49, 51, 50, 52, 51, 51])
    training, seen = snapshots(make_task(episodes=160, patience=2))
    assert len(seen) == 7
    assert training.best_episodes == 64


def test_the_start_counts_as_a_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [90, 80])
    task = make_task(episodes=160, patience=3)
    training, seen = snapshots(task)
    assert len(seen) == 4
    assert training.best_episodes == 0
    assert equal(weights(training), weights(start_training(task)))


@pytest.mark.parametrize("method", ["temporal-lf", "amfir"])
def test_the_weights_it_ends_with_have_the_accuracy_it_names(method: str) -> None:
    task = make_task(method=method, episodes=96)
    training = run(task)
    assert max(record["validation"] for record in training.log) == training.best_accuracy
    assert validation_accuracy(task, training) == training.best_accuracy


@pytest.mark.parametrize("num_val", [0, 1])
def test_without_validation_classes_it_runs_to_its_end(num_val: int) -> None:
    training, seen = snapshots(make_task(episodes=160, patience=1, num_val=num_val))
    assert training.episodes == training.best_episodes == 160
    assert equal(weights(training), seen[-1][1])
    assert all("validation" not in record for record, _ in seen)


def test_fewer_validation_classes_than_ways_lower_the_way() -> None:
    task = make_task(episodes=0, num_val=2)
    training = run(task)
    assert training.log[0]["validation"] == validation_accuracy(task, training) > 50


def test_no_episodes_keep_the_start() -> None:
    task = make_task(episodes=0)
    assert equal(weights(run(task)), weights(start_training(task)))


def test_validation_chooses_the_learning_rate() -> None:
    """Each rate trains from the same start, as if it were alone; the best validation of all is kept."""
    rates = (1e-6, 0.01, 3.0)
    alone = [run(make_task(learning_rates=(rate,), episodes=64)) for rate in rates]
    tried = run(make_task(learning_rates=rates, episodes=64))
    best = max(range(3), key=lambda i: alone[i].best_accuracy)
    assert alone[best].best_accuracy > alone[0].best_accuracy
    assert (tried.best_rate, tried.best_episodes) == (best, alone[best].best_episodes)
    assert equal(weights(tried), weights(alone[best]))
    for rate, training in zip(rates, alone, strict=True):
        records = [{**record, "learning-rate": rate} for record in training.log[1:]]
        assert [record for record in tried.log if record.get("learning-rate") == rate] == records


def test_a_rate_that_improves_below_the_best_of_another_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, [50, 80, 79, 78, 40, 45, 50, 55, 56])
    training, seen = snapshots(make_task(learning_rates=(0.01, 0.02), episodes=80, patience=2))
    assert [record["validation"] for record, _ in seen] == [50, 80, 79, 78, 40, 45, 50, 55, 56]
    assert (training.best_rate, training.best_episodes, training.best_accuracy) == (0, 16, 80)


def test_a_loss_that_is_no_number_is_refused_where_nothing_can_choose() -> None:
    with pytest.raises(UserError, match=r"the loss is nan after .*; lower --learning-rate"):
        run(make_task(learning_rates=(1e25,), num_val=0))


def test_without_validation_the_first_rate_is_taken() -> None:
    tried = run(make_task(learning_rates=(0.02, 0.5), num_val=0))
    assert equal(weights(tried), weights(run(make_task(learning_rates=(0.02,), num_val=0))))


# --- seeds and errors -----------------------------------------------------------------------------------------------


def test_a_seed_decides_everything() -> None:
    one, two, other = (run(make_task(seed=seed, views=2)) for seed in (3, 3, 4))
    assert one.log == two.log
    assert equal(weights(one), weights(two))
    assert one.log != other.log
    starts = [start_training(make_task(seed=seed)).model.head("rgb").get_buffer("begin") for seed in (3, 4)]
    assert not torch.equal(*starts)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = run(make_task(episodes=16))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert equal(weights(one), weights(run(make_task(episodes=16))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamx"}, "unknown optimizer 'adamx'; did you mean 'adam'"),
        ({"reduction": "men"}, "unknown reduction 'men'; did you mean 'mean'"),
        ({"batch_episodes": 0}, "batch_episodes is 0"),
        ({"interval": -1}, "interval is -1"),
        ({"validation_episodes": 0}, "validation_episodes is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"episodes": -1}, "episodes is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"learning_rates": (0.1, 0.0)}, "learning rate is 0.1, 0.0"),
        ({"learning_rates": ()}, "learning rate is none"),
    ],
)
def test_settings_that_mean_nothing_are_refused_in_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        TrainConfig(**settings)
    assert "\n" not in str(caught.value)


def test_episodes_that_cannot_be_drawn_are_refused_naming_the_class() -> None:
    with pytest.raises(UserError, match="class 'class 0' has 8 clips"):
        run(make_task(shape=EpisodeShape(3, 1, 8)))
    with pytest.raises(UserError, match="way is 7, but there are 6 classes"):
        run(make_task(shape=EpisodeShape(7, 1, 1)))
