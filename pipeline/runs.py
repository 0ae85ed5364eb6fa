"""Training and evaluating on a cache: what the commands `train`, `eval` and `demo` share."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..cache.errors import UserError
from ..meta.active import fuse, observe
from ..meta.baseline import untrained_embeddings, untrained_temperatures
from ..meta.calibrate import calibrate
from ..meta.checkpoint import has_model, has_training, load_model, load_training, save_model, save_training
from ..meta.evaluate import Evaluation, EvaluationConfig, evaluate
from ..meta.heads import HeadConfig
from ..meta.methods import Method
from ..meta.objective import objective
from ..meta.threads import one_thread
from ..meta.train import Record, Task, TrainConfig, Training, start_training, train
from .features import FeatureSet, require_disjoint, require_specs
from .plots import plot_curves
from .splits import ClassSplit

Progress = Callable[[int, int, str], None]
"""Called with the episodes trained, their greatest number, and a note."""


@one_thread()
def train_run(
    data: FeatureSet,
    split: ClassSplit,
    folder: Path,
    method: Method,
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
) -> Training:
    """Train a model, saving the training after every interval and the model, log and curves at the end.

    Args:
        data: Features of all classes.
        split: Its test classes are never touched.
        folder: The run's directory; created.
        method: What to train.
        config: How.
        resume: Go on with the training saved in the folder, from the start if it was interrupted before the first save.
        progress: Told after every interval.

    Returns:
        The training at its end; its model is calibrated and in evaluation mode.

    Raises:
        UserError: If the folder holds a training and `resume` is not set, or it is one of other settings, or the method
            or episodes do not fit the data.
    """
    _try_out(method, list(data.features))
    names = split.hold_out(seed=config.seed)
    train_ids, val_ids = (data.ids(part) for part in names)
    task = Task(data.features, data.labels, train_ids, val_ids, data.class_names, method, HeadConfig(), config)
    provenance = _provenance(data, split, names, method, task)
    training = _begin(folder, task, provenance, resume)
    for record in train(task, training):
        save_training(folder, training, provenance)
        if progress:
            progress(training.episodes, config.episodes, _note(record))
    if progress:
        progress(training.episodes, config.episodes, "calibrating")
    calibrate(training.model, task, training.best_episodes)
    write_log(folder / "log.csv", training.log)
    plot_curves(training.log, training.model.modalities, folder / "curves.png")
    # Last, because a folder with a model counts as finished.
    save_model(folder, training.model.eval(), provenance)
    return training


@one_thread()
def evaluate_run(data: FeatureSet, split: ClassSplit, folder: Path, config: EvaluationConfig) -> Evaluation:
    """Evaluate a run's model on the split's test classes.

    Raises:
        UserError: If there is no model, or the cache or split does not fit it.
    """
    model, provenance = load_model(folder)
    require_specs(provenance, data, folder)
    require_disjoint(provenance, split, folder)
    return evaluate(
        model.embed(data.features),
        data.labels,
        data.ids(split.test),
        config,
        method=provenance["method"],
        temperatures=model.temperatures,
        belief=model.belief,
        class_names=data.class_names,
    )


@one_thread()
def evaluate_untrained(data: FeatureSet, split: ClassSplit, config: EvaluationConfig) -> Evaluation:
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
    data: FeatureSet, split: ClassSplit, names: Sequence[Sequence[str]], method: Method, task: Task
) -> dict[str, Any]:
    train_names, val_names = names
    made = {
        "method": method.name,
        "split": {"name": split.name, "source": split.source, "train": train_names, "val": val_names},
        "streams": list(data.features),
        "training": asdict(task.config),
        "head": asdict(task.head),
        "objective": asdict(method.objective),
        "fusion": method.fusion,
        "specs": {name: spec.to_json() for name, spec in data.specs.items()},
        "versions": {name: version(name) for name in ("amfir", "torch")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(made))
    return plain


def _note(record: Record) -> str:
    return f"validation {record['validation']:.1f} %" if "validation" in record else ""
