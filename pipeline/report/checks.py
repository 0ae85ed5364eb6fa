"""Transfer and single clips as blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import charts, tables
from . import words_checks as words
from .document import Block, Clip, Figure, Panel, Picture, Series
from .marks import about, mark, split_by
from .read import StudyResult
from .theme import method_series
from .wording import at_shot, number, shots, shown

Rows = Sequence[Mapping[str, Any]]


def transfer(result: StudyResult, name: str) -> list[Block]:
    """Trained on one data set, tested on another; a panel for each shot."""
    known = [row for row in result.rows if row["accuracy"] is not None]
    if not known:
        return []
    kinds = method_series({row["method"]: str(row.get("title") or shown(row["method"])) for row in known})
    bare = Series("untrained prototypes", "neutral", "cross")
    legend = [*kinds.values(), bare]
    panels, claims, body = [], [], []
    for shot, rows in split_by(known, "shot").items():
        marks = [mark(row, kinds[row["method"]].label, _pair(row)) for row in rows]
        marks += [mark(_untrained(row), bare.label, _pair(row)) for row in rows if row.get("untrained") is not None]
        names = list(dict.fromkeys(_pair(row) for row in rows))
        spec = charts.dots(marks, legend, names, "accuracy in %", domain=charts.span(marks, floor=0, ceiling=100))
        panels.append(Panel(shots(shot), about(spec, f"Accuracy on other data at {shots(shot)}.")))
        claims.append(at_shot(shot, words.say_transfer(rows)))
        for row in rows:
            cells = [tables.text(row["source"]), tables.text(row["target"]), tables.text(kinds[row["method"]].label)]
            free = _untrained(row) if row.get("untrained") is not None else None
            body.append([*cells, tables.count(shot), tables.accuracy(row), tables.accuracy(free)])
    header = ["trained on", "tested on", "method", "shot", "accuracy", "untrained"]
    table = tables.table(name, "Accuracy in % on the other data set, and without any training.", header, body)
    caption = "Trained on one data set, tested on another. Bars: 95 % interval over episodes."
    return [Block(tuple(claims), figure=Figure(name, tuple(panels), caption, tuple(legend)), tables=(table,))]


def _pair(row: Mapping[str, Any]) -> str:
    if row["source"] == row["target"]:
        return f"{row['target']} itself"
    return f"{row['source']} → {row['target']}"


def _untrained(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"accuracy": row["untrained"], "ci95": row.get("untrained_ci95")}


def examples(result: StudyResult, name: str) -> list[Block]:
    """Clips that one modality got right alone, a block for each modality."""
    claims = tuple(words.say_examples(result.rows))
    blocks = [Block(claims)]
    numbered = [{**row, "name": f"{name}-{place}"} for place, row in enumerate(result.rows, 1)]
    for modality, rows in split_by(numbered, "right").items():
        clips = tuple(_clip(row, result) for row in rows)
        blocks.append(Block((), f"Only {shown(modality)} is right", clips=clips))
    return blocks


def _clip(row: Mapping[str, Any], result: StudyResult) -> Clip:
    pictures = []
    for key, what in (("frame", "a frame of"), ("flow", "optical flow of")):
        file = row.get(key)
        # A plain name only: a result must not make the report copy any other file of this machine.
        if isinstance(file, str) and file and "/" not in file and "\\" not in file and (result.folder / file).is_file():
            label = f"{what} {row['clip_id']}"
            pictures.append(Picture(f"{row['name']}-{key}", key, label, result.folder / file))
    share = (
        [("right alone", f"in {row['alone']:,} of {row['episodes']:,} episodes")]
        if row.get("alone") and row.get("episodes")
        else []
    )
    energy = {name: value for name, value in (row.get("free_energy") or {}).items() if value is not None}
    listed = ", ".join(f"{shown(name)} {number(value, 2)}" for name, value in energy.items())
    return Clip(
        row["clip_id"],
        row["label"],
        row["right"],
        tuple((name, str(value)) for name, value in (row.get("predictions") or {}).items() if value is not None),
        tuple((name, float(weight)) for name, weight in words.weights_of(row).items()),
        (*share, *([("free energy", listed)] if listed else [])),
        tuple(pictures),
    )
