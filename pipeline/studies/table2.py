"""Table 2: what each part of AMFIR and AMFAR contributes, on the same episodes as the whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..compare import backbones_of
from ..compare_cells import Cell
from ..compare_store import Measured
from ..significance import Difference, holm, mean_interval, paired_difference
from .base import Context, EpisodeBlock, Result

ARMS: dict[str, dict[str, str]] = {
    "amfir": {
        "": "AMFIR, whole",
        "no-rd": "without the RGB-dominant group (RD)",
        "no-fd": "without the flow-dominant group (FD)",
        "no-amd": "without distillation (AMD)",
        "no-ami": "without adaptive inference (AMI)",
        "max-prob": "groups by the greatest posterior",
        "entropy": "groups by the entropy",
        "expected-free-energy": "groups by the expected free energy",
        "certainty": "groups by AMFAR's two certainties",
        "evidence": "groups by the true class's posterior: a label oracle",
    },
    "amfar": {
        "": "AMFAR, whole",
        "no-ac": "without absolute certainty (AC)",
        "no-rc": "without relative certainty (RC)",
        "no-amd": "without distillation (AMD)",
        "no-ami": "without adaptive inference (AMI)",
    },
}
"""Method -> what follows it, a key of `methods.VARIANTS`, and how the table calls that."""

TWINS = {
    "amfir:certainty": "amfar",
    "amfar:no-ac": "amfir:entropy",
    "amfar:no-rc": "amfir:max-prob",
    "amfar:no-amd": "amfir:no-amd",
}
"""Arms that are the same method by another name: AMFAR is AMFIR with other groups. They are trained once."""

NEEDS = {"no-rd": "rgb", "no-fd": "flow", "rgb-teacher": "rgb", "flow-teacher": "flow"}
"""Variants that speak of a modality."""

NOTES = (
    "differences are to the whole method on the same episodes; p is two-sided and adjusted (Holm) over the arms of a "
    "method and shot",
    "AMFAR is AMFIR with other groups, so arms that are the same method are trained once: "
    + ", ".join(f"{one} = {other}" for one, other in TWINS.items()),
    "each arm is one training with one seed: intervals are over episodes, and do not tell how far another seed differs",
)

_USUAL = {"rgb": "resnet50", "flow": "i3d-flow-charades"}
_PUBLISHED: dict[str, dict[str, dict[int, tuple[float, ...]]]] = {
    "kinetics100": {
        "amfir": {1: (82.85, 64.10, 59.63, 71.64, 59.34), 5: (96.11, 68.94, 75.27, 89.05, 65.78)},
        "amfar": {1: (80.1, 72.9, 77.8, 77.2, 72.9), 5: (92.6, 89.9, 89.5, 90.4, 89.1)},
    },
    "ssv2-full": {
        "amfir": {1: (70.59, 58.03, 62.91, 61.81, 62.59), 5: (92.32, 66.81, 66.06, 83.37, 85.33)},
        "amfar": {1: (61.7, 57.9, 58.8, 55.1, 50.4), 5: (79.5, 73.9, 78.6, 78.2, 73.8)},
    },
}
"""Table 2 of each paper, 5-way, in percent: dataset, method, shot, and the first five of the method's arms."""


@dataclass(frozen=True)
class Arm:
    """A row of the table at a shot."""

    base: str
    """The whole method."""
    name: str
    """The method that the row shows."""
    title: str
    """How the table calls it."""
    cell: Cell
    """What is trained for it."""


def run(context: Context) -> Result:
    """Train every arm at every shot and hold it against the whole method."""
    arms, skipped = _arms(context)
    outcomes = context.train(list(dict.fromkeys(arm.cell for arm in arms)))
    result = Result([], skipped, [*NOTES], extra={"published": _published(context)})
    for base in ARMS:
        for shot in context.config.shots:
            _add(result, [arm for arm in arms if arm.base == base and arm.cell.shot == shot], outcomes, context)
    return result


def variant_cell(context: Context, method: str, shot: int) -> Cell:
    """The training of AMFIR, AMFAR or a variant of them."""
    name = TWINS.get(method, method)
    return Cell(name, name, "ami", context.modalities, shot, context.config.seed)


def lacks(context: Context, variant: str) -> str:
    """The modality that a variant speaks of and the cache has not, or nothing."""
    needed = NEEDS.get(variant, "")
    return needed if needed and needed not in context.modalities else ""


def _arms(context: Context) -> tuple[list[Arm], list[str]]:
    arms, skipped = [], []
    for base, variants in ARMS.items():
        for variant, title in variants.items():
            name = f"{base}:{variant}" if variant else base
            if modality := lacks(context, variant):
                skipped.append(f"{name}: there is no {modality} stream")
                continue
            cells = [variant_cell(context, name, shot) for shot in context.config.shots]
            arms += [Arm(base, name, title, cell) for cell in cells]
    return arms, skipped


def _add(result: Result, arms: Sequence[Arm], outcomes: Mapping[Cell, Measured | str], context: Context) -> None:
    """The rows of a method at a shot, the whole method first."""
    compare = context.config.compare
    queries = compare.way * compare.query
    shares = {}
    for arm in arms:
        outcome = outcomes[arm.cell]
        if isinstance(outcome, str):
            result.failures.append(f"{arm.name}, {arm.cell.shot}-shot: {outcome}")
            continue
        shares[arm.name] = 100 * outcome.right.astype(np.float64) / queries
        result.episodes.append(
            EpisodeBlock(
                arm.name, compare.way, arm.cell.shot, outcome.right, queries, arm.cell.seed, f"base={arm.base}"
            )
        )
    whole = shares.get(arms[0].base)
    found = {
        name: paired_difference(values, whole)
        for name, values in shares.items()
        if whole is not None and name != arms[0].base
    }
    adjusted = dict(zip(found, holm([difference.p for difference in found.values()]), strict=True))
    result.rows.extend(
        _row(arm, compare.way, mean_interval(shares[arm.name]), found.get(arm.name), adjusted.get(arm.name))
        for arm in arms
        if arm.name in shares
    )


def _row(
    arm: Arm, way: int, accuracy: tuple[float, float], difference: Difference | None, p: float | None
) -> dict[str, Any]:
    return {
        "base": arm.base,
        "method": arm.name,
        "title": arm.title,
        "way": way,
        "shot": arm.cell.shot,
        "seed": arm.cell.seed,
        "accuracy": accuracy[0],
        "ci95": accuracy[1],
        "difference": difference.mean if difference else None,
        "difference_ci95": difference.ci95 if difference else None,
        "p": p,
    }


def _published(context: Context) -> list[dict[str, Any]]:
    """The papers' tables, where dataset, way and backbones are theirs."""
    tables = _PUBLISHED.get(context.split.name, {})
    if context.config.compare.way != 5 or backbones_of(context.data) != _USUAL:
        return []
    return [
        {
            "method": f"{base}:{variant}" if variant else base,
            "dataset": context.split.name,
            "shot": shot,
            "accuracy": accuracy,
            "source": f"{base.upper()}, Table 2",
        }
        for base, shots in tables.items()
        for shot, accuracies in shots.items()
        if shot in context.config.shots
        for variant, accuracy in zip(ARMS[base], accuracies, strict=False)
    ]
