"""Training and evaluating on a cache: what the commands `train`, `eval`, `compare` and `demo` share."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..cache.errors import UserError, pick
from ..meta.active import FUSIONS, fuse, observe
from ..meta.baseline import untrained_embeddings, untrained_temperatures
from ..meta.calibrate import calibrate
from ..meta.checkpoint import has_model, has_training, load_model, load_training, save_model, save_training
from ..meta.confusable import class_means
from ..meta.embedded import embed_clips, has_prototypes
from ..meta.episodes import EpisodeShape
from ..meta.evaluate import (
    Engine,
    Evaluation,
    EvaluationConfig,
    evaluate,
    evaluate_scorer,
    here,
    make_sampler,
)
from ..meta.generalised import Generalised, evaluate_generalised
from ..meta.heads import fit_value
from ..meta.methods import Method, parse_method
from ..meta.model import Model, branch_specs
from ..meta.objective import objective
from ..meta.profiles import Profile, load_profile
from ..meta.scaling import rescale
from ..meta.tally import Counts
from ..meta.threads import one_thread
from ..meta.train import Record, Task, TrainConfig, Training, start_training, train, validates
from .features import FeatureSet, apply_projections, require_disjoint, require_specs
from .plots import plot_curves
from .splits import ClassSplit

Progress = Callable[[int, int, str], None]
"""Called with the episodes trained, their greatest number, and a note."""

Watch = Callable[[Counts], None]
"""Called with the counts of each block of an evaluation, in order."""


@dataclass(frozen=True)
class RunPlan:
    """What the user asked to train."""

    method: str = "amfir"
    """As `meta.methods.parse_method` reads it."""
    shape: EpisodeShape = field(default_factory=EpisodeShape)
    """Episodes; where the profile says how many queries training takes, that counts."""
    profile: str = "fair"
    """A profile of the method's head."""
    settings: tuple[str, ...] = ()
    """Over the profile: `head.NAME=VALUE`, `training.NAME=VALUE`."""
    episodes: int = 2000
    """Training episodes at most."""
    seed: int = 0
    """Seed of everything random."""
    criterion: str | None = None
    """Instead of the method's."""
    strategy: str | None = None
    """Instead of the method's."""
    fusion: str | None = None
    """Instead of the method's."""

    def read_method(self) -> Method:
        """The method with what is given instead of its own.

        Raises:
            UserError: If a name is unknown.
        """
        given = {"criterion": self.criterion, "strategy": self.strategy}
        method = parse_method(self.method).with_objective(**{name: value for name, value in given.items() if value})
        if self.fusion:
            pick(FUSIONS, self.fusion, "fusion")
            method = replace(method, fusion=self.fusion)
        return method

    def read_profile(self) -> Profile:
        """Hyperparameters of the method's head and its training.

        Raises:
            UserError: If the profile or a setting is unknown.
        """
        return load_profile(self.read_method().head, self.profile, self.settings)

    def train_config(self) -> TrainConfig:
        """How to train.

        Raises:
            UserError: If a setting is unknown, or of the wrong kind.
        """
        settings = dict(self.read_profile().training)
        shape = replace(self.shape, query=fit_value("training.query", settings.pop("query", self.shape.query), 1))
        plain = TrainConfig(shape, self.episodes, seed=self.seed)
        known = {f.name: f.name for f in fields(TrainConfig) if f.name not in ("shape", "episodes", "seed")}
        for name in settings:
            pick({**known, "query": "query"}, name, "setting of training")
        return replace(
            plain,
            **{name: fit_value(f"training.{name}", value, getattr(plain, name)) for name, value in settings.items()},
        )


@one_thread()
def train_run(
    data: FeatureSet,
    split: ClassSplit,
    folder: Path,
    plan: RunPlan,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Training:
    """Train a model, saving the training after every interval and the model, log and curves at the end.

    Args:
        data: Features of all classes.
        split: Its test classes are never touched.
        folder: The run's directory; created.
        plan: What to train, and how.
        resume: Go on with the training saved in the folder, from the start if it was interrupted before the first save.
        progress: Told after every interval.

    Returns:
        The training at its end; its model is in evaluation mode, and calibrated where its method asks for it.

    Raises:
        UserError: If the folder holds a training and `resume` is not set, or it is one of other settings, or the plan
            does not fit the data.
    """
    task, names = _task(data, split, plan)
    provenance = _provenance(data, split, names, plan, task)
    training = _begin(folder, task, provenance, resume)
    total = task.config.episodes * (len(task.config.learning_rates) if validates(task) else 1)
    for record in train(task, training):
        save_training(folder, training, provenance)
        if progress:
            progress(training.rate * task.config.episodes + training.episodes, total, _note(record))
    if task.method.calibrated:
        if progress:
            progress(total, total, "calibrating")
        calibrate(training.model, task, training.best_episodes, training.best_rate)
    training.model.projections = dict(data.projections)
    write_log(folder / "log.csv", training.log)
    plot_curves(training.log, training.model.modalities, folder / "curves.png")
    # Last, because a folder with a model counts as finished.
    save_model(folder, training.model.eval(), provenance)
    return training


def _task(data: FeatureSet, split: ClassSplit, plan: RunPlan) -> tuple[Task, Sequence[Sequence[str]]]:
    """What to train, and the names of its training and validation classes; all that can be refused early is."""
    method, profile = plan.read_method(), plan.read_profile()
    names = split.hold_out(seed=plan.seed)
    train_ids, val_ids = (data.ids(part) for part in names)
    specs = branch_specs(data.features, method, profile, len(train_ids))
    _try_out(method, [spec.name for spec in specs])
    config = plan.train_config()
    return Task(data.features, data.labels, train_ids, val_ids, data.class_names, method, profile, config), names


@one_thread()
def evaluate_run(
    data: FeatureSet,
    split: ClassSplit,
    folders: Sequence[Path],
    config: EvaluationConfig,
    *,
    temperature: str = "run",
    engine: Engine = here,
    watch: Watch | None = None,
) -> Evaluation:
    """Evaluate a run's model on the split's test classes, or several runs fused late.

    Args:
        data: With the modalities that the runs look at.
        split: Its test classes.
        folders: One run, or runs of a modality each.
        config: Episodes and fusion.
        temperature: One of `meta.scaling.TEMPERATURES`.
        engine: Runs the blocks of episodes.
        watch: Told the counts of each block, in order.

    Raises:
        UserError: If there is no model, or the cache or split does not fit it, or two runs look at one modality, or
            the runs have no validation classes to fit temperatures on.
    """
    model, made = _load_runs(data, split, folders)
    ready = apply_projections(data, model.projections)
    rescale(model, temperature, made, ready.features, data.labels, data.class_names, config)
    clips, novel = ready.clips_of(split.test), data.ids(split.test)
    return evaluate_scorer(
        model.scorer(ready.features, clips),
        data.labels[clips],
        novel,
        config,
        method=" | ".join(dict.fromkeys(provenance["method"] for provenance in made)),
        belief=model.belief,
        class_names=data.class_names,
        means=_means(model, ready, clips, novel) if config.sampler == "hard" else None,
        engine=engine,
        watch=watch,
    )


@one_thread()
def evaluate_run_generalised(
    data: FeatureSet,
    split: ClassSplit,
    folders: Sequence[Path],
    config: EvaluationConfig,
    *,
    temperature: str = "run",
    engine: Engine = here,
) -> Generalised:
    """Evaluate a run, or several fused late, over base and novel prototypes together; arguments as `evaluate_run` has.

    The base classes are those that the runs were trained and validated on.

    Raises:
        UserError: As `evaluate_run`, or if a head has no vector prototypes, or the cache lacks a base class.
    """
    model, made = _load_runs(data, split, folders)
    ready = apply_projections(data, model.projections)
    rescale(model, temperature, made, ready.features, data.labels, data.class_names, config)
    names = dict.fromkeys(name for one in made for name in (*one["split"]["train"], *one["split"]["val"]))
    if lacking := [name for name in names if name not in data.class_names]:
        raise UserError(f"no clip of base class {lacking[0]!r}; --generalised; use the cache the run was trained on")
    base, novel = data.ids(list(names)), data.ids(split.test)
    used = ready.clips_of([*names, *split.test])
    space = embed_clips(model, ready.features, used)
    labels = data.labels[used]
    means = class_means(space.embeddings, labels, novel, space.temperatures) if config.sampler == "hard" else None
    return evaluate_generalised(
        space,
        labels,
        base,
        novel,
        config,
        sampler=make_sampler(labels, novel, config, means, data.class_names),
        belief=model.belief,
        class_names=data.class_names,
        engine=engine,
    )


def _load_runs(
    data: FeatureSet, split: ClassSplit, folders: Sequence[Path]
) -> tuple[Model, Sequence[Mapping[str, Any]]]:
    """The model of a run, or one of all runs' branches, and how each run was made."""
    loaded = [load_model(folder) for folder in folders]
    for folder, (_, provenance) in zip(folders, loaded, strict=True):
        require_specs(provenance, data, folder)
        require_disjoint(provenance, split, folder)
    model = loaded[0][0] if len(loaded) == 1 else _together([model for model, _ in loaded], folders)
    return model, [provenance for _, provenance in loaded]


def _means(model: Model, data: FeatureSet, clips: Tensor, class_ids: Sequence[int]) -> Tensor:
    """Means of the classes where the run's heads see them; where a head has no vectors, of its frozen features."""
    labels = data.labels[clips]
    if has_prototypes(model):
        space = embed_clips(model, data.features, clips)
        return class_means(space.embeddings, labels, class_ids, space.temperatures)
    own = {name: data.features[name][clips] for name in model.streams}
    return class_means(untrained_embeddings(own, labels, class_ids), labels, class_ids)


def _together(models: Sequence[Model], folders: Sequence[Path]) -> Model:
    """One model of all branches, without a belief: nobody fitted one on them together."""
    branches = [model.branch(name) for model in models for name in model.modalities]
    require_own_streams(models, folders)
    projections = {name: projection for model in models for name, projection in model.projections.items()}
    return Model(branches, projections=projections).eval()


def require_own_streams(models: Sequence[Model], folders: Sequence[Path]) -> None:
    """Refuse runs that share a modality.

    Raises:
        UserError: Naming it.
    """
    names = [name for model in models for name in model.streams]
    if len(set(names)) < len(names):
        raise UserError(
            f"two runs look at {max(names, key=names.count)}; {folders[0]} ...; give a run for each modality"
        )


@one_thread()
def evaluate_untrained(
    data: FeatureSet,
    split: ClassSplit,
    config: EvaluationConfig,
    *,
    engine: Engine = here,
    watch: Watch | None = None,
) -> Evaluation:
    """Evaluate nearest prototypes of the frozen features, standardised and tempered on the base classes."""
    base = data.ids((*split.train, *split.val))
    embeddings = untrained_embeddings(data.features, data.labels, base)
    return evaluate(
        embeddings,
        data.labels,
        data.ids(split.test),
        config,
        method="untrained",
        temperatures=untrained_temperatures(embeddings, data.labels, base, config, data.class_names),
        class_names=data.class_names,
        engine=engine,
        watch=watch,
    )


def write_log(path: Path, log: Sequence[Record]) -> None:
    """Write the records as CSV, a column a figure; what a record lacks stays empty."""
    columns = list(dict.fromkeys(name for record in log for name in record))
    lines = [",".join(f"{record[name]:.6g}" if name in record else "" for name in columns) for record in log]
    path.write_text("\n".join([",".join(columns), *lines]) + "\n", encoding="utf-8")


def _try_out(method: Method, modalities: Sequence[str]) -> None:
    """Refuse a criterion, strategy or fusion that training lacks the input for, before anything is computed."""
    seen = observe(torch.zeros(len(modalities), 1, 2, 2), torch.arange(2))
    objective(seen, modalities, method.objective)
    fuse(seen, method.fusion, method.objective.criterion)


def _begin(folder: Path, task: Task, provenance: dict[str, Any], resume: bool) -> Training:
    if resume and has_training(folder):
        return load_training(folder, task, provenance)
    if has_training(folder) or has_model(folder):
        raise UserError(f"{folder} already holds a run; add --resume to go on with it, or choose another --run")
    training = start_training(task)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder} is no directory; --run; choose another one") from None
    return training


def _provenance(
    data: FeatureSet, split: ClassSplit, names: Sequence[Sequence[str]], plan: RunPlan, task: Task
) -> dict[str, Any]:
    train_names, val_names = names
    made = {
        "method": task.method.name,
        "profile": plan.profile,
        "split": {"name": split.name, "source": split.source, "train": train_names, "val": val_names},
        "streams": list(data.features),
        "training": asdict(task.config),
        "head": {"name": task.method.head, **task.profile.head},
        "early": dict(task.profile.early),
        "objective": asdict(task.method.objective),
        "fusion": task.method.fusion,
        "specs": {name: spec.to_json() for name, spec in data.specs.items()},
        "projection": {name: projection.dim for name, projection in data.projections.items()},
        "versions": {name: version(name) for name in ("amfir", "torch")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(made))
    return plain


def _note(record: Record) -> str:
    return f"validation {record['validation']:.1f} %" if "validation" in record else ""
