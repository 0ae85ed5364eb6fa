"""The matrix of prototypes, made from blocks of them without a second copy."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain

import numpy as np
from torch import Tensor

from ...cache.errors import UserError
from .layout import Layout
from .space import (
    PIECE,
    Doubles,
    Floats,
    Space,
    check_names,
    check_width,
    count_rows,
    pieces_of,
)

SMALLEST = 1e-60
"""Temperature: with a smaller one, the coordinates would be too small for float32 to tell them apart."""


def fill(
    blocks: Iterable[Mapping[str, Tensor]], num: int, temperatures: Mapping[str, float] | None
) -> tuple[Space, Floats]:
    """Make the matrix [N, sum d_m + M] from prototypes that come in blocks, without a second copy of them.

    Args:
        blocks: Of one tensor [n, d_m] a modality.
        num: N, the number of prototypes in all blocks.
        temperatures: tau of each modality; 1 where None.

    Raises:
        UserError: If there are no prototypes or more or fewer than `num`, or modalities, widths, values or
            temperatures are not what they should be.
    """
    remaining = iter(blocks)
    first = next(remaining, None) if num > 0 else None
    if not first:
        raise UserError("there are no prototypes to search; give at least one")
    modalities = tuple(first)
    taus = _temperatures(temperatures, modalities)
    for name in modalities:
        check_width(name, first[name], None, "prototypes")
    widths = tuple(first[name].shape[1] for name in modalities)
    matrix = np.empty((num, sum(widths) + len(widths)), np.float32)
    origins = _store(matrix, modalities, widths, chain([first], remaining))
    from_origins = Space(modalities, origins, tuple(map(np.zeros, widths)), taus, (0.0,) * len(taus))
    return _centre(matrix, from_origins), matrix


def _store(
    matrix: Floats, modalities: tuple[str, ...], widths: tuple[int, ...], blocks: Iterable[Mapping[str, Tensor]]
) -> tuple[Doubles, ...]:
    """Write the prototypes relative to an origin near them: float32 then keeps the digits that tell them apart."""
    origins: list[Doubles] = []
    end = 0
    for block in blocks:
        check_names(block, modalities, "prototypes")
        begin, end = end, end + count_rows(block, "prototypes")
        if end > len(matrix):
            raise UserError(f"the blocks hold more than the {len(matrix)} prototypes announced; give their number")
        for position, (name, columns) in enumerate(zip(modalities, Layout(widths).columns, strict=True)):
            check_width(name, block[name], widths[position], "prototypes")
            for start, values in pieces_of(name, block[name], "prototype", begin):
                if position == len(origins):
                    origins.append(values.mean(0))
                matrix[start : start + len(values), columns] = values - origins[position]
    if end < len(matrix):
        raise UserError(f"the blocks hold {end} prototypes, not the {len(matrix)} announced; give their number")
    return tuple(origins)


def _centre(matrix: Floats, space: Space) -> Space:
    """Move what `_store` wrote to its mean, scale it and add the squared norms, piece by piece."""
    step = max(1, PIECE // matrix.shape[1])
    pieces = [matrix[start : start + step] for start in range(0, len(matrix), step)]
    means = tuple(
        np.sum([piece[:, columns].sum(0, dtype=np.float64) for piece in pieces], 0) / len(matrix)
        for columns in space.columns
    )
    space = replace(space, means=means)
    farthest = [0.0 for _ in means]
    for number, piece in enumerate(pieces):
        for position, columns in enumerate(space.columns):
            norms = space.shift(position, piece[:, columns], "prototype", number * step)
            piece[:, sum(space.widths) + position] = norms
            farthest[position] = max(farthest[position], float(norms.max()))
    return replace(space, radii=tuple(math.sqrt(norm) for norm in farthest))


def _temperatures(given: Mapping[str, float] | None, modalities: tuple[str, ...]) -> tuple[float, ...]:
    taus = dict.fromkeys(modalities, 1.0) if given is None else given
    if missing := [name for name in modalities if name not in taus]:
        raise UserError(f"no temperature for modality {missing[0]!r}; give one for each, or none at all")
    for name in modalities:
        if not SMALLEST <= taus[name] < math.inf:
            raise UserError(f"the temperature of {name!r} is {taus[name]}; give a number of at least {SMALLEST:g}")
    return tuple(float(taus[name]) for name in modalities)
