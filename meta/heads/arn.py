"""ARN: a clip as correlations of its channels, a pair of clips as a small image that a comparator looks at."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...cache.errors import UserError, pick
from ..prototypes import class_prototypes
from .base import Encoding, Head, Inputs, cross_entropy
from .grids import grid_convolution, grid_side, to_grid, to_tokens


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """(sigmoid(logit) - one-hot)^2, mean over the classes: [B, Q, N] and [B, Q] -> [B, Q]."""
    return (logits.sigmoid() - functional.one_hot(labels, logits.shape[-1])).square().mean(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": cross_entropy, "mse": squared_error}


@dataclass(frozen=True)
class ArnConfig:
    """Sizes and loss of ARN."""

    spatial: bool = True
    """Whether frames are grids of tokens, which attention weighs one by one; False: whole frames."""
    width: int = 32
    """Channels of the features whose correlations are taken (C)."""
    comparator: int = 4
    """Channels of the comparator's convolutions."""
    loss: str = "ce"
    """A key of `LOSSES`: cross-entropy, or the paper's squared error of the relation scores."""
    gain: float = 20.0
    """Start of the factor of the correlations' cosine in the logit, where the comparator starts at 0; 0: no cosine."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no head."""
        pick(LOSSES, self.loss, "loss of arn")
        if self.width < 4 or self.comparator < 1:
            raise UserError(
                f"width is {self.width}, comparator {self.comparator}; two poolings need a width of 4; raise it"
            )
        if self.gain < 0:
            raise UserError(f"gain is {self.gain}; a factor of similarities cannot be negative; give 0 or more")


class Arn(Head):
    """Action relation network (Zhang et al., ECCV 2020: permutation-invariant attention).

    A RECONSTRUCTION from the paper's description; no code is public. Its C3D blocks are cached frames (tokens) here, a
    linear map with BatchNorm and ReLU in place of its encoder. Attention weighs frames, or frames and tokens alike; the
    clip is M = tanh(eta / 2 * sum_i x_i x_i^T / trace), and the comparator sees M of the query and the mean M of the
    class as two channels. Left out: the auxiliary losses (attention on permuted, jigsaw and rotated clips), which need
    the videos.

    On frozen features and few episodes the comparator alone learns little, so the logit adds gain * cos(M_q, M_n), gain
    learnt, and the comparator's last layer starts at 0. This is ours; `gain` = 0 is the paper's logit.
    """

    config_type = ArnConfig

    def __init__(self, inputs: Inputs, config: ArnConfig) -> None:
        super().__init__(inputs)
        self.config = config
        self.side = grid_side("arn", inputs, config.spatial)
        self.map = nn.Linear(inputs.dim, config.width)
        self.norm = nn.BatchNorm1d(config.width)
        self.attention = nn.Sequential(
            grid_convolution(config.width, config.width // 4, self.side),
            nn.ReLU(),
            grid_convolution(config.width // 4, 1, self.side),
        )
        # exp keeps the power of the normalisation above 0; it starts at 200.
        self.log_power = nn.Parameter(torch.tensor(200.0).log())
        self.comparator = Comparator(config.width, config.comparator)
        self.gain = nn.Parameter(torch.tensor(config.gain)) if config.gain else None
        if config.gain:
            nn.init.zeros_(self.comparator.score.weight)
            nn.init.zeros_(self.comparator.score.bias)

    def start(self, clips: Tensor, labels: Tensor, generator: torch.Generator) -> None:
        """Set the running statistics of the normalisation to those of the base clips, [n, T, D] or [n, T, P, D]."""
        rows = self.map(to_tokens(clips.to(self.map.weight), self.inputs.tokens, self.side)).detach().flatten(0, 2)
        self.norm.load_state_dict({"running_mean": rows.mean(0), "running_var": rows.var(0)}, strict=False)

    def encode(self, clips: Tensor) -> Encoding:
        """Normalised correlations of the channels, [n, C, C]."""
        tokens = self.map(to_tokens(clips, self.inputs.tokens, self.side))
        tokens = self.norm(tokens.flatten(0, 2)).relu().view_as(tokens)
        weights = self.attention(to_grid(tokens, self.side)).sigmoid()
        rows = (tokens * weights.view(*tokens.shape[:3], 1)).flatten(1, 2)
        correlations = rows.mT @ rows
        # The floor keeps zero clips finite.
        trace = correlations.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(1e-12)
        return ((self.log_power.exp() / 2 * correlations / trace[:, None, None]).tanh(),)

    def score(self, support: Encoding, query: Encoding, mask: Tensor | None = None) -> Tensor:
        """Logits [B, Q, N]."""
        classes = class_prototypes(support[0].flatten(-2), mask).view(*support[0].shape[:2], *support[0].shape[3:])
        relation: Tensor = self.comparator(query[0], classes)
        if self.gain is None:
            return relation
        flat = [functional.normalize(part.flatten(2), dim=-1, eps=1e-6) for part in (query[0], classes)]
        cosines = flat[0] @ flat[1].mT
        return relation + self.gain * cosines

    def learn(
        self, support: Encoding, query: Encoding, labels: Tensor, classes: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, Q, N] and the configured loss [B, Q]."""
        logits = self.score(support, query)
        return logits, LOSSES[self.config.loss](logits, labels)

    def footprint(self, way: int, shot: int, queries: int) -> int:
        """Numbers of the pairs' images after the first convolution, its normalisation and its pooling."""
        return way * queries * 3 * self.config.comparator * self.config.width**2


class Comparator(nn.Module):
    """Relation score of two images: two blocks of convolution, BatchNorm, ReLU, max pooling, then two linear maps.

    Args:
        size: Side of the images, at least 4.
        width: Channels of the convolutions.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3, padding=1)
        self.first_norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.second_norm = nn.BatchNorm2d(width)
        self.hidden = nn.Linear(width * (size // 4) ** 2, 8)
        self.score = nn.Linear(8, 1)

    def forward(self, query: Tensor, classes: Tensor) -> Tensor:
        """Compare [B, Q, C, C] and [B, N, C, C]: [B, Q, N]. The first convolution is a sum of one for each image."""
        weight, bias = self.first.weight, self.first.bias
        left = functional.conv2d(query.flatten(0, 1)[:, None], weight[:, :1], bias, padding=1)
        right = functional.conv2d(classes.flatten(0, 1)[:, None], weight[:, 1:], padding=1)
        left, right = torch.unflatten(left, 0, query.shape[:2]), torch.unflatten(right, 0, classes.shape[:2])
        pairs = left[:, :, None] + right[:, None]
        lead = pairs.shape[:3]
        maps = functional.max_pool2d(self.first_norm(pairs.flatten(0, 2)).relu(), 2)
        maps = functional.max_pool2d(self.second_norm(self.second(maps)).relu(), 2)
        score: Tensor = self.score(self.hidden(maps.flatten(1)).relu())
        return score.view(lead)
