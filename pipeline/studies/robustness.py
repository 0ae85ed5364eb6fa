"""Robustness: how AMFIR, its fusions and each modality alone hold out where queries are harmed or lack a modality.

The support clips stay clean: the few labelled clips come from one camera, and what is to be recognised from another
one, at night, or over a bad line. Both streams of a harmed video are harmed; the study also shows one of them harmed
beside the clean other, since that is where a fusion can show that it knows whom to trust.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...cache.errors import UserError
from ...meta.checkpoint import load_model
from ...meta.evaluate import EvaluationConfig
from ...meta.methods import parse_method
from ...meta.model import Model
from ..compare_cells import Cell
from ..corrupt import Harm
from ..feature_harms import BaseStatistics, base_statistics, harm_features
from ..features import FeatureSet
from ..harmed_cache import open_extractor
from ..progress import Bar
from .base import Context, EpisodeBlock, Result
from .harmed_queries import Outcome, measure

METHOD = "amfir"

VIDEO_LEVELS: Mapping[str, Sequence[float]] = {
    "noise": (0.05, 0.2),
    "blur": (0.01, 0.03),
    "dark": (0.6, 0.9),
    "drop": (0.5, 0.9),
}
FEATURE_LEVELS: Mapping[str, Sequence[float]] = {
    "noise": (1.0, 2.0),
    "blur": (0.125, 0.5),
    "dark": (0.5, 0.9),
    "drop": (0.5, 0.9),
}

MEANING = {
    "videos": {
        "noise": "deviation of the Gaussian noise on every 8-bit value, as a share of 255",
        "blur": "deviation of the Gaussian blur, as a share of the frame's short side",
        "dark": "share of the brightness that is lost before the values are rounded to 8 bits again",
        "drop": "chance of each frame to be lost; the last one that was not is shown instead",
    },
    "features": {
        "noise": "deviation of the Gaussian noise, in deviations of each dimension on the base clips",
        "blur": "reach of the moving average over time to either side, as a share of the frames",
        "dark": "how far the features are drawn towards the mean of the base clips",
        "drop": "chance of each frame's features to be lost; the last ones that were not are repeated",
        "missing": "1: all features of the modality are replaced by the mean of the base clips",
    },
}
"""What the level of a harm says, by what it was applied to."""

NOTES = (
    "Queries are harmed, supports are clean. Level 0 is the clean query.",
    'A missing modality is shown as its mean on the base clips, so that every fusion still runs. The fusions "without '
    '<modality>" drop its branch instead, which needs to be known: of two modalities, the other one alone is left.',
)


@dataclass(frozen=True, eq=False)
class Condition:
    """Queries that are harmed in one way."""

    harm: str
    """Its name."""
    level: float
    """0: clean."""
    applied_to: str
    """`videos` or `features`."""
    modality: str
    """The one that is harmed; `both`: all, where there are several."""
    features: Mapping[str, Tensor]
    """Modality -> harmed features [clips, views, T, D], not projected; those that are left out are clean."""

    def __str__(self) -> str:
        """For the raw results."""
        return f"{self.harm}={self.level:g} on={self.modality} in={self.applied_to}"


@dataclass(frozen=True, eq=False)
class Bench:
    """What every condition is measured on."""

    model: Model
    """Trained on clean clips."""
    clean: FeatureSet
    """Clips of the novel classes, not projected."""
    class_ids: tuple[int, ...]
    """The novel classes."""
    config: EvaluationConfig
    """Episodes."""

    def measure(self, features: Mapping[str, Tensor]) -> Outcome:
        """Evaluate the model on queries with these features."""
        return measure(self.model, self.clean, features, self.class_ids, self.config)

    def without(self, modality: str) -> "Bench":
        """The same without the branch of a modality."""
        names = self.model.modalities
        kept = [position for position, name in enumerate(names) if name != modality]
        belief = None if self.model.belief is None else self.model.belief.keep(kept)
        branches = [self.model.branch(names[position]) for position in kept]
        return replace(self, model=Model(branches, belief, self.model.projections).eval())


def run(context: Context) -> Result:
    """Train AMFIR at the first shot that was asked for, and evaluate it on harmed queries."""
    cell = Cell(METHOD, METHOD, "ami", context.modalities, context.config.shots[0], context.config.seed)
    trained = context.train([cell])[cell]
    if isinstance(trained, str):
        return Result([], failures=[f"{cell.shot}-shot: {trained}"])
    bench = _open_bench(context, cell)
    result = Result([], notes=[*NOTES], extra={"levels": MEANING})
    report = _Report(bench, cell, result)
    for condition in _harmed(context, bench.clean, result):
        report.add(condition, bench.measure(condition.features))
    if len(context.modalities) < 2:
        result.skipped.append(f"missing modality: the cache has {context.modalities[0]} only")
        return result
    for condition in _missing(context, bench.clean):
        dropped = bench.without(condition.modality).measure({})
        report.add(condition, bench.measure(condition.features), dropped)
    return result


def _open_bench(context: Context, cell: Cell) -> Bench:
    model, _ = load_model(context.folders(cell)[0])
    compare = context.config.compare
    criterion = parse_method(cell.method).objective.criterion
    config = EvaluationConfig(compare.shape(cell.shot), compare.episodes, criterion=criterion)
    return Bench(model, _novel(context), tuple(context.data.ids(context.split.test)), config)


def _novel(context: Context) -> FeatureSet:
    """The clips of the novel classes."""
    data = context.data
    clips = data.clips_of(context.split.test)
    return replace(
        data,
        features={name: values[clips] for name, values in data.features.items()},
        labels=data.labels[clips],
        clip_ids=[data.clip_ids[clip] for clip in clips.tolist()],
    )


# --- Conditions -----------------------------------------------------------------------------------------------------


def _harmed(context: Context, clean: FeatureSet, result: Result) -> Iterator[Condition]:
    """Every harm at every level, on all modalities and on each."""
    make, levels, applied_to = _harmer(context, clean, result)
    for name, values in levels.items():
        for level in values:
            features = make(Harm(name, level))
            if len(features) > 1:
                yield Condition(name, level, applied_to, "both", features)
            for modality, harmed in features.items():
                yield Condition(name, level, applied_to, modality, {modality: harmed})


Make = Callable[[Harm], dict[str, Tensor]]
"""The features of all modalities, harmed."""


def _harmer(context: Context, clean: FeatureSet, result: Result) -> tuple[Make, Mapping[str, Sequence[float]], str]:
    """What harms: the videos, where they are at hand and their features can be had again, or the features."""
    videos, why = context.config.videos, "no videos were given (--videos)"
    if videos is not None:
        try:
            return _video_harmer(context, clean, videos), VIDEO_LEVELS, "videos"
        except UserError as error:
            why = str(error)
            context.say(f"robustness: the features are harmed, not the videos: {why}")
            result.skipped.append(f"harmed videos: {why}")
    result.notes.append(
        f"The cached features were harmed, not the videos, since {why}; how far a harm of pixels moves features, they "
        "cannot say."
    )
    return _feature_harmer(context, clean), FEATURE_LEVELS, "features"


def _video_harmer(context: Context, clean: FeatureSet, videos: Path) -> Make:
    """Extract the harmed videos of all conditions; what was extracted before is there still."""
    work = context.config.out / "robustness" / "work"
    extractor = open_extractor(videos, clean, work, context.config.seed)
    harms = [Harm(name, level) for name, levels in VIDEO_LEVELS.items() for level in levels]
    each, total = len(clean.clip_ids), len(harms) * len(clean.clip_ids)
    features = {}
    with Bar("clip") as bar:
        for number, harm in enumerate(harms):
            harmed = extractor.features(harm, lambda p, n=number, h=harm: bar.update(n * each + p, total, note=str(h)))  # type: ignore[misc]
            assert harmed.clip_ids == clean.clip_ids
            features[harm] = harmed.features
    return features.__getitem__


def _feature_harmer(context: Context, clean: FeatureSet) -> Make:
    """Harm the cached features."""
    statistics = _base_statistics(context)

    def make(harm: Harm) -> dict[str, Tensor]:
        return {
            name: harm_features(values, clean.clip_ids, harm, statistics[name], name, context.config.seed)
            for name, values in clean.features.items()
        }

    return make


def _missing(context: Context, clean: FeatureSet) -> Iterator[Condition]:
    """Each modality as good as missing."""
    for name, statistics in _base_statistics(context).items():
        features = statistics.mean.expand(clean.features[name].shape)
        yield Condition("missing", 1.0, "features", name, {name: features})


def _base_statistics(context: Context) -> dict[str, BaseStatistics]:
    base = context.data.clips_of((*context.split.train, *context.split.val))
    return {name: base_statistics(values, base) for name, values in context.data.features.items()}


# --- Rows -----------------------------------------------------------------------------------------------------------


class _Report:
    """Puts outcomes into rows and raw results.

    Args:
        bench: What they were measured on.
        cell: The trained model's.
        result: Where they go.
    """

    def __init__(self, bench: Bench, cell: Cell, result: Result) -> None:
        self._bench = bench
        self._cell = cell
        self._result = result
        self._clean = bench.measure({})
        self._begun: set[tuple[str, str]] = set()
        self._keep("clean", self._clean)

    def add(self, condition: Condition, outcome: Outcome, dropped: Outcome | None = None) -> None:
        """Add a condition; the first level of a harm on a modality comes after its level 0.

        Args:
            condition: What was done to the queries.
            outcome: With all branches.
            dropped: Without the branch of the condition's modality.
        """
        if (condition.harm, condition.modality) not in self._begun:
            self._begun.add((condition.harm, condition.modality))
            self._rows(replace(condition, level=0.0), self._clean)
        self._rows(condition, outcome)
        self._keep(str(condition), outcome)
        if dropped is not None:
            kept = {
                name: f"{name} without {condition.modality}" for name in ("ami", "belief") if name in dropped.shares
            }
            without = Outcome(
                {title: dropped.shares[name] for name, title in kept.items()},
                {title: dropped.right[name] for name, title in kept.items()},
                {condition.modality: 0.0, **dropped.weights},
            )
            self._rows(condition, without)
            self._keep(str(condition), without)

    def _rows(self, condition: Condition, outcome: Outcome) -> None:
        for fusion, (accuracy, ci95) in outcome.shares.items():
            row: dict[str, Any] = {
                "harm": condition.harm,
                "level": condition.level,
                "applied_to": condition.applied_to,
                "modality": condition.modality,
                "shot": self._cell.shot,
                "method": METHOD,
                "fusion": fusion,
                "accuracy": accuracy,
                "ci95": ci95,
            }
            weights = {f"weight_{name}": outcome.weights[name] for name in self._bench.model.modalities}
            self._result.rows.append(row | weights)

    def _keep(self, condition: str, outcome: Outcome) -> None:
        shape = self._bench.config.shape
        self._result.episodes.extend(
            EpisodeBlock(
                METHOD,
                shape.way,
                shape.shot,
                right.numpy(),
                shape.way * shape.query,
                self._cell.seed,
                f"{condition} fusion={fusion}",
            )
            for fusion, right in outcome.right.items()
        )
