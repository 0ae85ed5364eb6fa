"""The robustness study as blocks: one for each harm, and where AMI then puts its weight."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import charts, tables
from . import words_checks as words
from .document import Block, Figure, Panel, Series, Table
from .marks import about, ends_of, grouped, mark, renamed, split_by
from .read import StudyResult
from .theme import view_series
from .wording import number, sentence, shots, shown, slug

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
        blocks.append(make(part, kinds, f"{name}-{slug(harm)}", told, applied))
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
    return Block(tuple(words.say_harm(rows)), "A missing modality", figure, (_missing_table(rows, kinds, name),))


def _missing_table(rows: Rows, kinds: Mapping[str, Series], name: str) -> Table:
    """Fusions by what is missing; what is clean is the same whatever will be missing."""
    heads = {"": "clean"} | {row["modality"]: f"without {shown(row['modality'])}" for row in rows}
    cells = {(row["fusion"], row["modality"] if row["level"] > 0 else ""): row for row in rows}
    lines = {key: one.label for key, one in kinds.items() if any(row["fusion"] == key for row in rows)}
    caption = "Accuracy in % with its 95 % interval. Bold: highest of its column."
    return tables.matrix(name, caption, "fusion", lines, heads, cells)


def _harm_table(rows: Rows, kinds: Mapping[str, Series], name: str) -> Table:
    views = [key for key in kinds if any(row["fusion"] == key for row in rows)]
    cells = {(row["modality"], row["level"], row["fusion"]): row for row in rows}
    modalities, levels = list(dict.fromkeys(row["modality"] for row in rows)), {row["level"] for row in rows}
    body = []
    for modality, level in [
        (m, at) for m in modalities for at in sorted(levels) if any((m, at, v) in cells for v in views)
    ]:
        here = [cells.get((modality, level, view)) for view in views]
        body.append([tables.text(shown(modality)), tables.level(level), *map(tables.accuracy, here)])
    header = ["harmed", "level", *(kinds[view].label for view in views)]
    return tables.table(name, f"Accuracy in % with its 95 % interval, {rows[0]['harm']}.", header, body)


def _shift(rows: Rows, name: str) -> Block | None:
    """AMI's mean weights: a line of the first modality's for what is harmed, and a table of all."""
    known = [row for row in rows if row["fusion"] == "ami"]
    claims = words.say_shift(known)
    if not claims:
        return None
    modalities = words.weighed(known)
    key = f"weight_{modalities[0]}"
    drawn = [row for row in known if row["harm"] != "missing" and row.get(key) is not None]
    figure = _shift_figure(drawn, key, shown(modalities[0]), name) if drawn else None
    body = [
        [
            *map(tables.text, (row["harm"], shown(row["modality"]))),
            tables.level(row["level"]),
            *(tables.figure(row.get(f"weight_{modality}"), 3) for modality in modalities),
        ]
        for part in grouped(known, ("harm", "modality")).values()
        for row in sorted(part, key=lambda row: float(row["level"]))
    ]
    header = ["harm", "harmed", "level", *(f"weight of {shown(modality)}" for modality in modalities)]
    table = tables.table(name, "AMI's mean weights by harm and level.", header, body, folds=True)
    return Block(tuple(claims), "Where AMI puts its weight", figure, (table,))


def _shift_figure(rows: Rows, key: str, first: str, name: str) -> Figure:
    kinds = {"both": Series("both harmed", "violet", "triangle-down", (4, 2))}
    harmed = [row["modality"] for row in rows if row["modality"] != "both"]
    kinds |= {k: renamed(one, f"{one.label} harmed") for k, one in view_series(list(dict.fromkeys(harmed))).items()}
    marks = [
        {
            **{"series": kinds[row["modality"]].label, "x": row["level"], "value": row[key], **ends_of(row[key], None)},
            **{"harm": row["harm"], "at": f"level {row['level']:g}", "said": number(row[key], 3)},
        }
        for row in rows
    ]
    domain = charts.span(marks)
    panels = []
    for harm, part in split_by(marks, "harm").items():
        levels = sorted({one["x"] for one in part})
        spec = charts.lines(part, list(kinds.values()), "level", f"weight of {first}", ticks=levels, domain=domain)
        panels.append(Panel(harm, about(spec, f"AMI's mean weight of {first} over the level of {harm}.")))
    caption = f"AMI's mean weight of {first} over the level of each harm, by which modality is harmed. "
    caption += "The table has those under a missing modality too."
    return Figure(name, tuple(panels), caption, tuple(kinds.values()))


def _harmed(modality: str) -> str:
    return "both harmed" if modality == "both" else f"{shown(modality)} harmed"
