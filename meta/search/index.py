"""Nearest prototypes of many queries, in any mixture of modalities, from one index (see space.py for how)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.errors import UserError, pick
from .approximate import Approximate
from .backends import APPROXIMATE, BACKENDS, Backend, build_backend, choose_backend
from .files import read_index, write_index
from .matrix import fill
from .neighbours import Neighbours, join_neighbours
from .posterior import Candidates, Certainties, certainties
from .space import PIECE, UNIT, Doubles, Floats, Ids, Space, count_rows

NEAREST = 64
"""At least so many prototypes nearest in each modality make up a posterior: over one alone, every c is 1."""

FEW = 256
"""Up to so many prototypes all make it up: that costs little, and nothing is left open."""


MORE = 8
"""Factor by which more candidates are asked for where it is not certain that none is missing."""


@dataclass(frozen=True, eq=False)
class PrototypeIndex:
    """N prototypes of M modalities; made by `build`, `from_blocks` or `load`.

    An exact backend answers with the true neighbours whatever its rounding: it is asked for a few more than wanted,
    all distances are computed again from differences, and where the first prototype left out could still be as near as
    the last one returned, more are asked for. So the answers of all exact backends are equal to the last bit.
    """

    space: Space
    """How embeddings become coordinates."""
    matrix: Floats
    """The only copy of the prototypes, [N, sum d_m + M]."""
    backend: Backend
    """Searches the matrix."""

    @classmethod
    def build(
        cls,
        prototypes: Mapping[str, Tensor],
        temperatures: Mapping[str, float] | None = None,
        *,
        backend: str = "auto",
        queries: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> "PrototypeIndex":
        """Index prototypes that are in memory.

        Args:
            prototypes: [N, d_m] of each modality.
            temperatures: tau of each modality, positive; 1 where None.
            backend: A key of `BACKENDS`, or "auto": the fastest exact one.
            queries: Held-out queries [n, d_m], by which an approximate backend tunes itself; it makes its own of
                prototypes where there are few or None.
            seed: Of an approximate backend's clustering.

        Raises:
            UserError: If there are no prototypes; modalities, widths, values or temperatures are not what they should
                be; or the backend is unknown.
        """
        num = count_rows(prototypes, "prototypes")
        return cls.from_blocks([prototypes], num, temperatures, backend=backend, queries=queries, seed=seed)

    @classmethod
    def from_blocks(
        cls,
        blocks: Iterable[Mapping[str, Tensor]],
        num: int,
        temperatures: Mapping[str, float] | None = None,
        *,
        backend: str = "auto",
        queries: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> "PrototypeIndex":
        """Index prototypes that come in blocks, so that no second copy of them need be in memory.

        Args:
            blocks: Of [n, d_m] for each modality.
            num: N, the number of prototypes in all blocks.
            temperatures: As `build` has it.
            backend: As `build` has it.
            queries: As `build` has it.
            seed: As `build` has it.

        Raises:
            UserError: As `build`, or if the blocks hold more or fewer than `num`.
        """
        if backend != "auto":
            pick(BACKENDS, backend, "search backend")
        space, matrix = fill(blocks, num, temperatures)
        name = choose_backend(len(matrix)) if backend == "auto" else backend
        held_out = _held_out(space, queries) if queries and name in APPROXIMATE else None
        return cls(space, matrix, build_backend(name, matrix, space.layout, held_out, seed))

    @classmethod
    def load(cls, folder: Path, fingerprint: Mapping[str, Any]) -> "PrototypeIndex":
        """Take up an index that `save` wrote; the prototypes stay on disk until they are read.

        Raises:
            UserError: If there is none, it is damaged, it was made from something else than `fingerprint` says or by
                another amfir, or its backend is not installed.
        """
        data, matrix, backend = read_index(folder, fingerprint)
        return cls(Space.from_json(data), matrix, backend)

    def save(self, folder: Path, fingerprint: Mapping[str, Any]) -> None:
        """Write the index; a killed run leaves the old one or none.

        Args:
            folder: Made if it is not there.
            fingerprint: JSON-able: what the prototypes come from (run, model, cache). `load` asks for the same.
        """
        write_index(folder, fingerprint, self.space.to_json(), self.matrix, self.backend)

    def search(
        self, queries: Mapping[str, Tensor], k: int, weights: Tensor | None = None, *, leave_out: Tensor | None = None
    ) -> Neighbours:
        """Find the prototypes with the smallest sum_m alpha_m psi_m (AMFIR Eq. 7).

        Args:
            queries: [NQ, d_m] of each modality.
            k: How many; all N if there are fewer.
            weights: alpha, [M, NQ] in the order of `space.modalities`, at least 0 and not all 0 for a query; one-hot
                ones search one modality. None: AMI's (Eq. 8), from posteriors over the `posterior_depth`
                prototypes nearest in each modality; see `Certainties` for what that leaves open.
            leave_out: A prototype for each query that counts nowhere, [NQ]: where the query is one itself, it would be
                the nearest in every modality, and the certainties would say how lonely it is.

        Raises:
            UserError: If k < 1, or modalities, widths, values, weights or what is left out are not what they should be.
        """
        if k < 1:
            raise UserError(f"cannot return {k} prototypes; give k of at least 1")
        points = self.space.place(queries)
        alpha = None if weights is None else self._alpha(weights, len(points))
        out = None if leave_out is None else self._left_out(leave_out, len(points))
        k = min(k, len(self.matrix) - (out is not None))
        step = max(1, PIECE // (len(self.space.modalities) ** 2 * _breadth(posterior_depth(k, len(self.matrix)))))
        starts = range(0, max(1, len(points)), step)
        return join_neighbours(
            [
                self._search(
                    points[part], k, None if alpha is None else alpha[:, part], None if out is None else out[part]
                )
                for part in (slice(start, start + step) for start in starts)
            ]
        )

    def _left_out(self, ids: Tensor, count: int) -> Ids:
        if tuple(ids.shape) != (count,) or ids.is_floating_point():
            raise UserError(
                f"{ids.dtype} {list(ids.shape)} is to be left out; give whole numbers [{count}], one a query"
            )
        out: Ids = ids.detach().cpu().long().numpy()
        if len(self.matrix) < 2 or ((out < 0) | (out >= len(self.matrix))).any():
            raise UserError(f"of {len(self.matrix)} prototypes one is to be left out that is none, or the only one")
        return out

    def _alpha(self, weights: Tensor, count: int) -> Doubles:
        shape = (len(self.space.modalities), count)
        if tuple(weights.shape) != shape:
            raise UserError(f"the weights are {list(weights.shape)}; give {list(shape)}, [modalities, queries]")
        alpha: Doubles = weights.detach().cpu().double().numpy()
        good = (np.isfinite(alpha) & (alpha >= 0)).all(0) & (alpha > 0).any(0)
        if not good.all():
            query = int(good.argmin())
            values = ", ".join(f"{value:g}" for value in alpha[:, query])
            raise UserError(f"weights {values} of query {query}; give finite ones of at least 0, and not 0 alone")
        return alpha

    def _search(self, points: Floats, k: int, alpha: Doubles | None, out: Ids | None) -> Neighbours:
        found = alone = None
        if alpha is None:
            found, alone = self._certainties(points, k, out)
            alpha = found.weights.numpy()
        ids, psi, distances = self._others(points, alpha, k, out)
        return Neighbours(
            torch.from_numpy(ids),
            torch.from_numpy(distances),
            torch.from_numpy(psi),
            torch.from_numpy(alpha),
            certainties=found,
            alone=None if alone is None else torch.from_numpy(alone),
        )

    def _certainties(self, points: Floats, k: int, out: Ids | None) -> tuple[Certainties, Ids]:
        """Certainties over the prototypes that are among the nearest in any modality, and these, [M, NQ, c]."""
        modalities, num = range(len(self.space.modalities)), len(self.matrix) - (out is not None)
        count = posterior_depth(k, num)
        lists = [self._others(points, _one_hot(m, len(modalities), len(points)), count, out) for m in modalities]
        psi = np.concatenate([psi for _, psi, _ in lists], 2)
        reach = np.stack([distances[:, -1] for _, _, distances in lists])
        rounding = self.space.rounding(psi, np.sqrt(self.space.squared_norms(points)))
        candidates = Candidates(np.concatenate([ids for ids, _, _ in lists], 1), psi, rounding, reach)
        found = certainties(candidates, num, self.backend.exact or count == num)
        return found, np.stack([ids for ids, _, _ in lists])

    def _others(self, points: Floats, alpha: Doubles, count: int, out: Ids | None) -> tuple[Ids, Doubles, Doubles]:
        """`_nearest` without those that are left out: one more is found, and one dropped."""
        if out is None:
            return self._nearest(points, alpha, count)
        ids, psi, distances = self._nearest(points, alpha, count + 1)
        kept = ids != out[:, None]
        # An equal prototype of a lower id, or an approximate search, may have kept it away: the last one goes instead.
        kept[:, -1] &= ~kept.all(1)
        places = kept.nonzero()[1].reshape(len(ids), count)
        near, far = np.take_along_axis(ids, places, 1), np.take_along_axis(distances, places, 1)
        return near, np.take_along_axis(psi, places[None], 2), far

    def _nearest(self, points: Floats, alpha: Doubles, count: int) -> tuple[Ids, Doubles, Doubles]:
        """The `count` nearest: ids [NQ, count], psi [M, NQ, count] and distances [NQ, count]."""
        ids = np.empty((len(points), count), np.int64)
        psi = np.empty((len(alpha), len(points), count))
        distances = np.empty((len(points), count))
        waiting, breadth = np.arange(len(points)), _breadth(count)
        while len(waiting):
            for part in _groups(waiting, min(breadth, len(self.matrix))):
                ids[part], psi[:, part], distances[part], sure = self._attempt(
                    points[part], alpha[:, part], count, breadth
                )
                waiting = np.setdiff1d(waiting, part[sure], assume_unique=True)
            breadth *= MORE
        return ids, psi, distances

    def _attempt(
        self, points: Floats, alpha: Doubles, count: int, breadth: int
    ) -> tuple[Ids, Doubles, Doubles, NDArray[np.bool_]]:
        """`_nearest` from the backend's `breadth` best, and of which queries that is certain."""
        num = len(self.matrix)
        if breadth >= num:
            everything = np.broadcast_to(np.arange(num), (len(points), num))
            return *self._rank(points, alpha, everything, count), np.ones(len(points), bool)
        # A common factor of a query's weights changes no ranking, but could leave float32.
        unit = alpha / alpha.max(0)
        lifted = self.space.lift(points, unit)
        if isinstance(self.backend, Approximate):
            ids = self.backend.candidates(lifted, breadth)
            return *self._rank(points, alpha, ids, count), np.ones(len(points), bool)
        scores, ids = self.backend.search(lifted, breadth)
        best, psi, distances = self._rank(points, alpha, ids, count)
        return best, psi, distances, self._certain(points, unit, distances[:, -1] / alpha.max(0), scores[:, -1])

    def _rank(self, points: Floats, alpha: Doubles, ids: Ids, count: int) -> tuple[Ids, Doubles, Doubles]:
        """Measure the candidates directly and keep the nearest."""
        psi = self.space.measure(self.matrix, points, ids)
        distances = (alpha[..., None] * psi).sum(0)
        order = np.lexsort((ids, distances), axis=-1)[:, :count]
        best, near = np.take_along_axis(ids, order, 1), np.take_along_axis(distances, order, 1)
        return best, np.take_along_axis(psi, order[None], 2), near

    def _certain(self, points: Floats, alpha: Doubles, farthest: Doubles, last: Floats) -> NDArray[np.bool_]:
        """Whether what scores no better than `last` is farther away than `farthest`, rounding of scores included.

        The error of a float32 inner product is taken as four times its random walk over the columns. The prototypes in
        question are those that are as near as `farthest`, which bounds their norms.
        """
        squared = self.space.squared_norms(points)
        norms = np.sqrt(squared)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # where alpha is 0, only the radius bounds
            radii = np.fmin(np.array(self.space.radii)[:, None], norms + np.sqrt(farthest / alpha))
        size = (alpha * radii * (2 * norms + radii)).sum(0) + farthest
        width = self.matrix.shape[1]
        error = UNIT * (4 * width**0.5 + 8) * size + width * float(np.finfo(np.float32).tiny)
        certain: NDArray[np.bool_] = farthest < (alpha * squared).sum(0) - last - error
        return certain


def posterior_depth(k: int, num: int) -> int:
    """How many of `num` prototypes, nearest in each modality, a posterior is normalised over where k are wanted."""
    return num if num <= FEW else min(max(k, NEAREST), num)


def _breadth(count: int) -> int:
    """How many to ask a backend for: the spare ones almost always show that none is missing."""
    return count + count // 8 + 16


def _groups(queries: Ids, breadth: int) -> Sequence[Ids]:
    """Queries in groups whose candidates fit into the working memory."""
    step = max(1, PIECE // breadth)
    return [queries[start : start + step] for start in range(0, len(queries), step)]


def _one_hot(position: int, modalities: int, count: int) -> Doubles:
    weights = np.zeros((modalities, count))
    weights[position] = 1
    return weights


def _held_out(space: Space, queries: Mapping[str, Tensor]) -> Floats:
    """Held-out queries as the index will be asked: each modality alone, and all with equal weights."""
    points, modalities = space.place(queries), len(space.modalities)
    mixtures = [_one_hot(m, modalities, len(points)) for m in range(modalities)]
    if modalities > 1:
        mixtures.append(np.full((modalities, len(points)), 1 / modalities))
    return np.concatenate([space.lift(points, weights) for weights in mixtures])
