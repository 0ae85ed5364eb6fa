"""Reliability: do the criteria know which modality is right, do the weights follow the gain, are posteriors calibrated?

The papers choose and weigh modalities by what their posteriors say of themselves, and show accuracies only. Here AMFIR
is asked, on the tables' own episodes, how often that is right; at three temperatures, since nothing compares two
modalities whose posteriors are not on one scale (method section 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...cache.errors import UserError
from ...meta.active import Observation, fuse
from ...meta.checkpoint import load_model
from ...meta.episodes import EpisodeSampler
from ...meta.evaluate import EvaluationConfig, observations
from ...meta.model import Model
from ...meta.reliability import Bins, Calibration, Selected, Selection
from ...meta.scaling import rescale
from ...meta.threads import one_thread
from ..compare_cells import Cell
from ..features import FeatureSet, apply_projections
from ..progress import Bar
from .base import Context, EpisodeBlock, Result

TEMPERATURES = {"none": "none", "folds": "run", "validation": "validation"}
"""Name -> one of `meta.scaling.TEMPERATURES`: an AMFIR run's own come from held-out folds of the base classes."""

FUSED = ("ami", "late")
"""Fusions beside the modalities."""

WEIGHT_BINS = 20
"""Bins of the first modality's weight over [0, 1]; with N ways and two modalities it lies in [1/(N+1), N/(N+1)]."""

NOTES = (
    "Selection accuracy and AUROC are over contested queries, those for which exactly one modality is right. The AUROC "
    "asks whether a criterion leans more to a modality where that one is right: 0.5 is no knowledge of the query, and "
    "what a constant preference has, however often it is right.",
    "Gain: accuracy of the first modality alone minus the mean of the others', among the queries with such a weight; "
    "fused gain: accuracy of AMI minus late fusion there. Both in percent.",
    "Temperatures: none = 1 for both; folds = the run's, from held-out folds of the base classes; validation = fitted "
    "on episodes of the run's validation classes, the belief fitted anew on the same ones.",
)


def run(context: Context) -> Result:
    """Train AMFIR for every shot, and observe it on the novel episodes of the tables."""
    result = Result([], notes=[*NOTES], extra={"weights": [], "calibration": [], "selection": [], "temperatures": []})
    if len(context.modalities) < 2:
        only = context.modalities[0]
        result.skipped.append(f"selection, weights and fusions: they need two modalities; the cache has {only} only")
    seed = context.config.seed
    cells = {
        shot: Cell("amfir", "amfir", "ami", context.modalities, shot, seed)
        for shot in dict.fromkeys(context.config.shots)
    }
    outcomes = context.train(list(cells.values()))
    for shot, cell in cells.items():
        outcome = outcomes[cell]
        if isinstance(outcome, str):
            result.failures.append(f"{shot}-shot: {outcome}")
            continue
        (folder,) = context.folders(cell)
        with one_thread():
            _study_shot(context, shot, folder, result)
    return result


def _study_shot(context: Context, shot: int, folder: Path, result: Result) -> None:
    """Add to the result what one shot's run shows."""
    config = EvaluationConfig(context.config.compare.shape(shot), context.config.compare.episodes)
    data = apply_projections(context.data, load_model(folder)[0].projections)
    for temperatures, kind in TEMPERATURES.items():
        model, provenance = load_model(folder)
        try:
            rescale(model, kind, [provenance], data.features, data.labels, data.class_names, config)
        except UserError as error:
            result.skipped.append(f"{shot}-shot, temperatures {temperatures!r}: {error}")
            continue
        context.say(f"reliability: {shot}-shot, temperatures {temperatures}, {config.episodes} episodes")
        watched = _watch(context, data, model, config)
        _report(watched, context, shot, temperatures, result)
        result.extra["temperatures"].append({"shot": shot, "temperatures": temperatures, **model.temperatures})


@dataclass(eq=False)
class _Watched:
    """What is gathered of one model's episodes."""

    selection: Selection
    weights: Bins
    calibration: dict[str, Calibration]
    """View -> modality or fusion."""
    right: dict[str, list[Tensor]] = field(default_factory=dict)
    """View -> right queries of each episode, chunks."""

    def add(self, seen: Observation, labels: Tensor) -> None:
        """Take a chunk."""
        modalities = self.selection.modalities
        predictions = seen.psi.argmin(-1)
        self.selection.add(seen, labels)
        hits = {}
        for name, log_p, predicted in zip(modalities, seen.log_posteriors, predictions, strict=True):
            self.calibration[name].add(log_p, labels, predicted)
            hits[name] = predicted == labels
        if len(modalities) > 1:
            fused = {name: fuse(seen, name) for name in FUSED}
            for name, (log_p, _) in fused.items():
                self.calibration[name].add(log_p, labels)
                hits[name] = log_p.max(-1).indices == labels
            weight = fused["ami"][1][0]
            self.weights.add(weight, weight=weight, **hits)
        for name, hit in hits.items():
            self.right.setdefault(name, []).append(hit.sum(-1))


def _watch(context: Context, data: FeatureSet, model: Model, config: EvaluationConfig) -> _Watched:
    """Observe the novel episodes chunk by chunk."""
    clips = data.clips_of(context.split.test)
    sampler = EpisodeSampler(data.labels[clips], data.ids(context.split.test), config.shape, data.class_names)
    views = (*model.modalities, *(FUSED if len(model.modalities) > 1 else ()))
    watched = _Watched(
        Selection(model.modalities),
        Bins(WEIGHT_BINS, ("weight", *model.modalities, *FUSED)),
        {view: Calibration() for view in views},
    )
    scorer, labels, ready = model.scorer(data.features, clips), config.shape.query_labels(), 0
    with Bar("episodes") as bar:
        for episodes, seen in observations(scorer, sampler, config, range(config.num_blocks), belief=model.belief):
            watched.add(seen, labels)
            ready += len(episodes)
            bar.update(ready, config.episodes)
    return watched


def _report(watched: _Watched, context: Context, shot: int, temperatures: str, result: Result) -> None:
    """Write down what was gathered: rows and weights of the run's own temperatures, calibration of all."""
    selection, found = watched.selection, [_row(selected, shot) for selected in watched.selection.found()]
    result.extra["selection"] += [{**row, "temperatures": temperatures} for row in found]
    result.extra["calibration"] += [
        _calibration(calibration, shot, view, temperatures) for view, calibration in watched.calibration.items()
    ]
    if temperatures == "folds":
        result.rows.extend(found)
        result.extra["weights"] += _weights(watched.weights, selection.modalities, shot)
        result.notes.extend(_remarks(selection, shot))
    shape = context.config.compare.shape(shot)
    result.episodes.extend(
        EpisodeBlock(
            "amfir",
            shape.way,
            shot,
            torch.cat(right).numpy().astype(np.int64),
            shape.way * shape.query,
            context.config.seed,
            f"view={view};temperatures={temperatures}",
        )
        for view, right in watched.right.items()
    )


def _row(selected: Selected, shot: int) -> dict[str, Any]:
    accuracy = selected.accuracy
    return {
        "criterion": selected.criterion,
        "shot": shot,
        "selection_accuracy": None if accuracy is None else 100 * accuracy,
        "auroc": selected.auroc,
        **{f"auroc_{name}": value for name, value in selected.right.items()},
    }


def _weights(bins: Bins, modalities: Sequence[str], shot: int) -> list[dict[str, Any]]:
    """Bins of the first modality's weight: its gain over the others there, and AMI's over late fusion."""
    first, *others = modalities
    rows = []
    for part in bins.filled():
        means = part.means
        rest = sum(means[name] for name in others) / len(others)
        rows.append(
            {
                "shot": shot,
                "modality": first,
                "low": part.low,
                "high": part.high,
                "count": part.count,
                "weight": means["weight"],
                "gain": 100 * (means[first] - rest),
                "fused_gain": 100 * (means["ami"] - means["late"]),
            }
        )
    return rows


def _calibration(calibration: Calibration, shot: int, view: str, temperatures: str) -> dict[str, Any]:
    """Everything but the edges in percent, and the negative log-likelihood in nats."""
    return {
        "shot": shot,
        "view": view,
        "temperatures": temperatures,
        "ece": 100 * calibration.ece,
        "accuracy": 100 * calibration.accuracy,
        "nll": calibration.nll,
        "bins": [
            {
                "low": part.low,
                "high": part.high,
                "count": part.count,
                "confidence": 100 * part.means["confidence"],
                "accuracy": 100 * part.means["accuracy"],
            }
            for part in calibration.bins()
        ],
    }


def _remarks(selection: Selection, shot: int) -> list[str]:
    """What a reader has to know of one shot's selection."""
    remarks = []
    if len(selection.modalities) > 1 and not selection.contested:
        remarks.append(
            f"{shot}-shot: no contested query, so nothing to select from; selection and its AUROC are empty."
        )
    if selection.cut:
        remarks.append(f"{shot}-shot: each auroc_<modality> is that of the first {selection.limit} queries.")
    return remarks
