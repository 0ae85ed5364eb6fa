"""Transfer: trained on one cache, tested on the novel classes of others.

Beside AMFIR from the other cache stand nearest prototypes of the target's frozen features, standardised and tempered on
the target's base classes, and AMFIR trained on the target itself: what the training elsewhere is worth, and what it
lacks. All three are tested on the same episodes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...cache.errors import UserError
from ...meta.checkpoint import load_model
from ...meta.evaluate import Evaluation, EvaluationConfig
from ...meta.methods import parse_method
from ..compare_cells import Cell
from ..features import require_specs
from ..runs import evaluate_run, evaluate_untrained
from ..splits import ClassSplit, normal_form
from .base import Context, EpisodeBlock, Result, open_context

METHOD = "amfir"

NOTES = (
    "The transferred run is used as it is: projection, temperatures and belief are those of the data it was trained "
    "on. Untrained prototypes are standardised and tempered on the base classes of the target, which the transferred "
    "run has never seen.",
    "Rows whose source and target are the same were trained on the target itself, with the same settings.",
)


@dataclass(frozen=True, eq=False)
class Target:
    """A cache to test on."""

    name: str
    """In tables."""
    context: Context
    """Its features and split, and where runs on itself go."""
    tested: ClassSplit
    """The split without the test classes that trained the run."""


def run(context: Context) -> Result:
    """Train AMFIR on the context's cache, and test it on every target."""
    result = Result([], notes=[*NOTES])
    if not context.config.targets:
        result.skipped.append("no other cache to test on; name one or more: --to CACHE:SPLIT")
        return result
    cells = [_cell(context, shot) for shot in dict.fromkeys(context.config.shots)]
    trained = context.train(cells)
    result.failures.extend(f"{cell.shot}-shot: {line}" for cell, line in trained.items() if isinstance(line, str))
    usable = [cell for cell in cells if not isinstance(trained[cell], str)]
    names = _names([(context.config.cache, context.config.split), *context.config.targets])
    for name, (cache, split) in zip(names[1:], context.config.targets, strict=True):
        try:
            target = _open_target(context, name, cache, split, usable, result)
        except UserError as error:
            _skip(context, result, f"{name}: {error}")
            continue
        for cell in usable:
            _test(context, names[0], cell, target, result)
    return result


def _cell(context: Context, shot: int) -> Cell:
    return Cell(METHOD, METHOD, "ami", context.modalities, shot, context.config.seed)


def _skip(context: Context, result: Result, line: str) -> None:
    context.say(f"transfer: {line}")
    result.skipped.append(line)


# --- Targets --------------------------------------------------------------------------------------------------------


def _names(places: Sequence[tuple[Path, str]]) -> list[str]:
    """What tables call caches: their folders' names, with what tells them apart where these say too little."""
    paths = [cache.resolve() for cache, _ in places]
    common = Path(os.path.commonpath(paths))
    names = [path.name if not path.name.startswith("cache") else f"{path.parent.name}/{path.name}" for path in paths]
    return [
        name if names.count(name) == 1 else f"{path.relative_to(common) if path != common else path.name} ({split})"
        for name, path, (_, split) in zip(names, paths, places, strict=True)
    ]


def _open_target(context: Context, name: str, cache: Path, split: str, cells: Sequence[Cell], result: Result) -> Target:
    """Open a target, its test classes without those that trained the run.

    Raises:
        UserError: If it cannot be read, was made by something else, or has too few classes left.
    """
    # One folder for all targets: runs on different data never share a name in it.
    work = context.config.out / "transfer" / "work"
    config = replace(context.config, cache=cache, split=split, streams=context.modalities, out=work, targets=())
    opened = open_context(config, context.say)
    for cell in cells:
        _, provenance = load_model(context.folders(cell)[0])
        require_specs(provenance, opened.data, cache)
    return Target(name, opened, _without_known(context, name, opened.split, result))


def _without_known(context: Context, name: str, split: ClassSplit, result: Result) -> ClassSplit:
    """A target's split without test classes of the names of those that the run was trained or validated on.

    Raises:
        UserError: If too few are left.
    """
    known, novel = (
        {normal_form(label) or label for label in labels}
        for labels in ((*context.split.train, *context.split.val), context.split.test)
    )
    forms = {label: normal_form(label) or label for label in split.test}
    if shared := [label for label, form in forms.items() if form in known]:
        result.notes.append(f"{name}: test classes left out, since they trained the run: {', '.join(shared)}.")
    if both := [label for label, form in forms.items() if form in novel]:
        result.notes.append(f"{name}: test classes that are novel in both sets, and tested: {', '.join(both)}.")
    left = tuple(label for label in split.test if label not in shared)
    way = context.config.compare.way
    if len(left) < way:
        classes = "class is" if len(left) == 1 else "classes are"
        raise UserError(
            f"{len(left)} novel {classes} left to test on, and an episode draws {way}; the split {split.name!r}; lower "
            "--way or choose another split"
        )
    return replace(split, test=left)


# --- Measurements ---------------------------------------------------------------------------------------------------


def _test(context: Context, source: str, cell: Cell, target: Target, result: Result) -> None:
    """Add the rows of one target and shot."""
    compare = context.config.compare
    config = EvaluationConfig(compare.shape(cell.shot), compare.episodes, fusion=parse_method(METHOD).fusion)
    data = target.context.data
    try:
        found = [(source, evaluate_run(data, target.tested, context.folders(cell), config))]
        untrained = evaluate_untrained(data, target.tested, replace(config, fusion="late"))
    except UserError as error:
        _skip(context, result, f"{target.name}, {cell.shot}-shot: {error}")
        return
    own = target.context.train([cell])[cell]
    if isinstance(own, str):
        _skip(context, result, f"training on {target.name} itself, {cell.shot}-shot: {own}")
    else:
        found.append((target.name, evaluate_run(data, target.tested, target.context.folders(cell), config)))
    for trained_on, evaluation in found:
        result.rows.append(_row(trained_on, target.name, evaluation, untrained))
        result.episodes.append(_block(METHOD, evaluation, cell.seed, f"from={trained_on} to={target.name}"))
    result.episodes.append(_block("untrained", untrained, cell.seed, f"to={target.name}"))


def _row(source: str, target: str, evaluation: Evaluation, untrained: Evaluation) -> dict[str, Any]:
    return {
        "source": source,
        "target": target,
        "method": METHOD,
        "shot": evaluation.shape.shot,
        "accuracy": evaluation.accuracy,
        "ci95": evaluation.ci95,
        "untrained": untrained.accuracy,
        "untrained_ci95": untrained.ci95,
    }


def _block(method: str, evaluation: Evaluation, seed: int, condition: str) -> EpisodeBlock:
    shape = evaluation.shape
    right, queries = evaluation.right.numpy(), shape.way * shape.query
    return EpisodeBlock(method, shape.way, shape.shot, right, queries, seed, condition)
