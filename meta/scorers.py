"""Any head on episodes of clip indices, at the cost of its class.

Distances to mean embeddings follow from inner products (`PrototypeScorer`). Scores of pairs of clips are computed for
the pairs that occur, or, where episodes ask for most of them, for all clips at once and looked up. Any other head
encodes each clip once and scores episodes in batches. Memory stays bounded however many clips there are.
"""

from collections.abc import Iterator, Mapping
from copy import copy
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from ..cache.errors import UserError
from .episodes import Episodes, EpisodeShape
from .heads.base import Encoding, Head, PairHead, PrototypeHead
from .prototypes import PrototypeScorer, Scores, look_up
from .threads import map_threads

MAX_KEPT = 2**30
"""Bytes of encodings; where all clips' would be more, those of some episodes are made, used and dropped."""

MAX_TABLE = 2**28
"""Bytes of a clip-by-clip table: that of 8192 clips."""

MAX_HELD = 2**22
"""Numbers a thread may hold while it scores (16 MiB): more would leave the processor's caches, less is overhead."""

ENCODED_AT_ONCE = 2**22
"""Numbers of the features, or encodings, of the clips that are encoded together."""

PAIR_COST = 1.25
"""Time of a pair scored within its episode, in pairs of the table; 1.1 to 1.5 for the heads here."""


class HeadScorer:
    """One branch of a model: a head on the clips that episodes draw from.

    Args:
        head: In evaluation mode, on the device.
        features: [V, T, D] ([V, T, P, D] with tokens), any floating point, memory-mapped or not.
        scale: Factor of the logits.
        device: Where the head lives.
    """

    def __init__(self, head: Head, features: Tensor, *, scale: float = 1.0, device: torch.device | str = "cpu") -> None:
        assert not head.training, "a head in training mode may drop or normalise by the batch"
        self.head = head
        self.scale = scale
        self._clips = _Clips(head, features, torch.device(device))
        self._wants_table = False

    def __getstate__(self) -> dict[str, Any]:
        """What travels to another process: without the features, where nothing is left to be encoded."""
        scored = "_prototypes" in self.__dict__ or "_table" in self.__dict__
        return {**self.__dict__, "_clips": self._clips.to_send(encodings=not scored)}

    def expect(self, episodes: int, shape: EpisodeShape) -> None:
        """Plan for so many episodes of this shape: pairs are scored all at once where that is less work."""
        if not isinstance(self.head, PairHead):
            return
        asked, table = episodes * shape.way**2 * shape.query * shape.shot, self._clips.num**2
        fits = table * 4 <= MAX_TABLE and self._clips.fit
        self._wants_table = self._wants_table or (fits and PAIR_COST * asked > table)

    def __call__(self, episodes: Episodes) -> Tensor:
        """Scaled logits of view 0 of the clips, [B, NQ, N] on the CPU, without gradient; class n is column n."""
        return -self.psi(episodes)[0]

    @torch.no_grad()
    def psi(self, episodes: Episodes) -> tuple[Tensor, Tensor]:
        """Scaled distances [B, NQ, N], and those to the centre of the classes [B, NQ], see `Scores`.

        A head's distances are its negative logits; without prototypes, their mean stands for that to the centre.
        """
        if isinstance(self.head, PrototypeHead):
            psi, centre = self._prototypes(episodes)
            return psi[0], centre[0]
        logits = self._read_table(episodes) if self._wants_table else self._score(episodes)
        psi = -self.scale * logits.cpu()
        return psi, psi.mean(-1)

    @cached_property
    def _prototypes(self) -> PrototypeScorer:
        head = self.head
        assert isinstance(head, PrototypeHead)
        (embeddings,) = self._clips.encode(torch.arange(self._clips.num))
        return PrototypeScorer({"": embeddings.cpu()}, {"": self.scale * head.scale}, head.distance)

    @cached_property
    def _table(self) -> Tensor:
        """Scores of all pairs, [V as queries, V as supports]."""
        head, clips = self.head, self._clips.all
        assert isinstance(head, PairHead)
        size = 512
        while size > 1 and head.footprint(size, 1, size) > MAX_HELD:
            size //= 2
        table = clips[0].new_empty(self._clips.num, self._clips.num)
        parts = [slice(start, start + size) for start in range(0, len(table), size)]

        @torch.no_grad()
        def fill(tile: tuple[slice, slice]) -> None:
            query, support = (tuple(part[None, side] for part in clips) for side in tile)
            table[tile] = head.pair(query, support)[0]

        map_threads(fill, [(rows, columns) for rows in parts for columns in parts])
        return table

    def _read_table(self, episodes: Episodes) -> Tensor:
        assert isinstance(self.head, PairHead)
        table = self._table
        query, support = episodes.query.flatten(1).to(table.device), episodes.support.to(table.device)
        return self.head.reduce(look_up(table, query[:, :, None, None], support[:, None]))

    def _score(self, episodes: Episodes) -> Tensor:
        """Logits of episodes, in pieces whose clips' encodings fit, and of these in pieces that scoring can hold."""
        (way, shot), queries = episodes.support.shape[1:], episodes.query[0].numel()
        numbers, clips = self._clips.numbers, way * shot + queries
        encoded = len(episodes) if self._clips.fit else MAX_KEPT // (4 * numbers * clips)
        scored = MAX_HELD // (self.head.footprint(way, shot, queries) + numbers * clips)
        parts = []
        for part in _split(episodes, encoded):
            encoding, renumbered = self._clips.of(part)
            parts += map_threads(partial(self._score_piece, encoding), list(_split(renumbered, scored)))
        return torch.cat(parts)

    @torch.no_grad()
    def _score_piece(self, encoding: Encoding, episodes: Episodes) -> Tensor:
        support, query = (
            tuple(_take(values, clips) for values in encoding)
            for clips in (episodes.support, episodes.query.flatten(1))
        )
        return self.head.score(support, query)


class ModelScorer:
    """Several branches on the same clips.

    Args:
        branches: Modality -> its head, in the order of the tensors' first axis.

    Raises:
        UserError: If there is none.
    """

    def __init__(self, branches: Mapping[str, HeadScorer]) -> None:
        if not branches:
            raise UserError("no modality to score; branches; give at least one stream")
        self.modalities = tuple(branches)
        self._branches = tuple(branches.values())

    def expect(self, episodes: int, shape: EpisodeShape) -> None:
        """Let every branch plan for so many episodes of this shape."""
        for branch in self._branches:
            branch.expect(episodes, shape)

    def __call__(self, episodes: Episodes) -> Scores:
        """Score the view-0 clips of a batch of episodes, without gradient."""
        parts = [branch.psi(episodes) for branch in self._branches]
        return Scores(torch.stack([psi for psi, _ in parts]), torch.stack([centre for _, centre in parts]))


class _Clips:
    """What a head encodes clips to: all of them once, where that fits, else those of some episodes."""

    def __init__(self, head: Head, features: Tensor, device: torch.device) -> None:
        self.num = len(features)
        self._head = head
        self._features = features
        self._device = device

    @cached_property
    def _first(self) -> Encoding:
        """Encoding of the first clip, to see how large they are."""
        return self._encode(torch.arange(1))

    @property
    def numbers(self) -> int:
        """How many a clip is encoded to."""
        return sum(part.numel() for part in self._first)

    @property
    def fit(self) -> bool:
        """Whether the encodings of all clips may be kept."""
        return 4 * self.numbers * self.num <= MAX_KEPT

    @cached_property
    def all(self) -> Encoding:
        """Encodings of all clips."""
        return self.encode(torch.arange(self.num))

    def to_send(self, encodings: bool) -> "_Clips":
        """What another process needs of these clips: their encodings, the features where there are none, or neither."""
        clips = copy(self)
        if not encodings or "all" in self.__dict__:
            clips._features = self._features[:0].clone()
        if not encodings:
            clips.__dict__.pop("all", None)
        return clips

    def of(self, episodes: Episodes) -> tuple[Encoding, Episodes]:
        """Encodings that have the episodes' clips, and the episodes in their numbering."""
        if self.fit:
            return self.all, episodes
        support, query = episodes.support, episodes.query
        used, position = torch.unique(torch.cat([support.flatten(), query.flatten()]), return_inverse=True)
        in_support, in_query = position.split([support.numel(), query.numel()])
        return self.encode(used), Episodes(in_support.view_as(support), in_query.view_as(query))

    def encode(self, clips: Tensor) -> Encoding:
        """Encode the clips with these indices, some at a time, without gradient."""
        step = max(1, min(512, ENCODED_AT_ONCE // max(self._features[0].numel(), self.numbers)))
        # Not concatenated at the end: that would hold everything twice.
        whole = tuple(part.new_empty(len(clips), *part.shape[1:]) for part in self._first)

        def fill(start: int) -> None:
            for values, part in zip(whole, self._encode(clips[start : start + step]), strict=True):
                values[start : start + step] = part

        map_threads(fill, range(0, len(clips), step))
        return whole

    @torch.no_grad()
    def _encode(self, clips: Tensor) -> Encoding:
        return self._head.encode(self._features[clips].to(self._device, torch.float32))


def _split(episodes: Episodes, size: int) -> Iterator[Episodes]:
    """Pieces of at most that many episodes, and at least one."""
    for start in range(0, len(episodes), max(1, size)):
        yield episodes[start : start + max(1, size)]


def _take(values: Tensor, clips: Tensor) -> Tensor:
    """values[clips]; one flat index_select is faster than that."""
    return values.index_select(0, clips.flatten().to(values.device)).view(*clips.shape, *values.shape[1:])
