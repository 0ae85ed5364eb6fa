"""Every head in both profiles, small, with episodes for it: what the tests of all heads work on."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from amfir.meta.heads import HEADS, Head, Inputs, build_head
from amfir.meta.profiles import load_profile

SMALL: dict[str, dict[str, Any]] = {
    "temporal": {"dim": 5},
    "protonet": {"dim": 5},
    "tsn": {"dim": 5},
    "matching": {"dim": 5},
    "matching-fce": {"dim": 5, "steps": 2},
    "maml": {"dim": 5, "way": 3, "test_steps": 3},
    "cmn": {"dim": 5, "key_dim": 4, "saliencies": 3},
    "cmn-lite": {"dim": 5, "saliencies": 3},
    "tarn": {"dim": 5, "hidden": 3, "relation": 3},
    "arn": {"width": 5, "comparator": 3},
    "otam": {"dim": 5},
    "trx": {"dim": 5},
    "ta2n": {"dim": 5, "locnet": 8, "mvnet": 4},
    "hyrsm": {"dim": 6, "heads": 3, "head_dim": 2},
    "strm": {"dim": 5},
    "mtfan": {"dim": 5, "motion_dim": 4, "segments": 3},
    "amefu-net": {"dim": 5},
    "match-mean": {"dim": 5},
    "match-max": {"dim": 5},
    "match-diagonal": {"dim": 5},
    "match-linear": {"dim": 5},
    "chamfer": {"dim": 5},
    "chamfer-joint": {"dim": 5},
}
"""Narrow settings; a profile's 0, which mostly stands for the features' own width, stays."""

LONG: dict[str, dict[str, Any]] = {"trx": {"cardinalities": (2,)}}
"""Settings for clips of 32 frames, whose 4960 triples attend to each other in 25 million pairs."""

BASE_CLASSES = 7


@dataclass(frozen=True)
class Case:
    """A head in one of its profiles."""

    name: str
    profile: str

    @property
    def spatial(self) -> bool:
        return HEADS[self.name].settings.get("spatial") is True

    def inputs(self, frames: int = 4, dim: int = 6, classes: int = BASE_CLASSES) -> Inputs:
        return Inputs(frames, dim, 4 if self.spatial else 0, classes)

    def settings(self, frames: int = 4) -> dict[str, Any]:
        chosen, plain = dict(load_profile(self.name, self.profile).head), self.name.removesuffix("[pooled]")
        small = SMALL.get(plain, {}) | (LONG.get(plain, {}) if frames == 32 else {})
        return chosen | {key: value for key, value in small.items() if chosen.get(key) != 0}

    def clips(self, *lead: int, seed: int, frames: int = 4, dim: int = 6) -> Tensor:
        frame = (4, dim) if self.spatial else (dim,)
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*lead, frames, *frame, generator=generator, dtype=torch.float64)

    def build(self, dtype: torch.dtype = torch.float64, *, seed: int = 0, **sizes: int) -> Head:
        """A head after its start, in evaluation mode."""
        settings = self.settings(sizes.get("frames", 4))
        head = build_head(self.name, self.inputs(**sizes), settings, seed=seed).to(dtype)
        sizes.pop("classes", None)
        clips = self.clips(12, seed=9, **sizes).to(dtype)
        head.start(clips, torch.arange(12) % 3, torch.Generator().manual_seed(seed))
        return head.eval()


@cache
def built(case: Case) -> Head:
    """A head that several tests share; none of them changes it."""
    return case.build()


def episode(
    case: Case, batch: int = 2, way: int = 3, shot: int = 3, queries: int = 4, **sizes: int
) -> tuple[Tensor, Tensor]:
    """Support [B, N, K, ...] and queries [B, Q, ...]."""
    return case.clips(batch, way, shot, seed=1, **sizes), case.clips(batch, queries, seed=2, **sizes)


def same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


def learn(head: Head, support: Tensor, query: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The training path, with the same dropout on each call; query q is of class q % N."""
    (batch, way, shot), queries = support.shape[:3], query.shape[1]
    labels = (torch.arange(queries) % way).expand(batch, -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoding = head.encode(torch.cat([support.flatten(0, 2), query.flatten(0, 1)]))
        in_support = batch * way * shot
        logits, losses = head.learn(
            tuple(torch.unflatten(part[:in_support], 0, (batch, way, shot)) for part in encoding),
            tuple(torch.unflatten(part[in_support:], 0, (batch, queries)) for part in encoding),
            labels,
            classes,
        )
    return logits, losses


def base_classes(batch: int, way: int) -> Tensor:
    return torch.arange(batch * way).view(batch, way) % BASE_CLASSES


def trainable(head: Head) -> dict[str, nn.Parameter]:
    return {name: value for name, value in head.named_parameters() if value.requires_grad}
