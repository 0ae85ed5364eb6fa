"""Models and trainings on disk: tensors as safetensors, everything else as JSON. Nothing is ever unpickled."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..cache.errors import UserError
from .belief import Belief
from .model import Branch, BranchSpec, Model
from .projection import Projection
from .train import Task, Training, start_training

MODEL = "model"
TRAINING = "training"

NUMBERS = ("log", "rate", "episodes", "best_rate", "best_episodes", "best_accuracy", "rate_accuracy", "stale")
"""What a training knows beside tensors."""


NAMES = ("profile", "split.name", "split.source")
"""What a provenance says for people: equal classes and settings of another name are no other training."""


def save_model(folder: Path, model: Model, provenance: Mapping[str, Any]) -> None:
    """Write `model.json` and the tensors that it names; a killed run leaves the old pair or none.

    Args:
        folder: Exists.
        model: To save.
        provenance: JSON-able: how the model came about.
    """
    tensors = dict(model.state_dict())
    if model.belief is not None:
        tensors |= {f"belief.{name}": value for name, value in model.belief.to_state().items()}
    for modality, projection in model.projections.items():
        tensors |= {f"projection.{modality}.{name}": value for name, value in projection.to_state().items()}
    branches = [asdict(model.branch(name).spec) for name in model.modalities]
    _write(folder, MODEL, tensors, {"branches": branches, "provenance": dict(provenance)})


def load_model(folder: Path) -> tuple[Model, dict[str, Any]]:
    """Return the model of a run, in evaluation mode, and its provenance.

    Raises:
        UserError: If there is none, it is damaged, or of a head or setting that there is no more.
    """
    tensors, data = _read(folder, MODEL)
    with _damage_is_one_line(folder, MODEL):
        branches = [_branch(folder, spec) for spec in data["branches"]]
        belief, projections = _take("belief.", tensors), _take("projection.", tensors)
        names = dict.fromkeys(name.rpartition(".")[0] for name in projections)
        model = Model(
            branches,
            Belief.from_state(belief) if belief else None,
            {name: Projection.from_state(_below(f"{name}.", projections)) for name in names},
        )
        model.load_state_dict(tensors)
        return model.eval(), data["provenance"]


def _branch(folder: Path, spec: Mapping[str, Any]) -> Branch:
    try:
        return Branch(BranchSpec.from_json(spec))
    except UserError as error:
        # The file is whole: what it names was there when it was written.
        raise UserError(
            f"this amfir cannot build the model ({error}); in {folder}; train again into another --run"
        ) from None


def save_training(folder: Path, training: Training, provenance: Mapping[str, Any]) -> None:
    """Write `training.json` and the tensors that it names: all that `load_training` needs."""
    tensors = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in training.best.items()}
    tensors["generator"] = training.generator.get_state()
    for position, values in training.optimizer.state_dict()["state"].items():
        kept = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        tensors |= {f"optimizer.{position}.{name}": value for name, value in kept.items()}
    numbers = {name: getattr(training, name) for name in NUMBERS}
    _write(folder, TRAINING, tensors, {**numbers, "provenance": dict(provenance)})


def load_training(folder: Path, task: Task, provenance: Mapping[str, Any]) -> Training:
    """Take a training up where `save_training` left it.

    Raises:
        UserError: If there is none, it is damaged, or it was started with other settings.
    """
    tensors, data = _read(folder, TRAINING)
    with _damage_is_one_line(folder, TRAINING):
        before, now = _settings(data["provenance"]), _settings(provenance)
    changed = (name for name in {**now, **before} if before.get(name) != now.get(name))
    if different := [name for name in changed if name not in NAMES]:
        name = different[0]
        raise UserError(
            f"{folder} was started with {name} = {before.get(name)}, now {now.get(name)}; "
            "give the same options, or another --run"
        )
    with _damage_is_one_line(folder, TRAINING):
        rate = int(data["rate"])
        training = start_training(task, rate)
    with _damage_is_one_line(folder, TRAINING):
        training.model.load_state_dict(_below("model.", tensors))
        training.best = _below("best.", tensors)
        training.generator.set_state(tensors["generator"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _below("optimizer.", tensors).items():
            position, _, key = name.partition(".")
            state.setdefault(int(position), {})[key] = value
        groups = training.optimizer.state_dict()["param_groups"]
        training.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for name in NUMBERS:
            setattr(training, name, data[name])
    return training


def has_model(folder: Path) -> bool:
    """Whether a model was saved here."""
    return (folder / f"{MODEL}.json").is_file()


def has_training(folder: Path) -> bool:
    """Whether a training was saved here."""
    return (folder / f"{TRAINING}.json").is_file()


def _take(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the tensors below a prefix out of the others."""
    found = _below(prefix, tensors)
    for name in found:
        del tensors[prefix + name]
    return found


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _settings(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested JSON: {"training": {"seed": 0}} -> {"training.seed": 0}."""
    if not isinstance(value, Mapping):
        return {name: value}
    return {k: v for key, part in value.items() for k, v in _settings(part, f"{name}.{key}" if name else key).items()}


def _write(folder: Path, name: str, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> None:
    """Write the tensors under a new name, then the JSON that names them: renaming it is what makes both current."""
    packed = save({key: value.contiguous() for key, value in tensors.items()})
    new = folder / f"{name}-{_digest(packed, data)}.safetensors"
    _put(new, packed)
    _put(folder / f"{name}.json", (json.dumps({**data, "tensors": new.name}, indent=2) + "\n").encode())
    for old in folder.glob(f"{name}-*.safetensors"):
        if old != new:
            old.unlink()


def _put(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _digest(packed: bytes, data: Mapping[str, Any]) -> str:
    """Hash of both files' contents: a change in either is noticed."""
    digest = hashlib.sha256(packed)
    digest.update(json.dumps(data).encode())
    return digest.hexdigest()[:32]


def _read(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not (folder / f"{name}.json").is_file():
        raise UserError(f"no {name} in {folder}; make one with: amfir train CACHE --split SPLIT --run {folder}")
    with _damage_is_one_line(folder, name):
        data = json.loads((folder / f"{name}.json").read_bytes())
        file = data.pop("tensors")
        packed = (folder / Path(file).name).read_bytes()
        if file != f"{name}-{_digest(packed, data)}.safetensors":
            raise ValueError("its contents changed since they were written")
        return load(packed), data


@contextlib.contextmanager
def _damage_is_one_line(folder: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} is damaged ({reason}); in {folder}; train again into another --run") from error
