"""Heads by name: the methods of the field, one file each."""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from ...cache.errors import UserError, pick
from .base import Encoding, Head, Inputs, PairHead, PrototypeHead

__all__ = [
    "HEADS",
    "Encoding",
    "Entry",
    "Head",
    "Inputs",
    "PairHead",
    "PrototypeHead",
    "build_head",
    "fit_value",
    "head_config",
    "read_config",
]


@dataclass(frozen=True)
class Entry:
    """Where a head is, and what its name settles."""

    target: str
    """`module:Class` in this folder; imported when it is asked for."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters that the name stands for."""
    title: str = ""
    """How tables call it; the name where empty."""
    reconstruction: bool = False
    """Whether it was rebuilt without the original's code or full text: every table says so."""

    @property
    def module(self) -> str:
        """Name of the head's file and of its profiles, without suffix."""
        return self.target.partition(":")[0]

    def load(self) -> type[Head]:
        """Import the class."""
        module, _, name = self.target.partition(":")
        found: type[Head] = getattr(importlib.import_module(f".{module}", __name__), name)
        return found


HEADS: dict[str, Entry] = {
    "temporal": Entry("temporal:TemporalHead"),
    "protonet": Entry("protonet:ProtoNet", title="ProtoNet"),
    "tsn": Entry("tsn:Tsn", title="TSN-cos"),
    "matching": Entry("matching:MatchingNet", title="Matching Net"),
    "matching-fce": Entry("matching:FullContext", title="Matching Net (FCE)"),
    "maml": Entry("maml:Maml", title="MAML"),
    "cmn": Entry("cmn:Cmn", title="CMN"),
    "cmn-lite": Entry("cmn:CmnLite", title="CMN-lite"),
    "tarn": Entry("tarn:Tarn", title="TARN"),
    "arn": Entry("arn:Arn", {"spatial": True}, "ARN", reconstruction=True),
    "arn[pooled]": Entry("arn:Arn", {"spatial": False}, "ARN [pooled]", reconstruction=True),
    "otam": Entry("otam:Otam", title="OTAM"),
    "trx": Entry("trx:Trx", title="TRX"),
    "ta2n": Entry("ta2n:Ta2n", {"spatial": True}, "TA2N"),
    "ta2n[pooled]": Entry("ta2n:Ta2n", {"spatial": False}, "TA2N [pooled]"),
    "hyrsm": Entry("hyrsm:Hyrsm", title="HyRSM"),
    "strm": Entry("strm:Strm", {"spatial": True}, "STRM"),
    "strm[pooled]": Entry("strm:Strm", {"spatial": False}, "STRM [pooled]"),
    "mtfan": Entry("mtfan:Mtfan", title="MTFAN", reconstruction=True),
    "amefu-net": Entry("amefu:AmefuHead", title="AMeFu-Net"),
    "match-mean": Entry("matchers:Matcher", {"match": "mean"}, "Mean matcher"),
    "match-max": Entry("matchers:Matcher", {"match": "max"}, "Max matcher"),
    "match-diagonal": Entry("matchers:Matcher", {"match": "diagonal"}, "Diagonal matcher"),
    "match-linear": Entry("matchers:Matcher", {"match": "linear"}, "Linear matcher"),
    "chamfer": Entry("matchers:Matcher", {"match": "chamfer"}, "Chamfer"),
    "chamfer-joint": Entry("matchers:JointChamfer", {"match": "chamfer"}, "Chamfer (joint)"),
}
"""`NAME[pooled]` is the variant of a head that does without the spatial tokens it was made for."""


def head_config(name: str, settings: Mapping[str, Any]) -> Any:
    """The configuration of a head: what its name settles, then the settings given.

    Raises:
        UserError: If the head or a setting is unknown, the setting is one that the name settles, or its type is wrong.
    """
    entry = pick(HEADS, name, "head")
    return read_config(entry.load().config_type, settings, f"head {name!r}", entry.settings)


def read_config(
    config_type: Any, settings: Mapping[str, Any], owner: str, settled: Mapping[str, Any] | None = None
) -> Any:
    """An instance of a configuration, a frozen dataclass with defaults.

    Args:
        config_type: The dataclass.
        settings: Fields by name, as TOML has them.
        owner: Whose settings they are, for errors.
        settled: Fields that nobody may choose.

    Raises:
        UserError: If a setting is unknown, of the wrong kind, negative, not finite, or no dropout.
    """
    settled = settled or {}
    known = {f.name: f.name for f in fields(config_type) if f.name not in settled}
    for key in settings:
        pick(known, key, f"setting of {owner}")
    defaults = config_type(**settled)
    values = {key: fit_value(f"{owner}: {key}", value, getattr(defaults, key)) for key, value in settings.items()}
    for key, value in values.items():
        parts = value if isinstance(value, tuple) else (value,)
        if any(isinstance(part, (int, float)) and part < 0 for part in parts):
            raise UserError(f"{owner}: {key} is {value}; --set; sizes and weights cannot be negative")
        if any(isinstance(part, float) and not math.isfinite(part) for part in parts):
            raise UserError(f"{owner}: {key} is {value}; --set; give a finite number")
        if key == "dropout" and value > 1:
            raise UserError(f"{owner}: {key} is {value}; --set; give 0 to 1")
    return config_type(**settled, **values)


def build_head(name: str, inputs: Inputs, settings: Mapping[str, Any] | None = None, *, seed: int = 0) -> Head:
    """A head with fresh parameters, the same for equal arguments.

    Args:
        name: A key of `HEADS`.
        inputs: What it is built for.
        settings: Hyperparameters by name; the rest as the head's configuration has them.
        seed: Of the parameters.

    Raises:
        UserError: If a name is unknown, or the head needs spatial tokens and there are none.
    """
    config = head_config(name, settings or {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # mypy knows the abstract constructor alone.
        return HEADS[name].load()(inputs, config)  # type: ignore[call-arg]


def fit_value(name: str, value: Any, default: Any) -> Any:
    """A setting's value in the type of its default: whole numbers as floats where floats are meant, lists as tuples.

    Raises:
        UserError: If it is of another type.
    """
    if isinstance(default, tuple):
        given = value if isinstance(value, (list, tuple)) else [value]
        return tuple(fit_value(name, part, default[0]) for part in given)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not type(default):
        raise UserError(f"{name} is {value!r}; --set; give {type(default).__name__} such as {default!r}")
    return value
