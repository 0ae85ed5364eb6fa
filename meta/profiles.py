"""Profiles: the hyperparameters of a head and of its training, in one TOML beside each head.

`fair` is one protocol for all heads; `paper` follows a head's original, quirks included.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cache.errors import UserError, pick
from .heads import HEADS

FOLDER = Path(__file__).parent / "heads"


@dataclass(frozen=True)
class Profile:
    """Settings by name; what is left out is as the configurations' defaults have it."""

    head: Mapping[str, Any]
    """For the head's configuration."""
    training: Mapping[str, Any]
    """For `train.TrainConfig`, and `query`, the queries of each class."""
    early: Mapping[str, Any] = field(default_factory=dict)
    """For the early fusion before the head, where the method has one."""


def load_profile(head: str, name: str = "fair", settings: Sequence[str] = ()) -> Profile:
    """Read a head's profile and put the user's settings over it.

    Args:
        head: A key of `HEADS`.
        name: `fair` or `paper`.
        settings: `head.NAME=VALUE`, `training.NAME=VALUE`, `early.NAME=VALUE`; values as in TOML, words without quotes.

    Raises:
        UserError: If the head or profile is unknown, or a setting cannot be read.
    """
    layers = [tomllib.loads(path.read_text(encoding="utf-8")) for path in _files(head)]
    pick({"fair": 0, "paper": 0}, name, "profile")
    parts: dict[str, dict[str, Any]] = {"head": {}, "training": {}, "early": {}}
    for layer in layers:
        for part, values in layer.get(name, {}).items():
            parts[part] |= values
    for setting in settings:
        key, equals, value = setting.partition("=")
        part, dot, field = key.strip().partition(".")
        if not (equals and dot and field and value.strip()):
            raise UserError(
                f"cannot read {setting!r}; --set; write head.NAME=VALUE, training.NAME=VALUE or early.NAME=VALUE"
            )
        pick(parts, part, "part of a profile")[field] = _value(value.strip())
    return Profile(**parts)


def _files(head: str) -> list[Path]:
    """What is common to all heads, then a head's own TOML, else the one of its module; it may have none."""
    entry = pick(HEADS, head, "head")
    own = [FOLDER / f"{name}.toml" for name in (head.removesuffix("[pooled]"), entry.module)]
    return [FOLDER / "common.toml", *[path for path in own if path.is_file()][:1]]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
