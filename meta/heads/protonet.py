"""ProtoNet: distance to the mean of a class."""

from dataclasses import dataclass

from torch import Tensor

from .base import Inputs, PrototypeHead
from .parts import FrameEmbedding


@dataclass(frozen=True)
class ProtoNetConfig:
    """Shape of the head."""

    dim: int = 256
    """Width of the frame embedding; 0: the cached features as they are."""
    scale: float = 10.0
    """Factor of the distances."""
    per_dim: bool = True
    """Divide distances by the embedding's width: raw ones are in the hundreds and saturate the softmax."""


class ProtoNet(PrototypeHead):
    """Logit = - |z_query - mean of z over the class|^2, z a clip's mean over its (embedded) frames.

    Prototypical Networks (Snell et al., NeurIPS 2017) on mean-pooled frame features, as in FSL-Video
    (MCG-NJU/FSL-Video dfcf2db, whose backbone is trained): `dim` = 0, `scale` = 1 and `per_dim` = False.
    """

    config_type = ProtoNetConfig

    def __init__(self, inputs: Inputs, config: ProtoNetConfig) -> None:
        super().__init__(inputs)
        self.embedding = FrameEmbedding(inputs.dim, config.dim)
        self.scale = config.scale / self.embedding.dim if config.per_dim else config.scale

    def embed(self, clips: Tensor) -> Tensor:
        """Embed clips: [n, T, D] -> [n, d]."""
        embedded: Tensor = self.embedding(clips)
        return embedded.mean(-2)
