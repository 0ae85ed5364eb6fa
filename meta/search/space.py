"""The space in which all modalities are searched at once: one matrix, whose inner products with a query are distances.

With q_m and t_m centred and scaled by sqrt(tau_m), -sum_m alpha_m |q_m - t_m|^2 is, but for a term of the query alone,
the inner product of [2 alpha_m q_m ..., -alpha_m ...] with [t_m ..., |t_m|^2 ...]. So the weights alpha (AMI, Eq. 7 and
8) stand in the query, and one matrix of prototypes serves them all; one-hot weights search a single modality.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...cache.errors import UserError
from .layout import Layout

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ids = NDArray[np.int64]

PIECE = 2**20
"""Values worked on at once: with a gigabyte of prototypes, the working memory stays at a few tens of megabytes."""

UNIT = 2.0**-24
"""Largest relative error of rounding to float32."""

LARGEST = 2.0**124
"""Squared norms stay below: sums of inner products then stay below float32's 2^128."""


@dataclass(frozen=True, eq=False)
class Space:
    """How embeddings become coordinates of the matrix, and what rounding them to float32 costs."""

    modalities: tuple[str, ...]
    """M names, in the order of the columns."""
    origins: tuple[Doubles, ...]
    """A point near the prototypes of each modality, [d_m], from which they are written as float32."""
    means: tuple[Doubles, ...]
    """The mean of the prototypes as seen from there, [d_m]: inner products lose digits far from it."""
    temperatures: tuple[float, ...]
    """tau_m, the factor of each modality's squared distances."""
    radii: tuple[float, ...]
    """The largest |t_m| after centring and scaling."""

    @property
    def widths(self) -> tuple[int, ...]:
        """d_m of each modality."""
        return tuple(len(origin) for origin in self.origins)

    @property
    def columns(self) -> tuple[slice, ...]:
        """The columns of each modality in the matrix; the M columns of |t_m|^2 follow them."""
        return self.layout.columns

    @property
    def layout(self) -> Layout:
        """Of the matrix's columns."""
        return Layout(self.widths)

    def place(self, queries: Mapping[str, Tensor]) -> Floats:
        """Centre and scale queries: M tensors [NQ, d_m] -> [NQ, sum d_m].

        Raises:
            UserError: If a modality is missing or not of this index, a width or a number of queries differs, or a
                value is not finite.
        """
        check_names(queries, self.modalities, "queries")
        points = np.empty((count_rows(queries, "queries"), sum(self.widths)), np.float32)
        for position, name in enumerate(self.modalities):
            check_width(name, queries[name], self.widths[position], "queries")
            for start, values in pieces_of(name, queries[name], "query"):
                part = points[start : start + len(values), self.columns[position]]
                # Rounded twice as the prototypes are, so that a query that is a prototype lies on it.
                part[:] = values - self.origins[position]
                self.shift(position, part, "query", start)
        return points

    def shift(self, position: int, part: Floats, what: str, start: int) -> Doubles:
        """Centre and scale, in place, what is written from the origin; `start` is the number of the first row.

        Returns:
            The squared norms.

        Raises:
            UserError: If one leaves float32.
        """
        with np.errstate(over="ignore"):
            part[:] = (part - self.means[position]) * math.sqrt(self.temperatures[position])
        norms = squares(part)
        _check_size(norms, self.modalities[position], what, start)
        return norms

    def lift(self, points: Floats, weights: Doubles) -> Floats:
        """[2 alpha_m q_m ..., -alpha_m ...]: what to search the matrix with.

        Args:
            points: Of `place`, [NQ, sum d_m].
            weights: alpha, [M, NQ].

        Returns:
            [NQ, sum d_m + M], C-contiguous.
        """
        lifted = np.empty((len(points), sum(self.widths) + len(weights)), np.float32)
        for columns, alpha in zip(self.columns, weights, strict=True):
            np.multiply(points[:, columns], 2 * alpha[:, None], out=lifted[:, columns], casting="same_kind")
        lifted[:, sum(self.widths) :] = -weights.T
        return lifted

    def to_json(self) -> dict[str, Any]:
        """Everything, such that `from_json` gives an equal space."""
        points = {name: [point.tolist() for point in getattr(self, name)] for name in ("origins", "means")}
        return {**asdict(self), **points}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Space":
        """The space that `to_json` wrote."""
        return cls(
            modalities=tuple(data["modalities"]),
            origins=tuple(np.array(point, np.float64) for point in data["origins"]),
            means=tuple(np.array(point, np.float64) for point in data["means"]),
            temperatures=tuple(data["temperatures"]),
            radii=tuple(data["radii"]),
        )

    def squared_norms(self, points: Floats) -> Doubles:
        """|q_m|^2, [M, NQ]."""
        return np.stack([squares(points[:, columns]) for columns in self.columns])

    def measure(self, matrix: Floats, points: Floats, ids: Ids) -> Doubles:
        """The distances psi of chosen pairs, from differences: the inner products would cost digits.

        Args:
            matrix: The prototypes.
            points: Of `place`, [NQ, sum d_m].
            ids: Rows of the matrix to measure for each query, [NQ, C].

        Returns:
            [M, NQ, C]. Equal rows are equally far to the last bit.
        """
        count, width = ids.shape[1], points.shape[1]
        rows, step = ids.reshape(-1), max(1, PIECE // width)
        psi = np.empty((len(self.modalities), len(rows)))
        for start in range(0, len(rows), step):
            pairs = slice(start, min(start + step, len(rows)))
            difference = matrix[rows[pairs]][:, :width]
            difference -= points[np.arange(pairs.start, pairs.stop) // count]
            self._sum_squares(difference, psi[:, pairs])
        return psi.reshape(len(self.modalities), *ids.shape)

    def _sum_squares(self, difference: Floats, out: Doubles) -> None:
        exact = difference.astype(np.float64)
        for position, columns in enumerate(self.columns):
            out[position] = squares(exact[:, columns])

    def rounding(self, psi: Doubles, norms: Doubles) -> Doubles:
        """Bound of how far psi lies from its value in exact arithmetic: coordinates are rounded to float32.

        Args:
            psi: Distances, [M, NQ, C].
            norms: |q_m|, [M, NQ].

        Returns:
            [M, NQ, C].
        """
        root = np.sqrt(psi)
        means = zip(self.means, self.temperatures, strict=True)
        drifts = np.array([float(np.linalg.norm(mean)) * math.sqrt(tau) for mean, tau in means])
        # A coordinate is rounded once as seen from the origin, which is `drift` from the mean, and once from the mean.
        shift = 2 * UNIT * (2 * norms[..., None] + root + drifts[:, None, None])
        error: Doubles = 2 * root * shift + shift * shift
        return error


def squares(values: NDArray[Any]) -> Doubles:
    """Sum of squares of each row, in float64 and in an order that does not depend on the row."""
    exact = values.astype(np.float64, copy=False)
    sums: Doubles = np.einsum("nd,nd->n", exact, exact)
    return sums


def pieces_of(name: str, values: Tensor, what: str, begin: int = 0) -> Iterator[tuple[int, Doubles]]:
    """Pieces of [n, d] in float64, each with the number of its first row.

    Raises:
        UserError: If a value is not finite, or too large for its square to be one in float32.
    """
    step = max(1, PIECE // values.shape[1])
    for start in range(0, len(values), step):
        piece = values[start : start + step].detach().cpu().double().numpy()
        finite = np.isfinite(piece).all(1)
        if not finite.all():
            row = begin + start + int(finite.argmin())
            raise UserError(f"{name!r} is not finite in {what} {row}; repair or leave out its features")
        _check_size(np.abs(piece).max(1) ** 2, name, what, begin + start)
        yield begin + start, piece


def _check_size(norms: Doubles, name: str, what: str, start: int) -> None:
    """Refuse squared norms whose inner products could leave float32; `start` is the number of the first row.

    Raises:
        UserError: If there is one.
    """
    fits = norms < LARGEST
    if not fits.all():
        row = start + int(fits.argmin())
        raise UserError(f"{name!r} is too large for float32 in {what} {row}; scale the features or the temperature")


def check_names(given: Mapping[str, Tensor], modalities: tuple[str, ...], what: str) -> None:
    """Refuse other modalities than those of the index.

    Raises:
        UserError: If there is one too few or too many.
    """
    if missing := [name for name in modalities if name not in given]:
        raise UserError(f"the {what} lack modality {missing[0]!r}; given: {', '.join(given) or 'none'}; give it too")
    if unknown := [name for name in given if name not in modalities]:
        raise UserError(f"the {what} have modality {unknown[0]!r}; the index has {', '.join(modalities)}; leave it out")


def check_width(name: str, values: Tensor, width: int | None, what: str) -> None:
    """Refuse what is not [number, width], or of no width where None.

    Raises:
        UserError: If it is not.
    """
    if values.ndim != 2 or values.shape[1] == 0 or width not in (None, values.shape[1]):
        raise UserError(f"the {what} of {name!r} are {list(values.shape)}; give [number, {width or 'width > 0'}]")


def count_rows(given: Mapping[str, Tensor], what: str) -> int:
    """Return how many there are of each modality.

    Raises:
        UserError: If their numbers differ.
    """
    counts = {name: values.shape[0] if values.ndim else 0 for name, values in given.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise UserError(f"the modalities have different numbers of {what} ({listed}); give equal ones")
    return next(iter(counts.values()), 0)
