"""Meta-training: episodes of base classes teach the heads, each by its labels and by the more reliable modality."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..cache.errors import UserError, pick
from .active import Observation, free_energy, fuse, observe
from .episodes import Episodes, EpisodeSampler, EpisodeShape
from .evaluate import EvaluationConfig, evaluate_scorer
from .methods import Method
from .model import Features, Model, build_model
from .objective import REDUCTIONS, Objective, objective
from .profiles import Profile

Parameters = list[torch.nn.Parameter]

OPTIMIZERS: dict[str, Callable[[Parameters, float, "TrainConfig"], torch.optim.Optimizer]] = {
    "adamw": lambda p, r, c: torch.optim.AdamW(p, lr=r, weight_decay=c.weight_decay),
    "adam": lambda p, r, c: torch.optim.Adam(p, lr=r, weight_decay=c.weight_decay),
    "sgd": lambda p, r, c: torch.optim.SGD(p, lr=r, momentum=c.momentum, weight_decay=c.weight_decay),
}
"""`sgd` is the papers' (method section 4)."""

MAX_VALUES = 2**24
"""Numbers that the heads may hold at their peak for the episodes that go through them at once."""


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast to meta-train."""

    shape: EpisodeShape = field(default_factory=EpisodeShape)
    """Way, shot and query of the episodes."""
    episodes: int = 2000
    """Training episodes at most; 0 keeps the start."""
    batch_episodes: int = 16
    """Episodes of one update."""
    optimizer: str = "adamw"
    """A key of `OPTIMIZERS`."""
    learning_rates: tuple[float, ...] = (1e-3,)
    """Step sizes; several are tried one after another, each for as many episodes, and validation chooses."""
    weight_decay: float = 0.0
    """Of the optimiser."""
    momentum: float = 0.0
    """Of `sgd`."""
    reduction: str = "mean"
    """A key of `REDUCTIONS`: how the loss reduces over an episode's queries."""
    interval: int = 160
    """Episodes between two validations, and between two records of the log."""
    validation_episodes: int = 600
    """Validation episodes; the same ones each time."""
    patience: int = 5
    """Validations without a better accuracy before training stops."""
    seed: int = 0
    """Seed of the start, the episodes and the views."""

    def __post_init__(self) -> None:
        """Refuse unknown names and counts that mean nothing."""
        pick(OPTIMIZERS, self.optimizer, "optimizer")
        pick(REDUCTIONS, self.reduction, "reduction")
        for name in ("batch_episodes", "interval", "validation_episodes", "patience"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; training needs at least 1; raise it")
        for name in ("episodes", "seed", "weight_decay", "momentum"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it cannot be negative; give 0 or more")
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            shown = ", ".join(map(str, self.learning_rates)) or "none"
            raise UserError(f"learning rate is {shown}; each must be above 0 and finite; give 0.001 or the like")


Record = dict[str, float]
"""One line of the training log: episodes, loss, and per modality cross-entropy, accuracy, free energy, group share."""


@dataclass(eq=False)
class Training:
    """A training under way: all that a resumed one needs to end bit by bit like an undisturbed one."""

    model: Model
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    """Draws episodes and views."""
    best: dict[str, Tensor]
    """Weights of the best validation so far, the present ones where there is none."""
    log: list[Record] = field(default_factory=list)
    """Records so far, the first one at 0 episodes."""
    rate: int = 0
    """Position of the present learning rate in the configuration."""
    episodes: int = 0
    """Episodes trained at it."""
    best_rate: int = 0
    """Position of the rate behind `best`."""
    best_episodes: int = 0
    """Episodes behind `best`, at that rate."""
    best_accuracy: float = -1.0
    """Validation accuracy of `best` in percent."""
    rate_accuracy: float = -1.0
    """Best validation accuracy at the present rate."""
    stale: int = 0
    """Validations at the present rate since its best one."""


@dataclass(frozen=True, eq=False)
class Task:
    """What to train, on which clips."""

    features: Features
    """Modality -> [clips, views, T, D]."""
    labels: Tensor
    """Class ids [clips]."""
    train_ids: Sequence[int]
    """Classes of the training episodes."""
    val_ids: Sequence[int]
    """Classes of the validation episodes; with fewer than two, training runs to its end without validation."""
    class_names: Sequence[str]
    """`class_names[i]` names class id i."""
    method: Method
    """What to train."""
    profile: Profile
    """Hyperparameters of its heads; those of its training are in `config`."""
    config: TrainConfig
    """How."""

    @property
    def num_views(self) -> int:
        """Stored views of each clip."""
        return next(iter(self.features.values())).shape[1]

    def clips_of(self, class_ids: Sequence[int]) -> Tensor:
        """Indices of the clips of some classes."""
        return torch.nonzero(torch.isin(self.labels, torch.tensor(list(class_ids)))).flatten()


def start_training(task: Task, rate: int = 0) -> Training:
    """Build the model at its start; start and episodes have a generator each, both of the seed.

    Args:
        task: What to train.
        rate: Position of the learning rate.
    """
    for_start, for_episodes = (_generator(task.config.seed, stream) for stream in range(2))
    model = build_model(
        task.features, task.labels, task.train_ids, task.method, task.profile, for_start, task.config.seed
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A head without parameters trains nothing, and an optimiser refuses an empty list.
    parameters = trained or [torch.nn.Parameter(torch.zeros(()))]
    optimizer = OPTIMIZERS[task.config.optimizer](parameters, task.config.learning_rates[rate], task.config)
    return Training(model, optimizer, for_episodes, _weights(model), rate=rate)


def train(task: Task, training: Training) -> Iterator[Record]:
    """Go on with a training to its end, an interval at a time; the caller may save it between two records.

    Yields:
        The record of each interval, the start's first; they are in `training.log` too.

    Raises:
        UserError: If the episodes cannot be drawn.
    """
    sampler = EpisodeSampler(task.labels, task.train_ids, task.config.shape, task.class_names)
    if not training.log:
        training.log.append({"episodes": 0.0, **_validate(task, training)})
        yield training.log[-1]
    while True:
        while training.episodes < task.config.episodes and training.stale < task.config.patience:
            record = _train_interval(task, training, sampler)
            _check_finite(task, training, record)
            training.log.append({**_where(task, training), **record, **_validate(task, training)})
            yield training.log[-1]
        if not _next_rate(task, training):
            break
    training.model.load_state_dict(training.best)


def _check_finite(task: Task, training: Training, record: Record) -> None:
    """Refuse to end at chance without a word; where validation chooses, a rate that diverged is not chosen.

    Raises:
        UserError: If the loss is no number any more and nothing was validated before.
    """
    if not math.isfinite(record["loss"]) and not validates(task):
        rate = task.config.learning_rates[training.rate]
        raise UserError(
            f"the loss is {record['loss']} after {training.episodes} episodes; lower --learning-rate {rate}"
        )


def _where(task: Task, training: Training) -> Record:
    episodes = {"episodes": float(training.episodes)}
    rates = task.config.learning_rates
    return {"learning-rate": rates[training.rate], **episodes} if len(rates) > 1 else episodes


def _next_rate(task: Task, training: Training) -> bool:
    """Begin anew at the next learning rate, if there is one and validation classes to choose by."""
    if training.rate + 1 == len(task.config.learning_rates) or not validates(task) or not task.config.episodes:
        return False
    new = start_training(task, training.rate + 1)
    training.model, training.optimizer, training.generator = new.model, new.optimizer, new.generator
    training.rate, training.episodes, training.stale, training.rate_accuracy = new.rate, 0, 0, -1.0
    return True


def validates(task: Task) -> bool:
    """Whether there are validation classes enough to tell apart."""
    return len(task.val_ids) > 1


def _train_interval(task: Task, training: Training, sampler: EpisodeSampler) -> Record:
    """Train until the next multiple of the interval; the mean of what was seen."""
    config = task.config
    goal = min(config.episodes, (training.episodes // config.interval + 1) * config.interval)
    steps = []
    while training.episodes < goal:
        batch = min(config.batch_episodes, goal - training.episodes)
        steps.append(_step(task, training, sampler, batch))
        training.episodes += batch
    return {name: float(np.mean([step[name] for step in steps])) for name in steps[0]}


def _step(task: Task, training: Training, sampler: EpisodeSampler, batch: int) -> Record:
    """One update; the batch goes through the heads in pieces that fit the memory, which add their gradients."""
    model, shape = training.model.train(), task.config.shape
    episodes = sampler.sample(batch, training.generator, task.num_views if task.num_views > 1 else None)
    training.optimizer.zero_grad()
    piece = max(1, MAX_VALUES // model.footprint(shape.way, shape.shot, shape.way * shape.query))
    with _dropout_of(task.config.seed, training.episodes):
        records = [_learn(task, model, episodes[start : start + piece], batch) for start in range(0, batch, piece)]
    penalty = model.penalty()
    if penalty.requires_grad:
        penalty.backward()  # type: ignore[no-untyped-call]
    training.optimizer.step()
    return {name: sum(share * record[name] for share, record in records) for name in records[0][1]}


@contextmanager
def _dropout_of(seed: int, episodes: int) -> Iterator[None]:
    """Draw dropout from a seed of its own for each update, since layers know the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_generator(seed, 2 + episodes).initial_seed())
        yield


def _learn(task: Task, model: Model, episodes: Episodes, batch: int) -> tuple[float, Record]:
    """Add the gradient of some of a batch's episodes; their share of the batch, and what was seen."""
    share = len(episodes) / batch
    labels = task.config.shape.query_labels()
    psi, losses = model.learn(task.features, episodes, labels, _base_classes(task, episodes))
    seen = observe(psi, labels.to(psi.device))
    settings = replace(task.method.objective, reduction=task.config.reduction)
    parts = objective(seen, model.modalities, settings, losses)
    if parts.total.requires_grad:
        (share * parts.total).backward()  # type: ignore[no-untyped-call]
    return share, _describe(seen, parts, model.modalities, task.method)


def _base_classes(task: Task, episodes: Episodes) -> Tensor:
    """Place of each episode's classes among the training classes, [B, N]."""
    place = torch.full((len(task.class_names),), -1)
    place[torch.tensor(list(task.train_ids))] = torch.arange(len(task.train_ids))
    return place[task.labels[episodes.support[..., 0]]]


@torch.no_grad()
def _describe(seen: Observation, parts: Objective, modalities: Sequence[str], method: Method) -> Record:
    assert seen.labels is not None
    right = seen.psi.argmin(-1).eq(seen.labels).float().mean((1, 2))
    fused = fuse(seen, method.fusion)[0]
    energies, shares = free_energy(seen).mean((1, 2)), parts.groups.float().mean((1, 2))
    record = {
        "loss": parts.total.item(),
        "distillation": parts.distillation.sum().item(),
        "accuracy": 100 * fused.argmax(-1).eq(seen.labels).float().mean().item(),
    }
    for m, name in enumerate(modalities):
        record[f"cross-entropy/{name}"] = parts.cross_entropy[m].item()
        record[f"accuracy/{name}"] = 100 * right[m].item()
        record[f"free-energy/{name}"] = energies[m].item()
        record[f"group/{name}"] = shares[m].item()
    return record


def _validate(task: Task, training: Training) -> Record:
    """Accuracy on the validation classes, kept if it is the best; without them the newest weights are the best."""
    model = training.model.eval()
    if not validates(task):
        training.best, training.best_episodes = _weights(model), training.episodes
        return {}
    shape, clips = task.config.shape, task.clips_of(task.val_ids)
    config = EvaluationConfig(
        EpisodeShape(min(shape.way, len(task.val_ids)), shape.shot, shape.query),
        task.config.validation_episodes,
        fusion=task.method.fusion,
    )
    result = evaluate_scorer(
        model.scorer(task.features, clips), task.labels[clips], task.val_ids, config, class_names=task.class_names
    )
    if result.accuracy > training.best_accuracy:
        training.best, training.best_episodes, training.best_rate = _weights(model), training.episodes, training.rate
        training.best_accuracy = result.accuracy
    better = result.accuracy > training.rate_accuracy
    training.stale = 0 if better else training.stale + 1
    training.rate_accuracy = max(training.rate_accuracy, result.accuracy)
    return {"validation": result.accuracy}


def _weights(model: Model) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _generator(seed: int, stream: int) -> torch.Generator:
    state: Any = np.random.SeedSequence((seed, stream)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
