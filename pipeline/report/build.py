"""From study folders to a report: which sections there are, in what order, and where their numbers come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...cache.errors import UserError
from ..studies.registry import STUDIES
from .checks import examples, transfer
from .document import Block, Facts, Group, Report, Section
from .paper_figures import figure2, figure3, figure4, figure5
from .paper_tables import table1, table2
from .read import StudyFolder, StudyResult, printable
from .reliability import reliability
from .robustness import robustness
from .wording import sentence, slug

BUILDERS: Mapping[str, Callable[[StudyResult, str], list[Block]]] = {
    "table1": table1,
    "table2": table2,
    "figure2": figure2,
    "figure3": figure3,
    "figure4": figure4,
    "figure5": figure5,
    "reliability": reliability,
    "robustness": robustness,
    "transfer": transfer,
    "examples": examples,
}
"""Study -> what makes its blocks, given a name that is unique in the report; in the order of reading."""

TITLE = "Few-shot action recognition: tables and figures"

LEAD = (
    "Each figure stands below what follows from its numbers, and above the numbers themselves. Two accuracies are "
    "called clearly apart only where their 95 % intervals over episodes do not overlap; for ablations, where the "
    "interval of the paired difference leaves out zero and its adjusted p is below 0.05. Intervals say nothing of "
    "another training or of other classes, and are not adjusted for the number of methods that are compared."
)
"""How to read the conclusions."""

_ONE_LINE = ("way", "query", "episodes", "train_episodes", "profile", "project", "seed", "methods", "settings")
"""Settings worth a line under a heading, in this order."""
_CALLED = {"train_episodes": "training episodes", "query": "queries of each class", "project": "projected to"}


def build_report(folders: Sequence[StudyFolder], titles: Sequence[str] = ()) -> Report:
    """Put folders together.

    Args:
        folders: At least one.
        titles: Of the folders, the first ones first; where there is none, the split's name, or the folder's.

    Raises:
        UserError: If a result holds something else than studies write.
    """
    names = [
        printable(titles[place]) if place < len(titles) else _title(folder) for place, folder in enumerate(folders)
    ]
    many = len(folders) > 1
    groups = [
        _group(folder, name, f"{slug(name)}-{place}-" if many else "")
        for place, (folder, name) in enumerate(zip(folders, names, strict=True), 1)
    ]
    return Report(TITLE if many else f"Few-shot action recognition on {names[0]}", tuple(groups))


def _title(folder: StudyFolder) -> str:
    config = folder.info.get("config") or {}
    cache, split = str(config.get("cache") or folder.name), str(config.get("split") or "")
    if not split:
        return cache
    if split.startswith("random:"):
        return f"{cache}, {split}"
    # The name of a split that comes with the program is that of a data set; a file's says less than the cache's.
    return cache if "/" in split or split.endswith((".toml", ".csv")) else split


def _group(folder: StudyFolder, title: str, prefix: str) -> Group:
    sections = _sections([folder.results[name] for name in BUILDERS if name in folder.results], prefix)
    missing = [STUDIES[name].title for name in BUILDERS if name not in folder.results and name not in folder.stale]
    missing += [f"{STUDIES[name].title} (made with other settings)" for name in BUILDERS if name in folder.stale]
    return Group(f"{prefix}studies", title, tuple(sections), tuple(missing), _facts(folder.info))


def _sections(results: Sequence[StudyResult], prefix: str) -> list[Section]:
    """One for each study; settings stand where they are not those of the study before."""
    found: list[Section] = []
    before = ""
    for result in results:
        section = _section(result, prefix)
        found.append(replace(section, settings="") if section.settings == before else section)
        before = section.settings
    return found


def _section(result: StudyResult, prefix: str) -> Section:
    name = f"{prefix}{result.name}"
    return Section(
        name,
        result.title,
        tuple(_blocks(result, name)),
        _settings(result.settings),
        (*result.skipped, *(f"failed: {line}" for line in result.failures)),
        tuple(map(sentence, result.notes)),
    )


def _blocks(result: StudyResult, name: str) -> list[Block]:
    """What a study says; a file that somebody edited, or wrote by other means, is refused here."""
    try:
        return BUILDERS[result.name](result, name)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"not as studies write it ({why}); {str(result.folder / 'result.json')!r}; "
            "delete it and run `amfir study` again"
        ) from error


def _settings(settings: Mapping[str, Any]) -> str:
    named = {name: _plain(settings[name]) for name in _ONE_LINE if _is_set(settings.get(name))}
    if settings.get("project") == 0:  # not projected
        named.pop("project", None)
    return "; ".join(f"{_CALLED.get(name, name)}: {value}" for name, value in named.items())


def _is_set(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value is not False


def _facts(info: Mapping[str, Any]) -> Facts:
    values = [pair for name in ("versions", "config", "provenance", "specs") for pair in _flat(name, info.get(name))]
    commands = info.get("commands") or []
    return Facts(tuple(values), tuple(str(command) for command in commands) if isinstance(commands, list) else ())


def _flat(name: str, value: Any) -> list[tuple[str, str]]:
    """Nested values as pairs of a dotted name and a text; what is not set is left out."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(f"{name}.{key}", item)]
    return [(name, _plain(value))] if _is_set(value) else []


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)
