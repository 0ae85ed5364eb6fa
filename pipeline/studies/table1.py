"""Table 1: every method in every arrangement, on the same features and the same episodes (`amfir compare`)."""

from pathlib import Path
from typing import Any

import numpy as np

from ..compare import Comparison, compare
from ..compare_cells import OWN, Wish
from ..compare_entries import Entry, Setting
from ..published import SHOTS, WAY, load_published
from .base import TRAINED, Context, EpisodeBlock, Result

COPIES = ("md", "csv", "png")
"""Files of the comparison that stand beside the result too."""


def run(context: Context) -> Result:
    """Compare all methods asked for."""
    config = context.config
    found = compare(
        config.cache,
        config.split,
        config.out / TRAINED,
        Wish(config.methods, shots=config.shots, seeds=(config.seed,)),
        config.compare,
        streams=context.modalities,
        jobs=config.jobs,
        say=context.say,
    )
    done = [entry for entry in found.entries if not entry.failed]
    return Result(
        [_row(entry, context) for entry in done],
        skipped=found.notes,
        notes=[
            f"every method is trained for at most {config.compare.train_episodes} episodes, with one seed",
            "intervals are over episodes, not over trainings or choices of the classes",
        ],
        episodes=[_block(entry, context) for entry in done],
        extra={"published": _published(found.setting, config.shots), "files": _copies(found)},
        failures=[
            f"{entry.title} ({entry.arrangement}, {entry.shot}-shot): {entry.failure}"
            for entry in found.entries
            if entry.failed
        ],
    )


def _row(entry: Entry, context: Context) -> dict[str, Any]:
    spent = entry.spent
    return {
        "method": entry.row,
        "title": entry.title,
        "arrangement": entry.arrangement,
        "way": context.config.compare.way,
        "shot": entry.shot,
        "seed": context.config.seed,
        "accuracy": entry.accuracy,
        "ci95": entry.ci95,
        "parameters": spent.parameters if spent else None,
        "training_seconds": spent.train_seconds if spent else None,
    }


def _block(entry: Entry, context: Context) -> EpisodeBlock:
    """With one seed an entry's accuracies are whole numbers of queries again."""
    assert entry.episodes is not None
    config = context.config
    queries = config.compare.way * config.compare.query
    right = np.rint(entry.episodes * queries / 100).astype(np.int64)
    return EpisodeBlock(
        entry.row, config.compare.way, entry.shot, right, queries, config.seed, condition=entry.arrangement
    )


def _published(setting: Setting, shots: tuple[int, ...]) -> list[dict[str, Any]]:
    """What the papers report for this dataset, where way and backbones are the same."""
    if setting.way != WAY:
        return []
    here = dict(setting.backbones)
    return [
        {
            "method": row.head,
            "title": row.title,
            "dataset": row.dataset,
            **({} if row.arrangement == OWN else {"arrangement": row.arrangement}),
            "shot": shot,
            "accuracy": accuracy,
            "source": row.source,
        }
        for row in load_published()
        if row.dataset == setting.split and row.backbones.items() <= here.items()
        for shot, accuracy in zip(SHOTS, row.accuracies, strict=True)
        if shot in shots and not np.isnan(accuracy)
    ]


def _copies(found: Comparison) -> dict[str, bytes]:
    files: dict[str, Path] = {kind: found.files[kind] for kind in COPIES}
    return {path.name: path.read_bytes() for path in files.values()}
