"""Which columns of a matrix are whose: the prototypes of M modalities, then their M squared norms."""

from dataclasses import dataclass
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class Layout:
    """Columns of the matrix [t_1 .. t_M, |t_1|^2 .. |t_M|^2]."""

    widths: tuple[int, ...]
    """d_m of each modality."""

    @property
    def columns(self) -> tuple[slice, ...]:
        """The columns of t_m."""
        return tuple(slice(begin, end) for begin, end in pairwise(accumulate(self.widths, initial=0)))

    @property
    def norms(self) -> slice:
        """The columns of the squared norms."""
        return slice(sum(self.widths), sum(self.widths) + len(self.widths))
