"""AMeFu-Net's classifier (Fu et al. 2020); the fusion that makes its features is `early.Guide`."""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

from ...cache.errors import UserError
from .base import Encoding, Inputs, PrototypeHead, cross_entropy
from .parts import FrameEmbedding

Loss = Literal["ce", "double_softmax"]


@dataclass(frozen=True)
class AmefuConfig:
    """Embedding, temperature and loss."""

    dim: int = 256
    """Width of the frame embedding; 0: frames stay as they are."""
    scale: float = 10.0
    """Factor of the cosine; the original has 1."""
    loss: str = "ce"
    """`ce`: cross-entropy of the logits. `double_softmax`: the original's, which takes their softmax for logits."""

    def __post_init__(self) -> None:
        """Refuse losses that do not exist."""
        if self.loss not in get_args(Loss):
            raise UserError(f"loss is {self.loss!r}; head 'amefu-net'; known: {', '.join(get_args(Loss))}")


class AmefuHead(PrototypeHead):
    """Cosine of z = mean_t f_t at unit length to the mean z of a class, times a scale: [n, T, D] -> [n, d].

    Fu et al., "Depth Guided Adaptive Meta-Fusion Network for Few-shot Video Recognition", ACM MM 2020; original:
    lovelyqian/AMeFu-Net a307233. Logits are scale * (cosine - 1), a shift that no softmax sees. Readings: training
    scores all queries by the class means, as the test does (the original's training code compares one query with the
    single supports of one-shot episodes, the same thing there); its three updates an episode, each with guide frames
    drawn anew from the same quarter of the clip, need more frames than a cache holds, and are left out.

    Args:
        inputs: What the head is built for: the fused features.
        config: Embedding, temperature and loss.
    """

    config_type = AmefuConfig
    distance = "cosine"

    def __init__(self, inputs: Inputs, config: AmefuConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.scale = config.scale
        self.frames = FrameEmbedding(inputs.dim, config.dim)

    def embed(self, clips: Tensor) -> Tensor:
        """Mean over time at unit length, [n, T, D] -> [n, d]; a zero mean stays zero."""
        # The floor bounds the gradient there; the original's 1e-12 makes no difference elsewhere.
        return functional.normalize(self.frames(clips).mean(1), dim=-1, eps=1e-6)

    def learn(
        self, support: Encoding, query: Encoding, labels: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, Q, N] and losses [B, Q]."""
        logits = self.score(support, query)
        twice = self.config.loss == "double_softmax"
        return logits, cross_entropy(logits.softmax(-1) if twice else logits, labels)
