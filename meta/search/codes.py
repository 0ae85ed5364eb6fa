"""Rows of the matrix in a byte a number: what an approximate search reads instead of them.

The codes find candidates, whose inner products the matrix then gives exactly. So they may leave out what hardly
matters: directions in which the prototypes do not vary. What they must not do is to round |t|^2, whose range is far
larger than that of the coordinates: it takes two bytes, and is the squared norm of the rounded coordinates, so that an
inner product is the distance to a point near t_m instead of a difference of two large and unrelated roundings.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from .layout import Layout
from .library import Floats, find_faiss

KEPT = 0.999
"""Share of the variance that the kept directions have."""

WORTH = 0.75
"""Fewer directions than this share of the width are worth a rotation."""

LANES = 16
"""Numbers at once: faiss decodes other widths one by one."""

LEVELS = 255


@dataclass(frozen=True, eq=False)
class Codes:
    """How rows become codes, and queries what is multiplied with the decoded codes."""

    lift: Floats
    """[C, W]: coordinates of each modality, |t_m|^2 (high bytes), |t_m|^2 (low bytes), zeros."""
    coordinates: tuple[slice, ...]
    """The code columns of each modality."""
    ranges: Floats
    """Smallest value and extent of each code column, [2, C]."""

    @property
    def width(self) -> int:
        """C, bytes of a code."""
        return len(self.lift)

    @property
    def high(self) -> slice:
        """Code columns of the squared norms, rounded."""
        return slice(self.coordinates[-1].stop, self.coordinates[-1].stop + len(self.coordinates))

    @property
    def low(self) -> slice:
        """Code columns of what the rounding took from them."""
        return slice(self.high.stop, self.high.stop + len(self.coordinates))

    def quantizer(self) -> Any:
        """Faiss's scalar quantiser, with these ranges."""
        faiss: Any = find_faiss()
        quantizer = faiss.ScalarQuantizer(self.width, faiss.ScalarQuantizer.QT_8bit)
        faiss.copy_array_to_vector(self.ranges.reshape(-1), quantizer.trained)
        return quantizer

    def project(self, rows: Floats) -> Floats:
        """Rows or queries [n, W] -> [n, C]; of rows, both columns of a squared norm hold all of it."""
        projected: Floats = (torch.from_numpy(rows) @ torch.from_numpy(self.lift).T).numpy()
        return projected

    def encode(self, projected: Floats, quantizer: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Codes of projected rows, [n, C]."""
        values = projected.copy()
        rounded = quantizer.decode(quantizer.compute_codes(values))
        for position, columns in enumerate(self.coordinates):
            values[:, self.high.start + position] = np.square(rounded[:, columns]).sum(1)
        rounded = quantizer.decode(quantizer.compute_codes(values))
        values[:, self.low] = values[:, self.high] - rounded[:, self.high]
        codes: np.ndarray[Any, np.dtype[np.uint8]] = quantizer.compute_codes(values)
        return codes


def fit_codes(sample: Floats, layout: Layout) -> Codes:
    """Choose directions and ranges by a sample of the rows [n, W]; what lies outside the ranges is cut."""
    axes = [_main_axes(sample[:, columns]) for columns in layout.columns]
    ends = np.cumsum([0, *(len(each) for each in axes)]).tolist()
    coordinates = tuple(slice(begin, end) for begin, end in pairwise(ends))
    count = len(axes)
    lift = np.zeros((-(-(ends[-1] + 2 * count) // LANES) * LANES, sample.shape[1]), np.float32)
    for rows, columns, each in zip(coordinates, layout.columns, axes, strict=True):
        lift[rows, columns] = each
    for begin in (ends[-1], ends[-1] + count):
        lift[begin : begin + count, layout.norms] = np.eye(count, dtype=np.float32)
    codes = Codes(lift, coordinates, np.zeros((2, len(lift)), np.float32))
    codes.ranges[:] = _ranges(codes, sample)
    return codes


def _main_axes(rows: Floats) -> Floats:
    """Orthonormal directions [r, d] that keep nearly all variance; the coordinates themselves where r is near d."""
    points = torch.from_numpy(np.ascontiguousarray(rows)).double()
    variances, axes = torch.linalg.eigh(points.T @ points)
    left_out = variances.clamp_min(0).cumsum(0)
    kept = int((left_out > (1 - KEPT) * left_out[-1]).sum())
    if kept > WORTH * rows.shape[1]:
        return np.eye(rows.shape[1], dtype=np.float32)
    main: Floats = axes[:, -kept:].T.float().contiguous().numpy()
    return main


def _ranges(codes: Codes, sample: Floats) -> Floats:
    """Smallest value and extent of each column, [2, C]: of coordinates seen, of norms that rounded coordinates have."""
    projected = codes.project(sample)
    least, most = projected.min(0), projected.max(0)
    extent = most - least
    for position, columns in enumerate(codes.coordinates):
        high, low = codes.high.start + position, codes.low.start + position
        error = float(np.linalg.norm(extent[columns])) / LEVELS
        largest = np.sqrt(np.square(projected[:, columns]).sum(1)).max()
        least[high], extent[high] = 0, (largest + error) ** 2
        step = extent[high] / LEVELS
        least[low], extent[low] = -step, 2 * step
    return np.stack([least, np.where(extent > 0, extent, 1)]).astype(np.float32)
