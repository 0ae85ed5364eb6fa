"""Features of harmed videos: extracted as those of a cache were, from the videos that it was made from.

    WORK/noise-0.1-FINGERPRINT/cache     features of the harmed clips
    WORK/noise-0.1-FINGERPRINT/videos    the harmed clips while they are needed, some at a time

Interrupted and called again, it goes on with the clips that are missing.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..cache import Store, StreamSpec, differences
from ..cache.errors import UserError
from ..extract.clips import Clip
from ..extract.config import STREAMS, ExtractConfig
from ..extract.flow import FarnebackParameters
from ..extract.job import cores, extract
from ..extract.reasons import DecodeError
from ..extract.spec import agree
from .corrupt import Harm, harm_clip
from .datasets import open_source
from .features import FeatureSet, load_features

VERSION = 1
"""Of the harms of videos; raised by whoever changes the pixels."""

CLIPS_AT_ONCE = 256
"""Harmed videos that lie on the disk at the same time: a lossless clip of 200 frames has some 20 MB."""

CLEAN = Harm("noise", 0.0)
SAME_FEATURES = 0.01
"""Largest distance of a clip's features to those in the cache, as a share of their length: rounding stays far below,
another video or another preparation far above."""

_RGB_FIELDS = ("rgb", "normalise")
_FLOW_FIELDS = ("flow", "flow_backend", "flow_parameters", "flow_scale")

Progress = Callable[[int], None]
"""Told how many clips of a harm have their features."""


@dataclass(frozen=True, eq=False)
class Extractor:
    """Makes the features of harmed clips; opened by `open_extractor`."""

    clips: tuple[Clip, ...]
    """The clips that are harmed, by id."""
    specs: Mapping[str, StreamSpec]
    """Modality -> what made the features of the cache."""
    configs: tuple[ExtractConfig, ...]
    """Jobs that give these streams."""
    work: Path
    """Where the caches of the harmed clips go, a folder each."""
    seed: int = 0
    """Of the harms."""

    def features(self, harm: Harm, progress: Progress = lambda _: None) -> FeatureSet:
        """The features of all clips, harmed; extracted unless they were before.

        Raises:
            UserError: If a clip cannot be harmed or extracted, or the libraries here give other specs.
            MachineError: If the disk or the memory is full.
        """
        folder = self.work / f"{harm}-{self._fingerprint(harm)}"
        for config in self.configs:
            self._extract(harm, folder, config, progress)
        return self._read(folder)

    def clean(self) -> FeatureSet:
        """The features of the first clip, not harmed but otherwise made as those of harmed clips are.

        Raises:
            UserError: As `features` does.
        """
        return replace(self, clips=self.clips[:1]).features(CLEAN)

    def _read(self, folder: Path) -> FeatureSet:
        data = load_features(folder / "cache", tuple(self.specs))
        for name, spec in self.specs.items():
            if not agree(spec, data.specs[name]):
                raise UserError(
                    f"another {name} stream came out: {'; '.join(differences(spec, data.specs[name]))}; extract the "
                    "cache again with this installation"
                )
        return data

    def _extract(self, harm: Harm, folder: Path, config: ExtractConfig, progress: Progress) -> None:
        cache, videos = folder / "cache", folder / "videos"
        done = _extracted(cache, config.streams)
        todo = [clip for clip in self.clips if clip.id not in done]
        progress(len(self.clips) - len(todo))
        try:
            for start in range(0, len(todo), CLIPS_AT_ONCE):
                shutil.rmtree(videos, ignore_errors=True)
                videos.mkdir(parents=True)
                harmed = _harm_clips(todo[start : start + CLIPS_AT_ONCE], videos, harm, self.seed)
                before = len(self.clips) - len(todo) + start
                report = extract(harmed, cache, config, lambda p, before=before: progress(before + p.done))  # type: ignore[misc]
                if report.failed:
                    first = report.failures[0]
                    raise UserError(f"harmed clip {first.clip_id!r} cannot be extracted ({first.message}); {cache}")
        finally:
            shutil.rmtree(videos, ignore_errors=True)

    def _fingerprint(self, harm: Harm) -> str:
        """Of what decides the features beside the harm's name: what is in a folder is never taken for another's."""
        facts: dict[str, Any] = {
            "version": VERSION,
            "harm": asdict(harm),
            "seed": self.seed,
            "specs": {name: spec.fingerprint for name, spec in self.specs.items()},
            "clips": [clip.id for clip in self.clips],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def open_extractor(videos: Path, data: FeatureSet, work: Path, seed: int = 0) -> Extractor:
    """Prepare the extraction of harmed clips, and make sure that clips which are not harmed give what the cache holds.

    Args:
        videos: The dataset that the cache was extracted from.
        data: The clips to be harmed, as the cache has them; not projected.
        work: Where the caches of the harmed clips go.
        seed: Of the harms.

    Raises:
        UserError: If the settings of the cache cannot be had again here, clips have no video, or the videos are
            others.
    """
    wanted = set(data.clip_ids)
    found = sorted(clip for clip in open_source(videos) if clip.id in wanted)
    if lacking := wanted - {clip.id for clip in found}:
        raise UserError(f"{len(lacking)} of {len(wanted)} clips have no video, such as {min(lacking)!r}; {videos}")
    configs = reconstruct(data.specs)
    extractor = Extractor(tuple(found), data.specs, configs, work, seed)
    _require_same(data, extractor.clean(), videos)
    return extractor


def reconstruct(specs: Mapping[str, StreamSpec]) -> tuple[ExtractConfig, ...]:
    """The settings that streams were extracted with: one job for all, or one each where they differ.

    Weights are taken to be the published ones; whether they are is seen from the spec that comes out.

    Raises:
        UserError: If a stream was made by something else than `amfir extract`.
    """
    configs = {name: _config(spec) for name, spec in specs.items()}
    if set(configs) == set(STREAMS):
        rgb, flow = configs["rgb"], configs["flow"]
        joint = replace(rgb, streams=STREAMS, **{name: getattr(flow, name) for name in _FLOW_FIELDS})
        if joint == replace(flow, streams=STREAMS, **{name: getattr(rgb, name) for name in _RGB_FIELDS}):
            return (joint,)
    return tuple(configs.values())


def _config(spec: StreamSpec) -> ExtractConfig:
    """Settings of a job that gives this stream."""
    settings: Any = spec.settings
    try:
        backbone, sampling = settings["backbone"], settings["sampling"]
        own: dict[str, Any] = {spec.modality: backbone["name"]}
        if spec.modality == "flow":
            own |= _flow_fields(settings["flow"])
        else:
            # Without normalisation, the spec of a backbone says that nothing was taken off or divided by.
            own["normalise"] = any(backbone["mean"]) or any(value != 1 for value in backbone["std"])
        return ExtractConfig(
            streams=(spec.modality,),
            frames=spec.frames,
            views=spec.views,
            seed=sampling.get("seed", 0),
            size=backbone["size"],
            short_side=settings.get("short_side"),
            fit=settings["fit"],
            tokens=spec.tokens,
            batch_size=settings["batch_size"],
            precision=settings.get("precision", "fp32"),
            device=settings["device"],
            hwaccel=settings.get("hwaccel", "none"),
            **own,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"stream {spec.modality!r} cannot be extracted again: its spec lacks {error}; features that were not made "
            "by amfir extract are harmed as they are"
        ) from error


def _flow_fields(flow: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {name: value for name, value in flow.items() if name not in ("backend", "version", "scale")}
    fields = {"flow_backend": flow["backend"], "flow_parameters": FarnebackParameters(**parameters)}
    return fields | ({"flow_scale": flow["scale"]} if "scale" in flow else {})


def _require_same(data: FeatureSet, clean: FeatureSet, videos: Path) -> None:
    """Refuse videos other than those of the cache."""
    row = data.clip_ids.index(clean.clip_ids[0])
    for name, values in clean.features.items():
        here, cached = values[0].float(), data.features[name][row].float()
        distance = float(torch.dist(here, cached) / cached.norm().clamp_min(1e-9))
        if distance > SAME_FEATURES:
            raise UserError(
                f"the {name} features of {clean.clip_ids[0]!r} differ from those in the cache by {100 * distance:.1f} "
                f"%; {videos}; name the videos that the cache was extracted from"
            )


def _extracted(cache: Path, streams: Sequence[str]) -> set[str]:
    """Ids of the clips that all streams of a cache hold; none if there is no cache."""
    if not (cache / "cache.json").is_file():
        return set()
    store = Store(cache)
    present = store.streams()
    ids = [set(store.read(name).clip_ids) if name in present else set() for name in streams]
    return set.intersection(*ids)


def _harm_clips(clips: Sequence[Clip], folder: Path, harm: Harm, seed: int) -> list[Clip]:
    """Write harmed videos, a thread a core; their names are numbers, since ids need not be names of files."""

    def write(item: tuple[int, Clip]) -> Clip:
        number, clip = item
        path = folder / f"{number:06d}.mkv"
        try:
            harm_clip(clip, path, harm, seed)
        except DecodeError as error:
            raise UserError(f"clip {clip.id!r} cannot be harmed ({error}); {clip.path}; leave it out") from error
        return Clip(clip.id, path, clip.label)

    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(write, enumerate(clips)))
