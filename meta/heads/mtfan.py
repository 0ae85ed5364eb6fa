"""MTFAN, rebuilt from its abstract: channels modulated by the task's motion, matched by frames and by segments.

Wu et al., "Motion-modulated Temporal Fragment Alignment Network for Few-Shot Action Recognition" (CVPR 2022).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...cache.errors import UserError
from .base import Encoding, Head, Inputs, shot_mean
from .parts import FrameEmbedding, frame_cosine


@dataclass(frozen=True)
class MtfanConfig:
    """Shape of MTFAN; the defaults are the `fair` ones."""

    dim: int = 256
    """Width of a trained embedding of the frames before everything else; 0: none."""
    motion_dim: int = 256
    """Width of the motion embedding (r)."""
    segments: int = 4
    """Segments of a clip (L)."""
    scale: float = 10.0
    """Factor of the distances (tau)."""
    eps: float = 1e-8
    """Added to the product of two lengths in a cosine."""

    def __post_init__(self) -> None:
        """Refuse sizes that mean nothing."""
        if self.dim < 0 or min(self.motion_dim, self.segments) < 1:
            raise UserError(f"{self}: segments and motion_dim must be 1 or more; head 'mtfan'; mend its settings")


class Mtfan(Head):
    """A RECONSTRUCTION: the abstract names the three parts, how they are built is a reading, and no code is public.

    1. Motion m_t = f_(t+1) - f_t is embedded by ReLU(Linear); its mean over time and over all support clips is the
       task embedding e.
    2. The motion modulator multiplies every channel of every frame by 1 + sigmoid(Linear(e)).
    3. L learnt queries u attend to the modulated frames: segment l is their mean with the weights
       softmax_t(u_l . f'_t / sqrt(D)).
    4. Two sets of vectors are as far apart as, on average, each one's nearest in the other, by 1 - cosine and in both
       directions. A clip's distance adds that of frames to frames, of segments to segments, and half of those of frames
       to segments and segments to frames. Logits are - scale * its mean over shots.

    The modulator is constant at the start, so that cosines are those of the frames.
    """

    config_type = MtfanConfig

    def __init__(self, inputs: Inputs, config: MtfanConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.embed = FrameEmbedding(inputs.dim, config.dim)
        dim = self.embed.dim
        self.motion = nn.Linear(dim, config.motion_dim)
        self.gate = nn.Linear(config.motion_dim, dim)
        self.segments = nn.Parameter(torch.randn(config.segments, dim))
        for zero in (self.gate.weight, self.gate.bias):
            nn.init.zeros_(zero)

    def encode(self, clips: Tensor) -> Encoding:
        """Frames [n, T, D] and their mean motion embedding [n, r]."""
        frames = self.embed(clips)
        return frames, self.motion(frames.diff(dim=-2)).relu().mean(-2)

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, N]."""
        frames, motion = support
        way, shot = frames.shape[1:3]
        if mask is not None:
            frames = frames.where(mask[..., None, None], 0)
        gate = 1 + torch.sigmoid(self.gate(_task_mean(motion, mask)))[:, None, None]
        left, right = (self._with_segments(part * gate) for part in (query[0], frames.flatten(1, 2)))
        distances = self._distances(frame_cosine(left, right, self.config.eps))
        return -self.config.scale * shot_mean(torch.unflatten(distances, -1, (way, shot)), mask)

    def _with_segments(self, frames: Tensor) -> Tensor:
        """Append a clip's segments: [..., T, D] -> [..., T + L, D]."""
        weights = (frames @ self.segments.mT / math.sqrt(frames.shape[-1])).softmax(-2)
        return torch.cat([frames, weights.mT @ frames], -2)

    def _distances(self, similarity: Tensor) -> Tensor:
        """Cosines of frames and segments [B, Q, M, T + L, T + L] -> [B, Q, M]."""
        frames, segments = slice(0, -self.config.segments), slice(-self.config.segments, None)
        alike = _apart(similarity[..., frames, frames]) + _apart(similarity[..., segments, segments])
        return alike + (_apart(similarity[..., segments, frames]) + _apart(similarity[..., frames, segments])) / 2

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers of the modulated frames, the segments and the cosines."""
        rows = self.inputs.frames + self.config.segments
        return 3 * (way * shot + queries) * rows * self.embed.dim + 4 * way * shot * queries * rows**2


def _task_mean(motion: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over all support clips there are: [B, N, K, r] -> [B, r]."""
    if mask is None:
        return motion.mean((1, 2))
    return motion.where(mask[..., None], 0).sum((1, 2)) / mask.sum((1, 2))[:, None]


def _apart(similarity: Tensor) -> Tensor:
    """Mean distance to the nearest, in both directions: [..., A, B] -> [...]."""
    return 2 - similarity.amax(-1).mean(-1) - similarity.amax(-2).mean(-1)
