"""One temperature a modality, so that the posteriors of different modalities are on one scale (method section 1)."""

import math

import torch
from torch import Tensor

from .episodes import EpisodeShape

START_DISTANCE = 8.0
"""Mean psi that an initial temperature aims at: posteriors neither flat nor saturated."""

SEARCH_FACTOR = 1e3
"""The fit looks between the initial temperature divided and multiplied by this."""

FIT_EPISODES = 1000
"""Episodes that temperatures are fitted on, where their distances are not too many."""

FIT_VALUES = 2**25
"""Distances of a modality that temperatures are fitted on at most: one episode of a thousand ways has millions."""


def fitting_episodes(shape: EpisodeShape, most: int = FIT_EPISODES) -> int:
    """How many episodes to fit temperatures on: at most `most`, and at least one."""
    return max(1, min(most, FIT_VALUES // (shape.way**2 * shape.query)))


def initial_temperature(psi: Tensor) -> float:
    """Factor that makes the mean distance 8; 1 if all distances are 0.

    Args:
        psi: Distances at temperature 1, any shape.
    """
    mean = psi.detach().double().mean().item()
    return START_DISTANCE / mean if mean > 0 else 1.0


def fit_temperature(psi: Tensor, labels: Tensor) -> float:
    """Temperature tau that minimises the mean cross-entropy of softmax_k(-tau psi_k).

    The cross-entropy is convex in tau, hence has one valley over log tau; a golden-section search in float64 finds it
    to about 1e-7 of its value. Where the classes separate perfectly, there is no minimum and tau is the search's bound.

    Args:
        psi: One modality's distances at temperature 1 on episodes of the base classes, [..., NQ, N].
        labels: Class positions, [NQ] or as psi without its last axis.

    Returns:
        tau > 0, the same on every call.
    """
    psi = psi.detach().double()
    # Distances above the smallest: the posterior is the same, and the products with tau lose no digits.
    psi = psi - psi.amin(-1, keepdim=True)
    own = psi.gather(-1, labels.expand(psi.shape[:-1])[..., None])[..., 0].mean()
    start = math.log(initial_temperature(psi))

    def cross_entropy(log_tau: float) -> float:
        tau = math.exp(log_tau)
        return (tau * own + torch.logsumexp(-tau * psi, -1).mean()).item()

    reach = math.log(SEARCH_FACTOR)
    low, high = start - reach, start + reach
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = cross_entropy(left), cross_entropy(right)
    while high - low > 1e-8:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = cross_entropy(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = cross_entropy(right)
    return math.exp((low + high) / 2)
