"""TSN-cos: mean of the cosines to a class's clips."""

from dataclasses import dataclass

from torch import Tensor

from .base import Encoding, Inputs, PairHead
from .parts import FrameEmbedding, cosine


@dataclass(frozen=True)
class TsnConfig:
    """Shape of the head."""

    dim: int = 256
    """Width of the frame embedding; 0: the cached features as they are."""
    scale: float = 10.0
    """Factor of the cosines; at 1 the softmax is nearly flat and the training signal weak."""
    eps: float = 1e-8
    """Added to the product of the norms."""


class Tsn(PairHead):
    """Logit = mean over the class's clips of cos(z_query, z_support), z a clip's mean over its (embedded) frames.

    Mean of cosines, not cosine to the mean. tobyperrett/few-shot-action-recognition 3687f3a (`CNN_TSN`, no parameters
    beside the backbone's): `dim` = 0, `scale` = 1, `eps` = 0.01.
    """

    config_type = TsnConfig

    def __init__(self, inputs: Inputs, config: TsnConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.embedding = FrameEmbedding(inputs.dim, config.dim)

    def encode(self, clips: Tensor) -> Encoding:
        """Mean of the embedded frames: [n, T, D] -> [n, d]."""
        return (self.embedding(clips).mean(-2),)

    def pair(self, query: Encoding, support: Encoding) -> Tensor:
        """Scaled cosines: [..., A, d] and [..., S, d] -> [..., A, S]."""
        return self.config.scale * cosine(query[0], support[0], self.config.eps)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Products, norms and quotients of all pairs."""
        return 4 * way * shot * queries
