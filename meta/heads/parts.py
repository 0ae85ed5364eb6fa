"""Pieces that several heads share."""

import torch
from torch import Tensor, nn


class FrameEmbedding(nn.Module):
    """Linear(D -> dim) and LayerNorm on every frame; the identity where dim is 0.

    Heads whose originals train the backbone need it on frozen features (heads that project by themselves do not). The
    weight starts as the identity where dim = D, else as orthogonal rows or columns, which keep distances best.

    Args:
        features: Width of the features (D).
        dim: Width of the embedding; 0: features stay as they are.
    """

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.dim = dim or features
        self.map: nn.Module = nn.Identity()
        if dim:
            linear = nn.Linear(features, dim)
            (nn.init.eye_ if dim == features else nn.init.orthogonal_)(linear.weight)
            nn.init.zeros_(linear.bias)
            self.map = nn.Sequential(linear, nn.LayerNorm(dim))

    def forward(self, clips: Tensor) -> Tensor:
        """Embed frames: [..., D] -> [..., dim]."""
        embedded: Tensor = self.map(clips)
        return embedded


def cosine(left: Tensor, right: Tensor, eps: float = 0.01) -> Tensor:
    """x.y / (|x||y| + eps) of all rows: [..., A, D] and [..., B, D] -> [..., A, B]; 0 where a row is zero."""
    norms = torch.linalg.vector_norm(left, dim=-1)[..., :, None] * torch.linalg.vector_norm(right, dim=-1)[..., None, :]
    cosines: Tensor = left @ right.mT / (norms + eps)
    return cosines


def frame_cosine(query: Tensor, support: Tensor, eps: float = 0.01) -> Tensor:
    """Cosines of all frames of all pairs of clips: [..., A, T, D] and [..., S, T', D] -> [..., A, S, T, T']."""
    frames, others = query.shape[-2], support.shape[-2]
    similarity = cosine(query.flatten(-3, -2), support.flatten(-3, -2), eps)
    lead, shape = similarity.shape[:-2], (query.shape[-3], frames, support.shape[-3], others)
    return similarity.view(*lead, *shape).transpose(-3, -2)


def sinusoids(frames: int, dim: int) -> Tensor:
    """The usual position encoding, [frames, dim]: sin and cos of pos / 10000^(2i / dim) in turns (Vaswani et al.)."""
    position = torch.arange(frames, dtype=torch.float64)[:, None]
    angles = position * 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :dim].float()
