"""Which methods a table compares: its cells, and which of them need others first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..cache.errors import UserError, pick
from ..meta.heads import HEADS
from ..meta.methods import METHODS, parse_method

FUSED = ("ec", "ea", "lf", "ami")
"""Arrangements that need two modalities or more; the others are the streams, each by itself."""

OWN = "own"
"""Column of methods that put modalities together in a way of their own."""

WHOLE = {"amefu-net": "AMeFu-Net", "amfar": "AMFAR", "amfir": "AMFIR"}
"""Methods that are more than a head in an arrangement, and how tables call them."""

_SUFFIX = {"ec": "-ec", "ea": "-ea", "lf": "-lf", "ami": "+ami"}


@dataclass(frozen=True)
class Cell:
    """One method, trained with one seed for one shot: a cell of the table, or a part of one if there are more seeds."""

    method: str
    """Name for `parse_method`."""
    row: str
    """A head that has cells in several columns, else the method."""
    arrangement: str
    """Column: a stream's name, one of `FUSED`, or `OWN`."""
    streams: tuple[str, ...]
    """What it sees."""
    shot: int
    """Support clips of each class, in training and evaluation."""
    seed: int = 0
    """Of the training."""
    parts: tuple["Cell", ...] = ()
    """Cells, one a stream, whose trained heads this one fuses; without them it has a training of its own."""

    @property
    def label(self) -> str:
        """Names it for people, and for the file system."""
        stream = "" if self.arrangement in (*FUSED, OWN) else f"-{self.arrangement}"
        return f"{self.method.replace(':', '_')}{stream}-{self.shot}shot-seed{self.seed}"


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    methods: tuple[str, ...] = ("all",)
    """Heads, methods, or `all`."""
    arrangements: tuple[str, ...] = ()
    """Columns for heads; empty: all that the streams allow."""
    shots: tuple[int, ...] = (1, 5)
    seeds: tuple[int, ...] = (0,)


def plan_cells(wish: Wish, streams: Sequence[str], *, tokens: bool) -> tuple[list[Cell], list[str]]:
    """The cells of a table, each after those that it needs.

    Args:
        wish: What is asked for.
        streams: Modalities at hand.
        tokens: Whether the features have spatial tokens.

    Returns:
        Cells, and what the user should know about those that are not among them.

    Raises:
        UserError: If a method, arrangement or number is unknown or makes no sense, or nothing is left.
    """
    _check_counts(wish)
    arrangements, notes = _arrangements(wish.arrangements, streams)
    cells: dict[Cell, None] = {}
    left_out: list[str] = []
    for seed in wish.seeds:
        for shot in wish.shots:
            for name in _names(wish.methods, tokens):
                made = _cells_of(name, arrangements, tuple(streams), shot, seed)
                if not made:
                    left_out.append(name)
                for cell in made:
                    cells.update(dict.fromkeys((*cell.parts, cell)))
    if left_out:
        notes.append(f"not compared, since they need two modalities: {', '.join(dict.fromkeys(left_out))}")
    if not cells:
        raise UserError("; ".join(("nothing to compare", *notes, "add a head to --methods or a stream to the cache")))
    return list(cells), notes


def row_title(row: str) -> str:
    """How tables call a row; what was rebuilt without the original says so."""
    if row in HEADS and row not in WHOLE:
        entry = HEADS[row]
        return (entry.title or row) + (" (re-implementation)" if entry.reconstruction else "")
    name, bracket, head = row.partition("[")
    if bracket and name in WHOLE:
        return f"{WHOLE[name]} [{row_title(head[:-1])}]"
    return WHOLE.get(row, row)


def all_methods(tokens: bool) -> list[str]:
    """Every head, the variant without spatial tokens where there are none, and the methods of their own."""
    heads = [name for name in HEADS if name not in (*METHODS, "temporal")]
    variant = {name: f"{name}[pooled]" in HEADS for name in heads}
    if tokens:
        heads = [name for name in heads if not name.endswith("[pooled]")]
    else:
        heads = [name for name in heads if not variant[name]]
    return [*heads, *WHOLE]


def _names(methods: Sequence[str], tokens: bool) -> list[str]:
    """The methods asked for, each once."""
    names: list[str] = []
    for name in methods:
        names += all_methods(tokens) if name == "all" else [name]
    for name in names:
        if not tokens and f"{name}[pooled]" in HEADS:
            raise UserError(
                f"head {name!r} needs spatial tokens; the cached features have none; extract with --tokens, or use "
                f"'{name}[pooled]'"
            )
        if name not in HEADS:
            parse_method(name)  # refuses unknown names
    return list(dict.fromkeys(names))


def _arrangements(wanted: Sequence[str], streams: Sequence[str]) -> tuple[list[str], list[str]]:
    """Columns that the streams allow, and what is said about the others."""
    for name in wanted:
        pick(dict.fromkeys(("rgb", "flow", *streams, *FUSED)), name, "arrangement")
    possible = [*streams, *(FUSED if len(streams) > 1 else ())]
    asked = list(dict.fromkeys(wanted)) or ["rgb", "flow", *FUSED]
    lacking = [name for name in asked if name not in possible]
    notes = [f"left out: {', '.join(lacking)}; the cache has {' and '.join(streams)} only"] if lacking else []
    return [name for name in possible if not wanted or name in asked], notes


def _cells_of(name: str, arrangements: Sequence[str], streams: tuple[str, ...], shot: int, seed: int) -> list[Cell]:
    """A head's cells in all arrangements, or the one of a method."""
    if name in HEADS and name not in METHODS:
        return [_head_cell(name, arrangement, streams, shot, seed) for arrangement in arrangements]
    if len(streams) < 2:
        return []
    for suffix_of, suffix in _SUFFIX.items():
        head = name.removesuffix(suffix)
        if head != name and head in HEADS:
            return [_head_cell(head, suffix_of, streams, shot, seed)]
    method = parse_method(name)
    cell = Cell(name, name, OWN, streams, shot, seed)
    if method.early:
        return [cell]
    if method.calibrated:
        return [replace(cell, arrangement="ami")]
    return [replace(cell, arrangement="lf", parts=_singles(method.head, streams, shot, seed))]


def _head_cell(head: str, arrangement: str, streams: tuple[str, ...], shot: int, seed: int) -> Cell:
    if arrangement not in FUSED:
        return Cell(head, head, arrangement, (arrangement,), shot, seed)
    # Heads that are fused late are those trained by themselves: a second training would be the same one.
    parts = _singles(head, streams, shot, seed) if arrangement == "lf" else ()
    return Cell(head + _SUFFIX[arrangement], head, arrangement, streams, shot, seed, parts)


def _singles(head: str, streams: Sequence[str], shot: int, seed: int) -> tuple[Cell, ...]:
    return tuple(Cell(head, head, stream, (stream,), shot, seed) for stream in streams)


def _check_counts(wish: Wish) -> None:
    checks: dict[str, tuple[Sequence[int], Callable[[int], bool]]] = {
        "shot": (wish.shots, lambda value: value >= 1),
        "seeds": (wish.seeds, lambda value: value >= 0),
    }
    for name, (values, fits) in checks.items():
        if not values:
            raise UserError(f"no number in --{name}; nothing to compare; give one, such as --{name} 1")
        for value in values:
            if not fits(value):
                raise UserError(f"{value} is no {name}; --{name}; give 1,5 or the like")
