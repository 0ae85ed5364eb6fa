"""Episodes of classes that are hard to tell apart, for evaluation: which classes lie near each other, and their draw.

Drawn uniformly from many classes, an episode's classes mostly have little in common, and its accuracy says little about
those that do. Here an anchor class is drawn uniformly, and the others from the classes nearest to it. What is near
depends on the embeddings of the very clips that are tested, so that no such episode may train anything.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .episodes import EpisodeSampler, EpisodeShape, lowest
from .search import PrototypeIndex

REACH = 16
"""Nearest classes that can join an anchor, in multiples of those that an episode needs (way - 1). The weight of a rank
halves every way - 1 ranks, so that beyond there would be 2^-16 of the first one's."""

MARGIN = 16
"""Classes looked at beyond those wanted: the index holds float32, whose rounding may put an equally near one first."""

SEARCHED_AT_ONCE = 1024
"""Classes whose neighbours are in memory with all that the search says of them."""


def class_means(
    embeddings: Mapping[str, Tensor],
    labels: Tensor,
    class_ids: Sequence[int],
    temperatures: Mapping[str, float] | None = None,
) -> Tensor:
    """One vector for each class, whose squared distances are the sum over the modalities of tau_m |mean - mean|^2.

    Args:
        embeddings: Modality -> [clips, d].
        labels: Class ids [clips].
        class_ids: The classes.
        temperatures: Modality -> tau; 1 where left out.

    Returns:
        [C, sum of d], float64.
    """
    members = [torch.nonzero(labels == class_id).flatten() for class_id in class_ids]
    parts = []
    for name, values in embeddings.items():
        means = torch.stack([values[clips].double().mean(0) for clips in members])
        parts.append(means * (temperatures or {}).get(name, 1.0) ** 0.5)
    return torch.cat(parts, 1)


def nearest_classes(means: Tensor, count: int) -> Tensor:
    """The `count` classes nearest to each class, nearest first, of equals the one listed first: [C, count].

    An index finds them among many classes, by faiss where it is installed; their order follows from distances in
    float64 either way, so that the same seed means the same episodes with and without faiss.

    Args:
        means: [C, d], float64.
        count: Below C.
    """
    index = PrototypeIndex.build({"means": means})
    classes = torch.split(torch.arange(len(means)), SEARCHED_AT_ONCE)
    return torch.cat([_nearest_to(rows, means, index, count) for rows in classes])


def _nearest_to(rows: Tensor, means: Tensor, index: PrototypeIndex, count: int) -> Tensor:
    found = index.search({"means": means[rows]}, count + 1 + MARGIN, torch.ones(1, len(rows)))
    # Rising positions, so that a stable sort puts the class that is listed first before its equals.
    candidates = found.ids.sort(-1).values
    squared = torch.stack(
        [(means[near] - means[row]).square().sum(-1) for row, near in zip(rows, candidates, strict=True)]
    )
    order = squared.where(candidates != rows[:, None], torch.inf).sort(dim=-1, stable=True).indices
    return candidates.gather(1, order[:, :count])


class ConfusableSampler(EpisodeSampler):
    """Draws an anchor class uniformly, and its fellows without replacement from the classes nearest to it.

    The fellow of rank r (0: the nearest) is drawn with a weight of 2^(-r / (way - 1)), out of the `REACH` * (way - 1)
    nearest: half of the weight lies on the way - 1 nearest classes. Every class can appear, as an anchor at least. The
    classes stand in random order; clips are drawn as `EpisodeSampler` does.

    Args:
        labels: Class id of each clip, [clips], int64.
        class_ids: The classes to draw from, each once.
        shape: Way, shot and query of the episodes.
        means: A vector for each of these classes, [C, d], see `class_means`.
        class_names: Names for error messages, `class_names[i]` for the class id i.

    Raises:
        UserError: If there are fewer classes than ways, or a class has too few clips.
    """

    def __init__(
        self,
        labels: Tensor,
        class_ids: Sequence[int],
        shape: EpisodeShape,
        means: Tensor,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(labels, class_ids, shape, class_names)
        self._nearest = nearest_classes(means, min(self.num_classes - 1, REACH * (shape.way - 1)))

    def draw_classes(self, batch: int, generator: torch.Generator) -> Tensor:
        """Positions in `class_ids` of each episode's classes, [B, N]."""
        fellows = self.shape.way - 1
        anchor = torch.randint(self.num_classes, (batch,), generator=generator)
        ranks = torch.arange(self._nearest.shape[1], dtype=torch.float64)
        # The smallest of E_r / w_r, E_r exponential, are a draw without replacement with weights w_r.
        uniform = torch.rand(batch, len(ranks), generator=generator, dtype=torch.float64)
        chosen = lowest(-torch.log1p(-uniform) * torch.exp2(ranks / fellows), fellows)
        classes = torch.cat([anchor[:, None], self._nearest[anchor].gather(1, chosen)], 1)
        order = torch.rand(classes.shape, generator=generator, dtype=torch.float64).argsort(-1)
        return classes.gather(1, order)
