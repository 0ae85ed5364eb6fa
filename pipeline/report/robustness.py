"""The robustness study as blocks: one for each harm, and where AMI then puts its weight."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import charts, tables
from . import words_checks as words
from .document import Block, Figure, Panel, Series, Table
from .marks import about, ends_of, mark, renamed, split_by
from .read import StudyResult
from .theme import view_series
from .wording import number, sentence, shots, shown

Rows = Sequence[Mapping[str, Any]]


def robustness(result: StudyResult, name: str) -> list[Block]:
    """A block for each harm; then the weights."""
    rows = [row for row in result.rows if row["accuracy"] is not None]
    kinds = view_series(list(dict.fromkeys(row["fusion"] for row in rows)))
    meaning = result.extra.get("levels") or {}
    blocks = []
    for harm, part in split_by(rows, "harm").items():
        applied = part[-1].get("applied_to") or ""
        told = (meaning.get(applied) or {}).get(harm) or ""
        make = _missing if harm == "missing" else _harm
        blocks.append(make(part, kinds, f"{name}-{harm}", told, applied))
    shifted = _shift(rows, f"{name}-weights")
    return blocks + ([shifted] if shifted else [])


def _harm(rows: Rows, kinds: Mapping[str, Series], name: str, told: str, applied: str) -> Block:
    harm, shot = rows[0]["harm"], rows[0]["shot"]
    legend = tuple(kinds[f] for f in kinds if any(row["fusion"] == f for row in rows))
    marks = [
        {
            **mark(row, kinds[row["fusion"]].label),
            "x": row["level"],
            "on": row["modality"],
            "at": f"level {row['level']:g}",
        }
        for row in rows
    ]
    domain, levels = charts.span(marks, floor=0, ceiling=100), sorted({row["level"] for row in rows})
    panels = []
    for modality, part in split_by(marks, "on").items():
        spec = charts.lines(part, legend, "level", "accuracy in %", ticks=levels, domain=domain)
        title = _harmed(modality)
        panels.append(Panel(title, about(spec, f"Accuracy over the level of {harm}, {title}.")))
    caption = f"Accuracy over the level of {harm}, applied to the {applied or 'queries'}, {shots(shot)}. "
    caption += "Bands: 95 % interval over episodes."
    caption += f" {sentence(f'Level: {told}')}" if told else ""
    heading = harm.capitalize()
    return Block(
        tuple(words.say_harm(rows)),
        heading,
        Figure(name, tuple(panels), caption, legend),
        (_harm_table(rows, kinds, name),),
    )


def _missing(rows: Rows, kinds: Mapping[str, Series], name: str, told: str, applied: str) -> Block:
    shot = rows[0]["shot"]
    legend = [Series("clean", "neutral", "circle"), Series("missing", "fused", "diamond")]
    panels = []
    for modality, part in split_by(rows, "modality").items():
        marks = [mark(row, legend[row["level"] > 0].label, kinds[row["fusion"]].label) for row in part]
        names = [one.label for key, one in kinds.items() if any(row["fusion"] == key for row in part)]
        spec = charts.dots(marks, legend, names, "accuracy in %", domain=charts.span(marks, floor=0, ceiling=100))
        panels.append(Panel(f"without {shown(modality)}", about(spec, f"Accuracy where {shown(modality)} is missing.")))
    caption = (
        f"Accuracy with everything, and where a modality is missing, {shots(shot)}. Bars: 95 % interval over episodes."
    )
    caption += f" {sentence(told.removeprefix('1: '))}" if told else ""
    figure = Figure(name, tuple(panels), caption, tuple(legend))
    return Block(tuple(words.say_harm(rows)), "A missing modality", figure, (_harm_table(rows, kinds, name),))


def _harm_table(rows: Rows, kinds: Mapping[str, Series], name: str) -> Table:
    views = [key for key in kinds if any(row["fusion"] == key for row in rows)]
    cells = {(row["modality"], row["level"], row["fusion"]): row for row in rows}
    modalities, levels = list(dict.fromkeys(row["modality"] for row in rows)), {row["level"] for row in rows}
    body = []
    for modality, level in [
        (m, at) for m in modalities for at in sorted(levels) if any((m, at, v) in cells for v in views)
    ]:
        here = [cells.get((modality, level, view)) for view in views]
        body.append([tables.text(shown(modality)), tables.figure(level), *map(tables.accuracy, here)])
    header = ["harmed", "level", *(kinds[view].label for view in views)]
    return tables.table(name, f"Accuracy in % with its 95 % interval, {rows[0]['harm']}.", header, body)


def _shift(rows: Rows, name: str) -> Block | None:
    """AMI's mean weight of the first modality over the level of each harm, a line for what is harmed."""
    first = next((key.removeprefix("weight_") for row in rows for key in row if key.startswith("weight_")), None)
    key = f"weight_{first}"
    known = [row for row in rows if row["fusion"] == "ami" and row.get(key) is not None and row["harm"] != "missing"]
    if first is None or not known:
        return None
    kinds = {"both": Series("both harmed", "violet", "triangle-down", (4, 2))}
    harmed = [row["modality"] for row in known if row["modality"] != "both"]
    kinds |= {k: renamed(one, f"{one.label} harmed") for k, one in view_series(list(dict.fromkeys(harmed))).items()}
    marks = [
        {
            **{"series": kinds[row["modality"]].label, "x": row["level"], "value": row[key], **ends_of(row[key], None)},
            **{"harm": row["harm"], "at": f"level {row['level']:g}", "said": number(row[key], 3)},
        }
        for row in known
    ]
    domain = charts.span(marks)
    axis = f"weight of {shown(first)}"
    panels = []
    for harm, part in split_by(marks, "harm").items():
        levels = sorted({one["x"] for one in part})
        spec = charts.lines(part, list(kinds.values()), "level", axis, ticks=levels, domain=domain)
        panels.append(Panel(harm, about(spec, f"AMI's mean weight of {shown(first)} over the level of {harm}.")))
    caption = f"AMI's mean weight of {shown(first)} over the level of each harm, by which modality is harmed."
    said = _say_moves(known, key, first)
    return Block((said,), "Where AMI puts its weight", Figure(name, tuple(panels), caption, tuple(kinds.values())))


def _say_moves(rows: Rows, key: str, first: str) -> str:
    """In how many harms of one modality alone its weight falls."""
    fell = []
    for (_, modality), part in _pairs(rows).items():
        ends = [part[0][key], part[-1][key]]
        before, after = (round(end, 3) for end in ends)
        fell.append(after < before if modality == first else after > before)
    if not fell:
        return f"Only harms of all modalities at once were measured; the figure shows the weight of {shown(first)}."
    text = f"From clean queries to the highest level, AMI takes weight from the one harmed modality in {sum(fell)} of "
    return f"{text}{len(fell)} cases."


def _pairs(rows: Rows) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: float(row["level"])):
        if row["modality"] != "both":
            found.setdefault((row["harm"], row["modality"]), []).append(row)
    return found


def _harmed(modality: str) -> str:
    return "both harmed" if modality == "both" else f"{shown(modality)} harmed"
