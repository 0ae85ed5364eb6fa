"""Untrained nearest prototypes: what the frozen features know by themselves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cache.errors import UserError
from .episodes import EpisodeSampler
from .evaluate import EvaluationConfig, score_episodes
from .model import Features
from .prototypes import PrototypeScorer
from .temperature import fit_temperature, fitting_episodes

STD_FLOOR = 0.1
"""Smallest deviation a feature is divided by, as a share of the mean one: features that hardly move on base clips say
nothing, and dividing by almost nothing would let them drown the others."""

POOLED_AT_ONCE = 512
"""Clips whose frames are averaged at once."""


def untrained_embeddings(features: Features, labels: Tensor, base_ids: Sequence[int]) -> dict[str, Tensor]:
    """Mean over time of view 0, standardised by the mean and deviation of the base clips: modality -> [clips, D]."""
    base = torch.isin(labels, torch.tensor(list(base_ids)))
    embeddings = {}
    for name, values in features.items():
        # Some clips at a time: features may be larger than memory, and float32 doubles them.
        pooled = torch.cat([part[:, 0].float().mean(1) for part in torch.split(values, POOLED_AT_ONCE)])
        deviation = pooled[base].std(0)
        scale = deviation.clamp_min(STD_FLOOR * float(deviation.mean())).clamp_min(1e-12)
        embeddings[name] = (pooled - pooled[base].mean(0)) / scale
    return embeddings


def untrained_temperatures(
    embeddings: dict[str, Tensor],
    labels: Tensor,
    base_ids: Sequence[int],
    config: EvaluationConfig,
    class_names: Sequence[str],
) -> dict[str, float]:
    """One temperature a modality, fitted on episodes of the base classes; of their way where there are fewer classes.

    Raises:
        UserError: If there are fewer than two base classes, or one has too few clips.
    """
    if len(base_ids) < 2:
        raise UserError(
            f"the split has {len(base_ids)} base class; temperatures are fitted on two or more; add classes"
        )
    shape = config.shape
    shape = type(shape)(min(shape.way, len(base_ids)), shape.shot, shape.query)
    base = torch.isin(labels, torch.tensor(list(base_ids)))
    sampler = EpisodeSampler(labels[base], base_ids, shape, class_names)
    scorer = PrototypeScorer({name: values[base] for name, values in embeddings.items()})
    scores = score_episodes(scorer, sampler, EvaluationConfig(shape, fitting_episodes(shape), config.seed))
    answers = shape.query_labels()
    return {name: fit_temperature(psi, answers) for name, psi in zip(embeddings, scores.psi, strict=True)}
