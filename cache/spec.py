"""What made the numbers of a stream: the spec that every writer and reader of the stream has to agree on."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

from .errors import UserError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

MODALITY_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_ABSENT = object()


@dataclass(frozen=True)
class StreamSpec:
    """One stream's shape and everything that decides its values.

    Raises:
        UserError: If the name, a count or the settings cannot be stored.
    """

    modality: str
    """Name of the stream and of its folder: lower-case letters, digits, `_` and `-`."""
    frames: int
    """Frames (T) of a view."""
    views: int
    """Views (V) of a clip."""
    dim: int
    """Values (D) of a frame's feature."""
    settings: Mapping[str, Json]
    """Backbone, weights, sampling, library versions ...: nested plain JSON that the cache compares but never reads."""
    tokens: int = 0
    """Spatial tokens (P) of a frame, each with a feature of its own; 0: a frame has one feature."""

    def __post_init__(self) -> None:
        if not isinstance(self.modality, str) or not MODALITY_NAME.fullmatch(self.modality):
            raise UserError(
                f"stream name {self.modality!r} is not usable as a folder; in the stream's spec; "
                "use up to 64 lower-case letters, digits, '_' and '-'"
            )
        for name, least in (("frames", 1), ("views", 1), ("dim", 1), ("tokens", 0)):
            count = getattr(self, name)
            if type(count) is not int or count < least:
                where = f"in the spec of stream {self.modality!r}"
                raise UserError(f"{name} is {count!r}; {where}; use a count of at least {least}")
        object.__setattr__(self, "settings", _plain(self.settings, f"stream {self.modality!r}"))

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the spec's canonical JSON; equal specs, and only they, share it."""
        return hashlib.sha256(_canonical(self.to_json()).encode()).hexdigest()

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of a frame's feature: (D,), or (P, D) with tokens."""
        return (self.tokens, self.dim) if self.tokens else (self.dim,)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a clip's features: (V, T, D), or (V, T, P, D) with tokens."""
        return (self.views, self.frames, *self.feature_shape)

    def to_json(self) -> dict[str, Json]:
        """Return the spec as plain JSON values."""
        # Without tokens they are left out: the fingerprints of caches that know none have to stay.
        return {
            "modality": self.modality,
            "frames": self.frames,
            "views": self.views,
            "dim": self.dim,
            "settings": dict(self.settings),
            **({"tokens": self.tokens} if self.tokens else {}),
        }

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Return the spec that `to_json` gave.

        Raises:
            UserError: If `data` is something else.
        """
        if not isinstance(data, dict) or set(data) - {"tokens"} != {"modality", "frames", "views", "dim", "settings"}:
            raise UserError(f"not a stream spec: {data!r:.80}; it needs modality, frames, views, dim and settings")
        return cls(**data)


def differences(cached: StreamSpec, asked: StreamSpec) -> list[str]:
    """Return one line per differing field, both sides shown.

    Args:
        cached: The spec in the cache.
        asked: The spec of the reader or writer.

    Returns:
        Lines such as "settings.flow.winsize: 15 in the cache, 21 asked"; empty if the specs are equal.
    """
    return list(_differences("", cached.to_json(), asked.to_json()))


def _differences(name: str, cached: object, asked: object) -> Iterator[str]:
    # A whole group that one side lacks is listed field by field, like a group that both have.
    groups = [side for side in (cached, asked) if isinstance(side, dict)]
    if len(groups) == 2 or (len(groups) == 1 and groups[0] and _ABSENT in (cached, asked)):
        left, right = (side if isinstance(side, dict) else {} for side in (cached, asked))
        for key in sorted(left.keys() | right.keys()):
            yield from _differences(f"{name}.{key}" if name else key, left.get(key, _ABSENT), right.get(key, _ABSENT))
    elif _show(cached) != _show(asked):
        yield f"{name}: {_show(cached)} in the cache, {_show(asked)} asked"


def _show(value: object) -> str:
    return "absent" if value is _ABSENT else _canonical(value)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(settings: object, where: str) -> dict[str, Json]:
    """Return a deep copy of `settings` in plain JSON types."""
    try:
        plain = json.loads(json.dumps(_with_text_keys(settings), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"settings that are no JSON ({error}); in the spec of {where}; use plain values") from None
    if not isinstance(plain, dict):
        raise UserError(f"settings are {plain!r:.80}; in the spec of {where}; use names and values")
    return plain


def _with_text_keys(value: object) -> object:
    """Return `value` with mappings as dicts; `json` alone would turn a key 1 into "1" without a word."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"a name that is not text among {list(value)!r:.80}")
        return {key: _with_text_keys(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_text_keys(item) for item in value]
    return value
