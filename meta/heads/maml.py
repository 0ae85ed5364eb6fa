"""MAML on frozen features: a classifier that takes a few steps of gradient descent on the support (Finn et al. 2017).

The inner gradients are closed forms, taken for a batch of episodes at once. In the layer that sees the features they
are never written out: a step adds multiples of support clips to its weights, so that a clip's value there follows from
inner products with the support alone,

    (W - sum_t r G_t' S) x + (b - sum_t s G_t' 1) = W x + b - (sum_t G_t)' (r S x + s 1),

with G_t [M, out] the gradient at the layer's output in step t, S [M, d] the support, r and s the rates of W and b.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...cache.errors import UserError
from .base import Encoding, Head, Inputs
from .parts import FrameEmbedding


@dataclass(frozen=True)
class MamlConfig:
    """What the inner learner is, and how it descends."""

    dim: int = 256
    """Width of the frame embedding; 0: frames stay as they are."""
    hidden: int = 0
    """Hidden units (ReLU) of the learner; 0: it is linear."""
    shared_start: bool = True
    """Start all classes of the output layer from one row. No softmax sees a row that all classes share, so it is zero
    and no parameter; any number of ways, and the order of classes makes no difference. False: `way` rows are learnt."""
    way: int = 5
    """Classes that the learnt rows are for; no matter where they are shared."""
    inner_rate: float = 0.03
    """Rate of the inner steps, where they start if they are learnt; the original has 0.01."""
    learn_rates: bool = True
    """Learn one rate for each tensor of the learner, as its logarithm (Meta-SGD has one for each weight)."""
    second_order: bool = True
    """Let the outer gradient go through the inner ones; False: they are constants (first-order MAML)."""
    train_steps: int = 5
    """Inner steps in training."""
    test_steps: int = 10
    """Inner steps in evaluation."""

    def __post_init__(self) -> None:
        """Refuse values that make no learner."""
        if not self.inner_rate > 0:
            raise UserError(f"inner_rate is {self.inner_rate}; head 'maml'; it must be above 0, such as 0.01")
        for name, least in (("way", 2), ("hidden", 0), ("train_steps", 1), ("test_steps", 1)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"{name} is {value}; head 'maml'; give at least {least}")


class Maml(Head):
    """Model-agnostic meta-learning of a classifier on z = LayerNorm(mean_t f_t), [n, T, D] -> z [n, d].

    Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017. The inner
    loss is the mean cross-entropy over the supports that exist; all of them make each step. Readings: the features are
    frozen, so the inner loop adapts the classifier alone, while the outer one learns the embedding too; with first
    order, the inner gradients are constants altogether, also as functions of the support's embeddings.

    With `shared_start` off, logits depend on the order of an episode's classes, as in the original.

    Args:
        inputs: What the head is built for.
        config: The learner.
    """

    config_type = MamlConfig

    def __init__(self, inputs: Inputs, config: MamlConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.frames = FrameEmbedding(inputs.dim, config.dim)
        self.norm = nn.LayerNorm(self.frames.dim)
        self.learner = (HiddenLearner if config.hidden else LinearLearner)(self.frames.dim, config)

    def encode(self, clips: Tensor) -> Encoding:
        """Embed clips, z [n, d], and apply the first layer as it is before any step, [n, out]."""
        z = self.norm(self.frames(clips).mean(1))
        return z, self.learner.first(z)

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Descend on the support, then classify the queries: logits [B, Q, N].

        Raises:
            UserError: If the start is not shared and the episode has another number of ways.
        """
        way, shot = support[0].shape[1:3]
        self._check(way)
        weights = _weights(support[0], mask)
        z, first = (part.flatten(1, 2).where(weights > 0, 0) for part in support)
        target = torch.eye(way, dtype=z.dtype, device=z.device).repeat_interleave(shot, 0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.second_order):
            kernel, moved = self.learner.kernel(z, z), self.learner.start(first, way)
            for _ in range(self.config.train_steps if self.training else self.config.test_steps):
                moved = self.learner.step(first, kernel, moved, target, weights)
        constant = z if self.config.second_order else z.detach()
        return self.learner.logits(query[1], self.learner.kernel(query[0], constant), moved)

    def _check(self, way: int) -> None:
        if not self.config.shared_start and way != self.config.way:
            raise UserError(
                f"the episodes have {way} ways; head 'maml' has rows for {self.config.way}; set head.way={way} or "
                f"head.shared_start=true"
            )

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers of the support's embeddings, the kernels and the layers' values and gradients."""
        clips, units = way * shot, way + self.config.hidden
        return clips * (self.frames.dim + clips + 4 * units) + queries * (clips + 2 * units) + 3 * way * units


Moved = tuple[Tensor, ...]
"""Sums of the inner gradients so far."""


class LinearLearner(nn.Module):
    """W z + b.

    Args:
        width: Width of z (d).
        config: Of the head.
    """

    def __init__(self, width: int, config: MamlConfig) -> None:
        super().__init__()
        # Rates of weights and biases, layer by layer.
        tensors = 4 if config.hidden else 2
        self.log_rates = nn.Parameter(torch.full((tensors,), math.log(config.inner_rate)), config.learn_rates)
        self.first: nn.Module = _Zero() if config.shared_start else _output(width, config.way)

    def kernel(self, clips: Tensor, support: Tensor) -> Tensor:
        """What a unit gradient at support clip m takes from clip a: rates times inner products, [B, A, M]."""
        rates = self.log_rates.exp()
        return rates[0] * (clips @ support.mT) + rates[1]

    def start(self, first: Tensor, way: int) -> Moved:
        """Nothing moved yet: the sum of gradients at the output, [B, M, N]."""
        return (first.new_zeros(*first.shape[:2], way),)

    def logits(self, first: Tensor, kernel: Tensor, moved: Moved) -> Tensor:
        """Logits [B, A, N] of clips with these first values [B, A, out] and kernel [B, A, M]."""
        return first - kernel @ moved[0]

    def step(self, first: Tensor, kernel: Tensor, moved: Moved, target: Tensor, weights: Tensor) -> Moved:
        """One step of gradient descent; `target` one-hot [M, N], `weights` of the clips in the loss [B, M, 1]."""
        return (moved[0] + _error(self.logits(first, kernel, moved), target, weights),)


class HiddenLearner(LinearLearner):
    """V relu(W z + b) + c, all of it moving; V and c in the open, since they are small."""

    def __init__(self, width: int, config: MamlConfig) -> None:
        super().__init__(width, config)
        self.first = nn.Linear(width, config.hidden)
        self.output = None if config.shared_start else _output(config.hidden, config.way)

    def start(self, first: Tensor, way: int) -> Moved:
        """Nothing moved yet: sums of gradients at the hidden layer [B, M, h], in V [B, N, h], in c [B, 1, N]."""
        batch, units = len(first), first.shape[-1]
        return torch.zeros_like(first), first.new_zeros(batch, way, units), first.new_zeros(batch, 1, way)

    def logits(self, first: Tensor, kernel: Tensor, moved: Moved) -> Tensor:
        """Logits [B, A, N]."""
        weight, bias = self._output(moved)
        return (first - kernel @ moved[0]).relu() @ weight.mT + bias

    def step(self, first: Tensor, kernel: Tensor, moved: Moved, target: Tensor, weights: Tensor) -> Moved:
        """One step of gradient descent by back-propagation."""
        weight, bias = self._output(moved)
        hidden = (first - kernel @ moved[0]).relu()
        error = _error(hidden @ weight.mT + bias, target, weights)
        back = (error @ weight).where(hidden > 0, 0)
        return moved[0] + back, moved[1] + error.mT @ hidden, moved[2] + error.sum(1, keepdim=True)

    def _output(self, moved: Moved) -> tuple[Tensor, Tensor]:
        """V [B, N, h] and c [B, 1, N] after the steps so far."""
        rates = self.log_rates.exp()
        weight, bias = -rates[2] * moved[1], -rates[3] * moved[2]
        return (weight, bias) if self.output is None else (self.output.weight + weight, self.output.bias + bias)


class _Zero(nn.Module):
    """The shared row: [n, d] -> zeros [n, 1]."""

    def forward(self, z: Tensor) -> Tensor:
        return z.new_zeros(len(z), 1)


def _output(width: int, way: int) -> nn.Linear:
    """An output layer at its start."""
    layer = nn.Linear(width, way)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _weights(support: Tensor, mask: Tensor | None) -> Tensor:
    """1 / M for the M clips of an episode that exist, 0 for the others, [B, N K, 1]."""
    present = support.new_ones(support.shape[:3]) if mask is None else mask.to(support.dtype)
    present = present.flatten(1)[..., None]
    return present / present.sum(1, keepdim=True)


def _error(logits: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the inner loss in the logits, [B, M, N]."""
    return (logits.softmax(-1) - target) * weights
