"""What every head is: frame features of an episode's clips to the episode's logits.

A head has two halves. `encode` sees one clip at a time, so that a clip that many episodes draw is encoded once; `score`
sees what an episode's clips were encoded to. Two kinds of heads promise more, and evaluation makes use of it:
`PrototypeHead` (distances to mean embeddings) and `PairHead` (every logit follows from scores of pairs of clips).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache.errors import UserError
from ..prototypes import class_prototypes, distances

Encoding = tuple[Tensor, ...]
"""What clips were encoded to: tensors whose leading axes are those of the clips."""


@dataclass(frozen=True)
class Inputs:
    """What a head is built for."""

    frames: int
    """Frames of a clip (T)."""
    dim: int
    """Width of the features (D)."""
    tokens: int = 0
    """Spatial tokens of a frame (P); 0: a frame is one feature."""
    classes: int = 0
    """Base classes, for heads that classify them beside (HyRSM); 0: none."""


class Head(nn.Module, ABC):
    """Support [B, N, K, T, D] and query [B, Q, T, D] -> logits [B, Q, N]; D is [P, D] where there are tokens.

    A subclass is built as `Subclass(inputs, config)`, config an instance of its `config_type`.
    """

    config_type: ClassVar[type[Any]]
    """A frozen dataclass: the head's hyperparameters."""
    learns_temperature: ClassVar[bool] = False
    """Whether training learns the factor of its logits; other heads have a scale of their own."""
    order_dependent: ClassVar[bool] = False
    """Whether the order of the support clips makes a difference by the method's own definition."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs

    @abstractmethod
    def encode(self, clips: Tensor) -> Encoding:
        """Encode clips one by one: [n, T, D] ([n, T, P, D] with tokens) -> tensors [n, ...]."""

    @abstractmethod
    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Score encoded clips.

        Args:
            support: Tensors [B, N, K, ...].
            query: Tensors [B, Q, ...].
            mask: True where a support clip exists, boolean [B, N, K], at least one in each class; None: everywhere.
                What stands where there is none is finite, and changes nothing.

        Returns:
            Logits [B, Q, N], larger = more likely.
        """

    @abstractmethod
    def footprint(self, way: int, shot: int, queries: int) -> int:
        """How many numbers `score` holds at its peak for one episode, roughly; batches are cut by it.

        Args:
            way: N.
            shot: K.
            queries: Queries of the whole episode (Q of the tensors above).
        """

    def learn(
        self, support: Encoding, query: Encoding, labels: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Score a training batch, and the loss of each of its queries.

        Args:
            support: Tensors [B, N, K, ...].
            query: Tensors [B, Q, ...].
            labels: Positions of the queries' classes in the episode, [B, Q].
            classes: Which base class each of an episode's classes is, [B, N], below `inputs.classes`.

        Returns:
            Logits [B, Q, N] and losses [B, Q]; the trainer takes their mean or sum over the queries.
        """
        logits = self.score(support, query)
        return logits, cross_entropy(logits, labels)

    def start(self, clips: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """Set parameters from the base clips before training, where a head has such a start.

        Args:
            clips: [n, T, D] ([n, T, P, D] with tokens), any floating point.
            labels: Class ids [n].
            generator: Source of randomness.
        """

    def penalty(self) -> Tensor:
        """What the training loss adds for the parameters alone, scalar."""
        return torch.zeros(())

    def original_names(self) -> dict[str, str]:
        """Names of this head's parameters and buffers -> those in the original's checkpoints; empty: no original."""
        return {}

    def load_original(self, state: Mapping[str, Tensor]) -> None:
        """Take the head's parameters from a checkpoint of the original implementation; others in it are left alone.

        Args:
            state: The original's state dict, with or without the `module.` that DataParallel puts into names: before
                all of them, or inside those of the parts that the original distributes alone.

        Raises:
            UserError: If a head with parameters has no original, or the checkpoint lacks one, or in another shape.
        """
        names = self.original_names()
        if not names and not any(True for _ in self.parameters()):
            return  # the original's parameters are its backbone's
        if not names:
            raise UserError(f"{type(self).__name__} has no parameters of an original; checkpoint; train it instead")
        given = {_undistributed(name): value for name, value in state.items()}
        own = self.state_dict()
        for ours, theirs in names.items():
            if theirs not in given:
                raise UserError(
                    f"no {theirs!r} in the original's checkpoint; it has {len(given)} names; check the file"
                )
            if given[theirs].numel() != own[ours].numel():
                raise UserError(
                    f"{theirs!r} is {tuple(given[theirs].shape)} in the original's checkpoint, here "
                    f"{tuple(own[ours].shape)}; build the head with the original's sizes"
                )
            own[ours] = given[theirs].view_as(own[ours])
        self.load_state_dict(own)

    def forward(self, support: Tensor, query: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode and score: [B, N, K, T, D], [B, Q, T, D] and the mask of `score` -> logits [B, Q, N]."""
        lead, frame = support.shape[:3], query.dim() - 2
        if mask is not None:
            # An absent clip may hold anything, NaN too.
            support = support.where(mask.view(*lead, *[1] * frame), 0)
        clips = torch.cat([support.flatten(0, 2), query.flatten(0, 1)])
        in_support = lead.numel()
        encoding = self.encode(clips)
        return self.score(
            tuple(part[:in_support].view(*lead, *part.shape[1:]) for part in encoding),
            tuple(part[in_support:].view(*query.shape[:2], *part.shape[1:]) for part in encoding),
            mask,
        )


class PrototypeHead(Head):
    """Logits = - scale * distance to the mean embedding of a class; `encode` gives ([n, d],)."""

    distance = "squared-euclidean"
    """A key of `prototypes.DISTANCES`."""
    scale = 1.0
    """Factor of the distances."""

    @abstractmethod
    def embed(self, clips: Tensor) -> Tensor:
        """Embed clips: [n, T, D] -> [n, d]."""

    def encode(self, clips: Tensor) -> Encoding:
        """Embed clips."""
        return (self.embed(clips),)

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, N]."""
        return -self.scale * distances(query[0], class_prototypes(support[0], mask), self.distance)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers of the logits."""
        return 4 * way * queries


class PairHead(Head):
    """Logits that follow from one score for each pair of a query and a support clip."""

    @abstractmethod
    def pair(self, query: Encoding, support: Encoding) -> Tensor:
        """Score all pairs: tensors [..., A, *] and [..., S, *] with equal leading axes -> [..., A, S], larger = closer.

        A pair's score depends on these two clips alone.
        """

    def reduce(self, pairs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Turn scores of an episode's pairs [B, Q, N, K] into logits [B, Q, N]: by default their mean over shots."""
        return shot_mean(pairs, mask)

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, N]."""
        way, shot = support[0].shape[1:3]
        pairs = self.pair(query, tuple(part.flatten(1, 2) for part in support))
        return self.reduce(pairs.view(*pairs.shape[:-1], way, shot), mask)


def shot_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the last axis, [B, Q, N, K] -> [B, Q, N], of what the mask [B, N, K] has."""
    if mask is None:
        return values.mean(-1)
    return values.where(mask[:, None], 0).sum(-1) / mask.sum(-1)[:, None]


def _undistributed(name: str) -> str:
    """The name of a parameter without the steps into DataParallel."""
    return ".".join(step for step in name.split(".") if step != "module")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """- log softmax(logits)[label], [B, Q, N] and [B, Q] -> [B, Q]."""
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


def require_tokens(head: str, inputs: Inputs) -> None:
    """Refuse features without spatial tokens for a head that needs them.

    Raises:
        UserError: Naming the variant that does without.
    """
    if not inputs.tokens:
        raise UserError(
            f"head {head!r} needs spatial tokens; the cached features have none; extract with --tokens 16 (strm) or "
            f"49 (ta2n, arn), or use '{head}[pooled]'"
        )
