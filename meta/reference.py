"""Evaluation one episode at a time: the plain loops that `evaluate` must agree with, and is measured against."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .episodes import Episodes
from .heads.base import Head


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


def score_loop(head: Head, features: Tensor, episodes: Episodes, scale: float = 1.0) -> Tensor:
    """Scaled logits of any head, encoding every clip of every episode anew.

    Args:
        head: In evaluation mode.
        features: View 0 of the clips, [V, T, D] ([V, T, P, D] with tokens).
        episodes: E episodes.
        scale: Factor of the logits.

    Returns:
        [E, NQ, N].
    """
    parts = []
    with torch.no_grad():
        for e in range(len(episodes)):
            support, query = features[episodes.support[e]].float(), features[episodes.query[e].flatten()].float()
            parts.append(scale * head(support[None], query[None])[0])
    return torch.stack(parts)
