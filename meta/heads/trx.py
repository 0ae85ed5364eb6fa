"""TRX: temporal-relational cross-transformers, attention between ordered tuples of frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from .base import Encoding, Head, Inputs
from .tuples import TupleAttention, fitting, some_clips


@dataclass(frozen=True)
class TrxConfig:
    """Hyperparameters of `Trx`."""

    cardinalities: tuple[int, ...] = (2, 3)
    """Frames of a tuple (Omega); each has maps of its own. Those above the frames of a clip are left out."""
    dim: int = 256
    """Width of keys and values (d)."""
    dropout: float = 0.1
    """On the frames, after their positions are added."""
    soft_start: bool = True
    """For frozen features: start from orthogonal maps, not random ones; the base clips' spread scales logits."""


class Trx(Head):
    """Each tuple of a query's frames against a prototype that it attends to itself, among all tuples of a class.

    Perrett et al., "Temporal-Relational CrossTransformers for Few-Shot Action Recognition", CVPR 2021, section 3;
    github.com/tobyperrett/trx, 390c20a. Logits are minus the squared distances, averaged over a query's tuples and over
    the cardinalities (an early version of that code took the norm over the cardinalities). Keys have a LayerNorm,
    values none, as in the code. Exact factorisation: see `tuples`.

    Args:
        inputs: What the head is built for.
        config: Its hyperparameters.

    Raises:
        UserError: If no cardinality fits the clips.
    """

    config_type: ClassVar[type[TrxConfig]] = TrxConfig

    def __init__(self, inputs: Inputs, config: TrxConfig) -> None:
        super().__init__(inputs)
        sizes = fitting(config.cardinalities, inputs.frames)
        transformers = nn.ModuleList(
            TupleAttention(inputs.frames, inputs.dim, config.dim, size, config.dropout) for size in sizes
        )
        self.transformers = cast("Sequence[TupleAttention]", transformers)
        self.soft_start = config.soft_start
        if self.soft_start:
            for transformer in self.transformers:
                transformer.soft_start()

    def start(self, clips: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """Set the temperatures of a soft start by the spread of the clips."""
        if not self.soft_start:
            return
        mode = self.training
        self.eval()
        few = some_clips(clips, generator).to(next(self.parameters()))
        for transformer in self.transformers:
            transformer.soft_scale(few)
        self.train(mode)

    def encode(self, clips: Tensor) -> Encoding:
        """Project frames for each slot of the tuples; four tensors for each cardinality."""
        return tuple(part for transformer in self.transformers for part in transformer.encode(clips))

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, N]."""
        distances = [
            transformer(support[4 * i : 4 * i + 4], query[4 * i : 4 * i + 4], mask)
            for i, transformer in enumerate(self.transformers)
        ]
        return -torch.stack(distances).mean(0)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers of the largest cardinality's scoring."""
        return max(t.footprint(way, shot, queries) for t in self.transformers)

    def original_names(self) -> dict[str, str]:
        """The names are the original's; its unused `norm_v` and its table of positions are left alone."""
        return {name: name for name, _ in self.named_parameters()}
