"""Runs studies one after another; what is finished is kept, and one that fails does not stop the others."""

import hashlib
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...cache.errors import UserError, pick
from ...meta.profiles import FOLDER as HEADS_FOLDER
from ..compare import check_config, check_episodes, make_folder
from ..compare_cells import Wish, plan_cells
from ..compare_store import origin
from ..features import load_features
from ..splits import load_split
from .base import Context, Result, Study, StudyConfig, open_context
from .registry import STUDIES
from .store import Finished, StudyStore, fingerprint_of

SHARED = ("way", "query", "episodes", "train_episodes", "profile", "settings", "project")
"""Settings that every study depends on."""


@dataclass(frozen=True)
class Outcome:
    """What came of the studies that were asked for."""

    finished: Mapping[str, Finished]
    """By name, in the order in which they ran."""
    failed: Mapping[str, str]
    """Those that came to nothing, with the line of the error."""

    @property
    def failures(self) -> int:
        """Studies in which something failed."""
        return len(self.failed) + sum(bool(study.failures) for study in self.finished.values())


def run_studies(
    config: StudyConfig, names: Sequence[str], command: str, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Run studies, but for those that are finished.

    Args:
        config: What the user asked for.
        names: Of the studies; empty: all.
        command: The command line, for the record.
        say: Told what the user should know at once, a line each.

    Raises:
        UserError: If a name or setting is unknown, or the episodes do not fit the classes; before anything is run.
    """
    wanted = [name for name in STUDIES if name in check_names(names)]
    context = open_context(config, say)
    check_context(context)
    prints = Fingerprints(context)
    fingerprints = {name: prints.of(name) for name in wanted}
    make_folder(config.out)
    store = StudyStore(config.out)
    facts = _facts(context)
    store.note(facts, command, list(STUDIES), prints.of)
    finished: dict[str, Finished] = {}
    failed: dict[str, str] = {}
    for number, name in enumerate(wanted, 1):
        say(f"[{number}/{len(wanted)}] {name}: {STUDIES[name].title}")
        try:
            finished[name] = store.find(name, fingerprints[name]) or _make(name, context, store, fingerprints[name])
        except UserError as error:
            failed[name] = str(error)
            say(f"{name} failed: {error}")
            continue
        _tell(name, finished[name], say)
        store.note(facts, command, list(STUDIES), prints.of)
    return Outcome(finished, failed)


def check_names(names: Sequence[str]) -> Sequence[str]:
    """The studies asked for; all if none is named.

    Raises:
        UserError: If one is unknown.
    """
    for name in names:
        pick(STUDIES, name, "study")
    return names or tuple(STUDIES)


def check_context(context: Context) -> None:
    """Refuse what would fail hours later.

    Raises:
        UserError: If a number makes no sense, a setting or method is unknown, or the novel classes cannot fill the
            episodes.
    """
    config = context.config
    if config.jobs < 1:
        raise UserError(f"jobs is {config.jobs}; --jobs; give 1 or more")
    if config.seed < 0:
        raise UserError(f"seed is {config.seed}; --seed; seeds start at 0")
    if not config.shots or min(config.shots) < 1:
        raise UserError(f"{min(config.shots, default='no number')} is no shot; --shots; give 1,5 or the like")
    if config.videos is not None and not config.videos.is_dir():
        raise UserError(f"no such folder: {config.videos}; --videos; name the one that was extracted, or leave it out")
    wish = Wish(config.methods, shots=config.shots, seeds=(config.seed,))
    cells, _ = plan_cells(wish, context.modalities, tokens=context.tokens)
    check_config(cells, config.compare)
    check_episodes(context.data, context.split, config.compare, config.shots)


class Fingerprints:
    """Digests of all that studies depend on.

    Args:
        context: The cache, the split and the settings.

    Raises:
        UserError: If another cache, or its split, cannot be read.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._found: dict[str, str] = {}
        self._heads = _sources(sorted(HEADS_FOLDER.iterdir()))

    def of(self, name: str) -> str:
        """The fingerprint of a study."""
        if name not in self._found:
            self._found[name] = self._make(name)
        return self._found[name]

    def _make(self, name: str) -> str:
        study, config = STUDIES[name], self._context.config
        return fingerprint_of(
            {
                "study": name,
                "origin": self._context.facts,
                "compare": asdict(config.compare),
                "seed": config.seed,
                "reads": {field: self._value(field) for field in study.reads},
                "heads": self._heads,
                "source": _sources([Path(__file__).parent / name for name in (f"{study.module}.py", *study.helpers)]),
            }
        )

    def _value(self, field: str) -> Any:
        special = {"targets": lambda: self._targets, "videos": lambda: self._videos}
        return special[field]() if field in special else getattr(self._context.config, field)

    @cached_property
    def _targets(self) -> list[Any]:
        """Contents of the other caches."""
        found = []
        for cache, name in self._context.config.targets:
            data = load_features(cache, self._context.config.streams)
            found.append([str(cache), name, origin(cache, data, load_split(name, data.class_names))])
        return found

    @cached_property
    def _videos(self) -> list[Any]:
        """Names and sizes of the videos: reading them all would take as long as the study."""
        root = self._context.config.videos
        if root is None:
            return []
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return [[path.relative_to(root).as_posix(), path.stat().st_size] for path in files]


def settings_of(study: Study, config: StudyConfig) -> dict[str, Any]:
    """What a study was asked for, as readers see it."""
    shared = {name: getattr(config.compare, name) for name in SHARED}
    return {**shared, "seed": config.seed, **{name: getattr(config, name) for name in study.reads}}


def _make(name: str, context: Context, store: StudyStore, fingerprint: str) -> Finished:
    study, start = STUDIES[name], time.perf_counter()
    reason = _lacking(study, context)
    result = Result([], [reason]) if reason else study.run(context)
    seconds = time.perf_counter() - start
    settings = settings_of(study, context.config)
    return store.save(name, study, result, fingerprint=fingerprint, settings=settings, seconds=seconds)


def _lacking(study: Study, context: Context) -> str:
    """Why a study cannot be done here, or nothing."""
    if "modalities" in study.needs and len(context.modalities) < 2:
        return f"it needs two modalities; the cache has {context.modalities[0]} only"
    if "targets" in study.needs and not context.config.targets:
        return "it needs another cache to test on; none was given: --to CACHE:SPLIT"
    return ""


def _tell(name: str, study: Finished, say: Callable[[str], None]) -> None:
    if study.kept:
        say(f"{name} is finished already")
    for reason in study.content["skipped"]:
        say(f"{name}, left out: {reason}")
    for reason in study.failures:
        say(f"{name}, failed: {reason}")


def _facts(context: Context) -> dict[str, Any]:
    """What study.json says of the data, the settings and what computes with them."""
    config, data, split = context.config, context.data, context.split
    targets = [{"cache": cache.name, "split": name} for cache, name in config.targets]
    return {
        "config": {
            **asdict(config.compare),
            "cache": config.cache.name,
            "split": config.split,
            "streams": context.modalities,
            "shots": config.shots,
            "seed": config.seed,
            "methods": config.methods,
            "videos": None if config.videos is None else config.videos.name,
            "targets": targets,
        },
        "versions": {
            **{name: version(name) for name in ("amfir", "torch", "numpy", "pyarrow")},
            "python": platform.python_version(),
        },
        "specs": {name: spec.to_json() for name, spec in data.specs.items()},
        "provenance": {
            "clips": len(data.clip_ids),
            "classes": len(data.class_names),
            "split": {"source": split.source, "train": split.train, "val": split.val, "test": split.test},
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        },
    }


def _sources(paths: Sequence[Path]) -> str:
    """Digest of source files and the hyperparameters beside them."""
    found = [path.read_bytes() for path in paths if path.suffix in (".py", ".toml")]
    return hashlib.sha256(b"\0".join(found)).hexdigest()
