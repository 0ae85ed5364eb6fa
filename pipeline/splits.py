"""Which classes train, which validate and which are new: files, seeded halves, and the splits that papers use."""

import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.errors import UserError, pick
from .datasets import PARTS, csv_split

MIN_CLASSES_TO_HOLD_OUT = 8
"""With fewer base classes, holding some out would cost training more than validation gives."""


@dataclass(frozen=True)
class ClassSplit:
    """Class names, divided into parts that share none.

    Raises:
        UserError: If two parts share a class, or if train or test is empty.
    """

    train: tuple[str, ...]
    """Base classes."""
    val: tuple[str, ...]
    """Classes of the validation episodes; may be empty, see `hold_out`."""
    test: tuple[str, ...]
    """Novel classes."""
    name: str
    """What the user typed."""
    source: str
    """Where the split comes from: a paper, a file, a seed."""

    def __post_init__(self) -> None:
        parts = {"train": self.train, "val": self.val, "test": self.test}
        for part in ("train", "test"):
            if not parts[part]:
                raise UserError(f"no {part} classes; in the split {self.name!r}; name at least one")
        _check_disjoint(parts, self.name)

    def hold_out(self, fraction: float = 0.1, seed: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the train and validation classes, taking the latter from the former if the split names none.

        At least two classes are held out, so that validation episodes have something to tell apart; an episode's way
        has to be lowered to their number. With fewer than `MIN_CLASSES_TO_HOLD_OUT` base classes nothing is held out,
        and the caller validates on the base classes or not at all.

        Args:
            fraction: Part of the base classes to hold out, in [0, 1).
            seed: Which ones.
        """
        if self.val or len(self.train) < MIN_CLASSES_TO_HOLD_OUT:
            return self.train, self.val
        count = max(2, round(fraction * len(self.train)))
        held = set(np.random.default_rng(seed).permutation(len(self.train))[:count].tolist())
        keep = tuple(name for index, name in enumerate(self.train) if index not in held)
        return keep, tuple(name for index, name in enumerate(self.train) if index in held)


def load_split(text: str, class_names: Sequence[str]) -> ClassSplit:
    """Read the split that `text` names and translate its classes to the cache's labels.

    Names match exactly, or else when they agree in everything but case, spaces, punctuation and brackets. Labels that
    no part names are left out of the split.

    Args:
        text: A TOML file (`[classes]` with `train`, `val`, `test`), a CSV with a `split` column, `random:SEED` (two
            halves of the sorted names, the base half the larger one), or a built-in name.
        class_names: The cache's labels.

    Raises:
        UserError: If the split is unknown or badly written, or names classes the cache lacks.
    """
    labels = sorted(set(class_names))
    if text.startswith("random:"):
        return _random_halves(text, labels)
    parts, source = _read(text)
    _check_disjoint(parts, text)
    label_of = _match({name for names in parts.values() for name in names}, labels, text)
    train, val, test = (tuple(label_of[name] for name in parts.get(part, ())) for part in PARTS)
    return ClassSplit(train, val, test, text, source)


def builtin_splits() -> dict[str, Traversable]:
    """Return the file of each built-in split, by name."""
    folder = resources.files(__package__) / "builtin_splits"
    return {file.name.removesuffix(".toml"): file for file in folder.iterdir() if file.name.endswith(".toml")}


def normal_form(name: str) -> str:
    """Reduce a class name to its letters and digits: `brush_hair`, `BrushHair` and `Brush [hair]` agree."""
    return "".join(char for char in unicodedata.normalize("NFKC", name).casefold() if char.isalnum())


def _random_halves(text: str, labels: list[str]) -> ClassSplit:
    seed = text.removeprefix("random:")
    if not re.fullmatch(r"[0-9]+", seed):
        raise UserError(f"{seed!r} is no seed; in the split {text!r}; write a whole number, as in random:0")
    if len(labels) < 2:
        raise UserError(f"{len(labels)} classes cannot be halved; in the split {text!r}; extract clips of more classes")
    order = [labels[index] for index in np.random.default_rng(int(seed)).permutation(len(labels))]
    half = (len(labels) + 1) // 2
    source = f"halves of {len(labels)} classes, seed {seed}"
    return ClassSplit(tuple(sorted(order[:half])), (), tuple(sorted(order[half:])), text, source)


def _read(text: str) -> tuple[Mapping[str, Sequence[str]], str]:
    """Return the parts as written and where they come from."""
    path = Path(text)
    if path.suffix.lower() not in (".toml", ".csv") and "/" not in text:
        return _parse(_builtin_text(text), text)
    if not path.is_file():
        raise UserError(
            f"no such split file: {text!r}; name a .toml file with [classes], random:SEED or a built-in split"
        )
    if path.suffix.lower() == ".csv":
        return _read_csv(path), text
    try:
        return _parse(path.read_text(encoding="utf-8"), text)
    except UnicodeDecodeError as error:
        raise UserError(f"byte {error.start} is not UTF-8; in the split {text!r}; save the file as UTF-8") from error


def _builtin_text(name: str) -> str:
    files = builtin_splits()
    if name not in files:
        pick(dict.fromkeys([*files, "random:SEED", "FILE.toml"]), name, "split")
    return files[name].read_text(encoding="utf-8")


def _read_csv(path: Path) -> dict[str, list[str]]:
    parts = csv_split(path)
    if parts is None:
        raise UserError(f"no split column; in {str(path)!r}; write path,label,split in line 1, or use a .toml file")
    return parts


def _parse(toml: str, name: str) -> tuple[dict[str, Sequence[str]], str]:
    try:
        table: dict[str, Any] = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"not readable as TOML ({error}); in the split {name!r}; mend that line") from error
    _refuse_unknown(table, ("classes", "source"), name)
    classes, source = table.get("classes"), table.get("source", name)
    if not isinstance(classes, dict):
        raise UserError(
            f'no [classes] table; in the split {name!r}; write [classes], then train = ["..."], test = ["..."]'
        )
    if not isinstance(source, str):
        raise UserError(f"source is {source!r}; in the split {name!r}; write it as a string")
    _refuse_unknown(classes, PARTS, name)
    for part, names in classes.items():
        if not isinstance(names, list) or not all(isinstance(item, str) for item in names):
            raise UserError(f'{part} is no list of class names; in the split {name!r}; write {part} = ["...", "..."]')
    return classes, source


def _refuse_unknown(table: Mapping[str, object], known: Sequence[str], name: str) -> None:
    unknown = [key for key in table if key not in known]
    if unknown:
        raise UserError(f"unknown key {unknown[0]!r}; in the split {name!r}; known: {', '.join(known)}")


def _check_disjoint(parts: Mapping[str, Sequence[str]], name: str) -> None:
    part_of: dict[str, str] = {}
    for part, names in parts.items():
        twice = sorted({class_name for class_name in names if list(names).count(class_name) > 1})
        if twice:
            raise UserError(f"{_quoted(twice)} twice in {part}; in the split {name!r}; name each class once")
        for other in dict.fromkeys(part_of[class_name] for class_name in names if class_name in part_of):
            shared = sorted(class_name for class_name in names if part_of.get(class_name) == other)
            raise UserError(
                f"{other} and {part} share {_quoted(shared)}; in the split {name!r}; keep each class in one part"
            )
        part_of.update(dict.fromkeys(names, part))


def _match(names: Set[str], labels: Sequence[str], split: str) -> dict[str, str]:
    """Return the label that each name of the split stands for."""
    by_form: dict[str, list[str]] = {}
    for label in labels:
        by_form.setdefault(normal_form(label) or label, []).append(label)
    found = {}
    for name in names:
        near = [name] if name in labels else by_form.get(normal_form(name), [])
        if len(near) > 1:
            raise UserError(f"{name!r} could be {_quoted(near)}; in the split {split!r}; write the label exactly")
        if near:
            found[name] = near[0]
    lacking = sorted(names - found.keys())
    if lacking:
        raise UserError(_lacking_message(lacking, labels, split))
    return found


def _lacking_message(lacking: Sequence[str], labels: Sequence[str], split: str) -> str:
    forms = {normal_form(label): label for label in labels}
    near = get_close_matches(normal_form(lacking[0]), forms, n=1)
    hint = f"did you mean {forms[near[0]]!r}?" if near else "extract them, or write a .toml file without them"
    classes = "class" if len(lacking) == 1 else "classes"
    return f"{len(lacking)} {classes} of the split {split!r} not in the cache: {_quoted(lacking)}; {hint}"


def _quoted(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(map(repr, names[:count])) + (", ..." if len(names) > count else "")
