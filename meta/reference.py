"""Evaluation one episode at a time: the plain loop that `evaluate` must agree with, and is measured against."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .episodes import Episodes


def evaluate_loop(
    features: Mapping[str, Tensor],
    heads: Mapping[str, Callable[[Tensor], Tensor]],
    temperatures: Mapping[str, float],
    episodes: Episodes,
) -> Tensor:
    """Fused log posteriors by AMI with squared Euclidean distances, encoding every clip of every episode anew.

    Args:
        features: Modality -> cached features [clips, views, T, D]; view 0 is used.
        heads: Modality -> head, [n, T, D] float32 -> [n, d].
        temperatures: Modality -> factor of its distances.
        episodes: E episodes.

    Returns:
        [E, NQ, N]; the predictions are its argmax.
    """
    with torch.no_grad():
        return torch.stack([_classify(features, heads, temperatures, episodes, e) for e in range(len(episodes))])


def _classify(
    features: Mapping[str, Tensor],
    heads: Mapping[str, Callable[[Tensor], Tensor]],
    temperatures: Mapping[str, float],
    episodes: Episodes,
    e: int,
) -> Tensor:
    support, query = episodes.support[e], episodes.query[e].flatten()
    psis, certainties = [], []
    for name, values in features.items():
        prototypes = heads[name](values[support.flatten(), 0].float()).view(*support.shape, -1).mean(1)
        embedded = heads[name](values[query, 0].float())
        psi = temperatures[name] * (embedded[:, None] - prototypes[None]).square().sum(-1)
        psis.append(psi)
        certainties.append(psi.neg().softmax(-1).amax(-1))
    total = torch.stack(certainties).sum(0)
    fused = torch.stack([(c / total)[:, None] * psi for c, psi in zip(certainties, psis, strict=True)]).sum(0)
    return fused.neg().log_softmax(-1)
