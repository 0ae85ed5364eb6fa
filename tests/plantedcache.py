"""Small caches of random features with a mean for each class, for the tests of the second stage."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from amfir.cache import Row, StreamSpec, StreamWriter

DIMS = {"rgb": 12, "flow": 8}


def planted_spec(modality: str, views: int = 1, backbone: str = "planted") -> StreamSpec:
    """Return the spec of a stream with three frames."""
    return StreamSpec(modality, 3, views, DIMS[modality], {"backbone": {"name": backbone}})


def planted_row(spec: StreamSpec, name: str, clip: int, separation: float = 0.5) -> Row:
    """Return a clip of a class: noise around the class's mean, another mean in each modality."""
    modality, label = list(DIMS).index(spec.modality), int(name.removeprefix("class "))
    mean = np.random.default_rng((modality, label)).normal(size=spec.dim)
    noise = np.random.default_rng((modality, label, clip)).normal(size=(spec.views, spec.frames, spec.dim))
    features = (separation * mean + noise).astype(np.float16)
    times = np.zeros((spec.views, spec.frames))
    return Row(f"{name}/{clip:03d}.mp4", name, features, times, 1, 1)


def plant(
    root: Path,
    *,
    streams: Sequence[str] = ("rgb", "flow"),
    classes: int = 10,
    clips: int = 6,
    views: Mapping[str, int] | None = None,
    backbone: str = "planted",
    without: Mapping[str, Sequence[str]] | None = None,
) -> Path:
    """Write a cache.

    Args:
        root: Its directory.
        streams: Modalities.
        classes: "class 0", "class 1" ...
        clips: Clips of each class.
        views: Modality -> views of its clips, if not 1.
        backbone: Name in the specs.
        without: Modality -> clip ids that it lacks.
    """
    for modality in streams:
        with StreamWriter(root, planted_spec(modality, (views or {}).get(modality, 1), backbone)) as writer:
            for name in (f"class {number}" for number in range(classes)):
                rows = (planted_row(writer.spec, name, clip) for clip in range(clips))
                for row in rows:
                    if row.clip_id not in (without or {}).get(modality, ()):
                        writer.add(row)
    return root
