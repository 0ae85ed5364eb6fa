"""Episodes: which clips an N-way K-shot task draws, for many episodes at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cache.errors import UserError


@dataclass(frozen=True)
class EpisodeShape:
    """How many classes and clips an episode draws."""

    way: int = 5
    """Classes (N), at least 2."""
    shot: int = 1
    """Support clips of each class (K)."""
    query: int = 5
    """Query clips of EACH class (Q); an episode has way * query queries (NQ)."""

    def __post_init__(self) -> None:
        """Refuse counts that leave no task."""
        for name, least in (("way", 2), ("shot", 1), ("query", 1)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"{name} is {value}; an episode needs at least {least}; raise --{name}")

    def query_labels(self) -> Tensor:
        """Class positions of the queries in the order of `Episodes.query` flattened: [way * query], int64."""
        return torch.arange(self.way).repeat_interleave(self.query)


@dataclass(frozen=True, eq=False)
class Episodes:
    """A batch of episodes as clip indices; class n of an episode stands at position n of both tensors."""

    support: Tensor
    """Clip indices [B, N, K]."""
    query: Tensor
    """Clip indices [B, N, Q]."""
    support_views: Tensor | None = None
    """The stored view each support clip shows [B, N, K]; None: view 0 of every clip."""
    query_views: Tensor | None = None
    """The stored view each query clip shows [B, N, Q]; None: view 0 of every clip."""

    def __len__(self) -> int:
        """Number of episodes."""
        return self.support.shape[0]

    def __getitem__(self, part: slice) -> "Episodes":
        """The episodes of a slice."""
        return Episodes(
            self.support[part],
            self.query[part],
            None if self.support_views is None else self.support_views[part],
            None if self.query_views is None else self.query_views[part],
        )


class EpisodeSampler:
    """Draws episodes from the clips of some classes.

    Args:
        labels: Class id of each clip, [clips], int64.
        class_ids: The classes to draw from, each once.
        shape: Way, shot and query of the episodes.
        class_names: Names for error messages, `class_names[i]` for the class id i.

    Raises:
        UserError: If there are fewer classes than ways, or a class has too few clips.
    """

    def __init__(
        self, labels: Tensor, class_ids: Sequence[int], shape: EpisodeShape, class_names: Sequence[str] | None = None
    ) -> None:
        assert len(set(class_ids)) == len(class_ids), "a class is listed twice"
        self.shape = shape
        clips = [torch.nonzero(labels == class_id).flatten() for class_id in class_ids]
        if len(clips) < shape.way:
            raise UserError(f"way is {shape.way}, but there are {len(clips)} classes to draw from; lower --way")
        for class_id, members in zip(class_ids, clips, strict=True):
            _check_size(str(class_id) if class_names is None else class_names[class_id], len(members), shape)
        self._sizes = torch.tensor([len(members) for members in clips])
        self._starts = self._sizes.cumsum(0) - self._sizes
        self._clips = torch.cat(clips)
        self.positions = torch.full((len(labels),), -1).index_copy_(
            0, self._clips, torch.arange(len(clips)).repeat_interleave(self._sizes)
        )
        """Which of `class_ids` each clip is of, [clips]; -1: none."""

    def sample(self, batch: int, generator: torch.Generator, views: int | None = None) -> Episodes:
        """Draw episodes: classes in random order, then disjoint support and query clips of each class.

        Args:
            batch: Number of episodes (B).
            generator: Source of all randomness; equal states give equal episodes.
            views: Draw one of this many stored views for each clip; None leaves the views unset (view 0).
        """
        classes = self.draw_classes(batch, generator)
        chosen = _draw_distinct(self._sizes[classes], self.shape.shot + self.shape.query, generator)
        clips = self._clips[self._starts[classes][..., None] + chosen]
        shot = self.shape.shot
        if views is None:
            return Episodes(clips[..., :shot], clips[..., shot:])
        shown = torch.randint(views, clips.shape, generator=generator)
        return Episodes(clips[..., :shot], clips[..., shot:], shown[..., :shot], shown[..., shot:])

    @property
    def num_classes(self) -> int:
        """Classes there are to draw from."""
        return len(self._sizes)

    def draw_classes(self, batch: int, generator: torch.Generator) -> Tensor:
        """Positions in `class_ids` of each episode's classes [B, N]: every ordered choice is equally likely."""
        keys = torch.rand(batch, self.num_classes, generator=generator, dtype=torch.float64)
        return lowest(keys, self.shape.way)


def lowest(keys: Tensor, count: int) -> Tensor:
    """Positions of the `count` smallest keys along the last axis, in rising order: argsort, but for few of many."""
    if 4 * count < keys.shape[-1]:
        return keys.topk(count, largest=False).indices
    return keys.argsort(-1)[..., :count]


def _check_size(name: str, num_clips: int, shape: EpisodeShape) -> None:
    need = shape.shot + shape.query
    if num_clips < need:
        mend = "--query (training.query where a profile sets it)"
        raise UserError(
            f"class {name!r} has {num_clips} clips; an episode of {shape.shot} shot + {shape.query} queries "
            f"needs {need}; lower {mend if num_clips > shape.shot else '--shot'} or leave the class out"
        )


def _draw_distinct(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Ordered draws without replacement, uniform over all orders; the cost does not grow with the class sizes.

    Floyd's algorithm (Bentley and Floyd, 1987) for all classes of all episodes at once: draw j comes from the first
    size - count + j + 1 members, and a member already taken is replaced by the last of them. That makes every SET
    equally likely, but not every order, so a shuffle follows.

    Args:
        sizes: Members to draw from, [B, N].
        count: Draws, at most the smallest size.
        generator: Source of randomness.

    Returns:
        Positions in [0, size), [B, N, count].
    """
    chosen = torch.empty(*sizes.shape, count, dtype=torch.int64)
    for j in range(count):
        last = sizes - count + j
        drawn = (torch.rand(sizes.shape, generator=generator, dtype=torch.float64) * (last + 1)).long()
        taken = (chosen[..., :j] == drawn[..., None]).any(-1)
        chosen[..., j] = torch.where(taken, last, drawn)
    order = torch.rand(chosen.shape, generator=generator, dtype=torch.float64).argsort(-1)
    return chosen.gather(-1, order)
