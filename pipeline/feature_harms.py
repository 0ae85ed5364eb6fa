"""Harms of cached features, where the videos are not at hand: what `corrupt` does to pixels, done to feature vectors.

They stand for the harms of a camera, but are not those: how far pixels' noise moves a feature is for the backbone to
say. Whoever shows their results says that it was the features that were harmed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..cache.errors import pick
from .corrupt import Harm, clip_generator

Draw = Callable[[str], list[np.random.Generator]]
"""Generators of a purpose, one for each clip."""


@dataclass(frozen=True, eq=False)
class BaseStatistics:
    """What the features of the base clips look like, frame by frame, in one modality."""

    mean: Tensor
    """[D], float32."""
    deviation: Tensor
    """[D], float32, population."""


def base_statistics(features: Tensor, clips: Tensor) -> BaseStatistics:
    """Mean and deviation of each dimension over the frames of some clips (view 0).

    Args:
        features: [clips, views, T, D], any floating point, memory-mapped or not.
        clips: Indices of the base clips, at least one.
    """
    total = torch.zeros(features.shape[-1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    # About a first frame, or squares of large numbers would take the digits of small differences.
    origin = features[clips[0], 0, 0].double()
    for clip in clips.tolist():  # one by one: all in float64 may need more memory than there is
        frames = features[clip, 0].double() - origin
        total += frames.mean(0) / len(clips)
        squares += frames.square().mean(0) / len(clips)
    deviation = (squares - total.square()).clamp_min(0).sqrt()
    return BaseStatistics((total + origin).float(), deviation.float())


def harm_features(
    features: Tensor, clip_ids: Sequence[str], harm: Harm, base: BaseStatistics, modality: str, seed: int = 0
) -> Tensor:
    """Harm all clips of a modality.

    Args:
        features: [clips, views, T, D], not projected.
        clip_ids: [clips]; with the seed the source of all randomness.
        harm: A key of `FEATURE_HARMS` and its level.
        base: Of the same modality.
        modality: Its noise is independent of other modalities'; frames are lost to all of them at once.
        seed: Of the harm.

    Returns:
        The same shape, float32.

    Raises:
        UserError: If the harm is unknown.
    """

    def draw(purpose: str) -> list[np.random.Generator]:
        return [clip_generator(seed, clip, purpose) for clip in clip_ids]

    change = pick(FEATURE_HARMS, harm.name, "harm of features")
    return change(features.float(), harm.level, base, lambda purpose: draw(purpose.format(modality=modality)))


def _noise(features: Tensor, level: float, base: BaseStatistics, draw: Draw) -> Tensor:
    """Add Gaussian noise, in each dimension level times its deviation on base clips."""
    harmed = features.clone()
    for clip, generator in zip(harmed, draw("noise of {modality}"), strict=True):
        clip += level * base.deviation * torch.from_numpy(generator.standard_normal(clip.shape, dtype=np.float32))
    return harmed


def _blur(features: Tensor, level: float, _: BaseStatistics, __: Draw) -> Tensor:
    """Average over time: each frame with those up to level * T away, as far as there are any."""
    num_frames = features.shape[-2]
    reach, time = round(level * num_frames), torch.arange(num_frames)
    near = ((time[:, None] - time).abs() <= reach).float()
    return (near / near.sum(1, keepdim=True)) @ features


def _dark(features: Tensor, level: float, base: BaseStatistics, _: Draw) -> Tensor:
    """Draw towards the mean of the base clips; at level 1 nothing else is left."""
    return base.mean + (1 - level) * (features - base.mean)


def _drop(features: Tensor, level: float, _: BaseStatistics, draw: Draw) -> Tensor:
    """Lose each frame but the first with that probability and repeat the last one that was not lost."""
    views, num_frames = features.shape[1:3]
    kept = np.stack([generator.random((views, num_frames)) >= level for generator in draw("lost frames")])
    shown = np.maximum.accumulate(np.where(kept, np.arange(num_frames), 0), -1)
    return features.take_along_dim(torch.from_numpy(shown)[..., None], -2)


FEATURE_HARMS: dict[str, Callable[[Tensor, float, BaseStatistics, Draw], Tensor]] = {
    "noise": _noise,
    "blur": _blur,
    "dark": _dark,
    "drop": _drop,
}
