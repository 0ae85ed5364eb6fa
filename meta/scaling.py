"""Temperature scaling on validation classes: an option beside the temperatures that a calibrated run has.

A calibrated run has temperatures from folds of its base classes, each seen by heads trained on the other folds
(`calibrate`): other heads than the model's, on fewer classes. The classical way (Guo et al., "On Calibration of Modern
Neural Networks", ICML 2017, section 4.2) fits the model's own heads on classes held out from training. Those are fewer,
and have chosen the model's learning rate and its best episode, so their posteriors are a little too good.

Every criterion, certainty and AMI weight is a function of psi, which includes the temperature. So does what a belief
was fitted on: with other temperatures it is fitted anew, on the very episodes that gave them; without, it is dropped.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ..cache.errors import UserError, pick
from .belief import fit_belief
from .calibrate import FOLD_EPISODES
from .episodes import EpisodeSampler, EpisodeShape
from .evaluate import EvaluationConfig, score_episodes
from .model import Features, Model
from .prototypes import Scores
from .temperature import fit_temperature, fitting_episodes

TEMPERATURES = ("run", "none", "validation")
"""The run's own; 1 for every modality; fitted on the run's validation classes."""


def rescale(
    model: Model,
    temperatures: str,
    provenances: Sequence[Mapping[str, Any]],
    features: Features,
    labels: Tensor,
    class_names: Sequence[str],
    config: EvaluationConfig,
) -> None:
    """Give a run's model, or that of several runs together, the temperatures that were asked for.

    Args:
        model: In evaluation mode.
        temperatures: One of `TEMPERATURES`.
        provenances: Of the runs.
        features: Of all clips, projected as the model wants them.
        labels: Class ids [clips].
        class_names: `class_names[i]` names class id i.
        config: What is evaluated: its shape and seed are those of the validation episodes.

    Raises:
        UserError: If the name is unknown, or there are no temperatures to be had from the runs' validation classes.
    """
    pick(dict.fromkeys(TEMPERATURES), temperatures, "temperature")
    if temperatures == "none":
        drop_temperatures(model)
    if temperatures == "validation":
        ids = validation_ids(provenances, class_names)
        use_validation_temperatures(
            model, features, labels, ids, config.shape, seed=config.seed, class_names=class_names
        )


def use_validation_temperatures(
    model: Model,
    features: Features,
    labels: Tensor,
    val_ids: Sequence[int],
    shape: EpisodeShape,
    *,
    episodes: int = FOLD_EPISODES,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> None:
    """Give each branch the temperature with the least cross-entropy on episodes of the validation classes.

    If the model has a belief, it gets another one from the same episodes.

    Args:
        model: In evaluation mode.
        features: Of all clips, projected as the model wants them.
        labels: Class ids [clips].
        val_ids: Classes that trained none of the model's heads.
        shape: Of the episodes; with fewer validation classes than its way, all of them make an episode.
        episodes: How many, where their distances are not too many.
        seed: Of the episodes.
        class_names: `class_names[i]` names class id i in errors.

    Raises:
        UserError: If there are fewer than two classes, or one has too few clips, or a modality is right in every
            query, so that no temperature fits best.
    """
    shape = _at_most(shape, val_ids)
    config = EvaluationConfig(shape, fitting_episodes(shape, episodes), seed)
    psi, centre = _scores(model, features, labels, val_ids, config, class_names)
    temperatures = _fit(model, Scores(psi, centre), shape)
    model.set_temperatures(temperatures)
    if model.belief is not None:
        factors = torch.tensor([temperatures[name] for name in model.modalities])[:, None, None]
        model.belief = fit_belief(psi * factors[..., None], centre * factors, shape.query_labels())


def drop_temperatures(model: Model) -> None:
    """Take the heads' distances as they are: every temperature 1, and no belief."""
    model.set_temperatures(dict.fromkeys(model.modalities, 1.0))
    model.belief = None


def validation_ids(provenances: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> list[int]:
    """Class ids of the classes that runs held out from their training.

    Args:
        provenances: Of runs that are used together; a class counts that all of them held out.
        class_names: Of the cache; `class_names[i]` names class id i.

    Raises:
        UserError: If fewer than two such classes are in the cache.
    """
    held = set.intersection(*(set(provenance["split"]["val"]) for provenance in provenances))
    ids = [class_id for class_id, name in enumerate(class_names) if name in held]
    if len(ids) < 2:
        many = "no validation classes" if not held else f"{len(held)} validation classes, {len(ids)} in this cache"
        raise UserError(
            f"the run held out {many}; its temperatures can be fitted on two or more; keep its own, or train with a "
            "split that names val classes"
        )
    return ids


def _at_most(shape: EpisodeShape, class_ids: Sequence[int]) -> EpisodeShape:
    if len(class_ids) < 2:
        raise UserError(
            f"{len(class_ids)} validation classes; temperatures are fitted on two or more; keep the run's own"
        )
    return EpisodeShape(min(shape.way, len(class_ids)), shape.shot, shape.query)


def _scores(
    model: Model,
    features: Features,
    labels: Tensor,
    class_ids: Sequence[int],
    config: EvaluationConfig,
    class_names: Sequence[str] | None,
) -> Scores:
    """Distances at temperature 1."""
    clips = torch.isin(labels, torch.tensor(list(class_ids))).nonzero().flatten()
    sampler = EpisodeSampler(labels[clips], class_ids, config.shape, class_names)
    plain = deepcopy(model)
    drop_temperatures(plain)
    return score_episodes(plain.scorer(features, clips), sampler, config)


def _fit(model: Model, scores: Scores, shape: EpisodeShape) -> dict[str, float]:
    labels = shape.query_labels()
    found = {}
    for name, psi in zip(model.modalities, scores.psi, strict=True):
        if bool((psi.argmin(-1) == labels).all()):
            raise UserError(
                f"{name} is right in every query of the {shape.way} validation classes, so no temperature fits best; "
                "keep the run's own, or hold out more classes"
            )
        found[name] = fit_temperature(psi, labels)
    return found
