"""The papers' figures as blocks of claims, figures and tables."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from . import charts, tables, words
from .document import Block, Figure, Panel, Series, Table
from .marks import about, grouped, mark, split_by
from .paper_tables import INTERVAL, published_block
from .read import StudyResult
from .theme import method_series, view_series
from .wording import at_shot, measure, number, shots

Rows = Sequence[Mapping[str, Any]]

PAPERS_FREE_ENERGY = (-4.0, f"papers: settles near {number(-4.0)}")
"""Figure 2 of AMFIR, on SSv2 and Kinetics."""
BAND = "Bands: 95 % interval over episodes."


def figure2(result: StudyResult, name: str) -> list[Block]:
    """Free energy over the training, a panel for each method and shot."""
    rows = [row for row in result.rows if row["free_energy"] is not None]
    if not rows:
        return []
    kinds = view_series(list(dict.fromkeys(row["modality"] for row in rows)))
    marks = [{**_energy_mark(row, kinds), "key": (row["method"], row["shot"])} for row in rows]
    domain = charts.span(marks, PAPERS_FREE_ENERGY[0])
    panels, claims = [], []
    keys = list(dict.fromkeys(mark["key"] for mark in marks))
    for key in keys:
        title = f"{str(key[0]).upper()}, {shots(key[1])}"
        part = [{k: v for k, v in mark.items() if k != "key"} for mark in marks if mark["key"] == key]
        args = ("training episodes", "free energy")
        spec = charts.lines(
            part, list(kinds.values()), *args, domain=domain, rule=PAPERS_FREE_ENERGY, points=len(part) < 80
        )
        panels.append(Panel(title, about(spec, f"Free energy of each modality over the training of {title}.")))
        said = words.say_figure2([row for row in rows if (row["method"], row["shot"]) == key])
        claims += [f"{title}: {' '.join(said)}"] if len(keys) > 1 else said
    caption = f"Mean free energy of each modality over the training; lower is more reliable. {_averaged(rows)} "
    caption += "Dashed, and not measured here: where it settles in AMFIR's Figure 2, on SSv2 and Kinetics, near "
    caption += f"{number(PAPERS_FREE_ENERGY[0])}."
    figure = Figure(name, tuple(panels), caption, tuple(kinds.values()))
    return [Block(tuple(claims), figure=figure, tables=(_energy_table(rows, kinds, name),))]


def _averaged(rows: Rows) -> str:
    """What a point of the lines is a mean over: the last one may have been left with fewer episodes."""
    fewer = set()
    for line in grouped(rows, ("method", "shot", "modality")).values():
        places = sorted({row["episode"] for row in line})
        steps = [later - earlier for earlier, later in pairwise([0, *places])]
        if steps[-1] < max(steps):
            fewer.add(steps[-1])
    text = "Each point averages the training episodes since the one before"
    return (
        f"{text}, the last one only {' or '.join(f'{few:g}' for few in sorted(fewer))} of them."
        if fewer
        else f"{text}."
    )


def _energy_table(rows: Rows, kinds: Mapping[str, Series], name: str) -> Table:
    body = []
    for (method, shot, episode), part in grouped(rows, ("method", "shot", "episode")).items():
        found = {row["modality"]: row["free_energy"] for row in part}
        cells = [tables.text(str(method).upper()), tables.count(shot), tables.count(episode)]
        body.append([*cells, *(tables.figure(found.get(key)) for key in kinds)])
    header = ["method", "shot", "training episodes", *(one.label for one in kinds.values())]
    return tables.table(name, "Free energy of each modality over the training.", header, body, folds=True)


def figure3(result: StudyResult, name: str) -> list[Block]:
    """Accuracy over the number of support clips."""
    blocks = _over(result.rows, name, "shot", "support clips of each class (K)", ("shot", "shots"), "Accuracy over K")
    return blocks + published_block(result, name)


def figure5(result: StudyResult, name: str) -> list[Block]:
    """Accuracy over the number of classes, and chance."""
    blocks = _over(result.rows, name, "way", "classes of an episode (N)", ("way", "ways"), "Accuracy over N")
    return blocks + published_block(result, name)


def _over(rows: Rows, name: str, key: str, axis: str, unit: tuple[str, str], heading: str) -> list[Block]:
    known = [row for row in rows if row["accuracy"] is not None]
    if not known:
        return []
    kinds = method_series({row["method"]: row["title"] for row in known})
    places = sorted({row[key] for row in known})
    marks = [{**mark(row, kinds[row["method"]].label), "x": row[key], "at": f"{row[key]:g} {unit[1]}"} for row in known]
    legend = list(kinds.values())
    claims = words.say_over(known, key, unit)
    if key == "way":
        legend.append(Series("chance", "neutral", "cross", (2, 3)))
        marks += [_chance_mark(place) for place in places]
        claims += words.say_chance(known)
    domain = charts.span(marks, floor=0, ceiling=100)
    spec = charts.lines(marks, legend, axis, "accuracy in %", ticks=_ticks(places), domain=domain)
    other = "way" if key == "shot" else "shot"
    fixed = sorted({row[other] for row in known})
    text = f"{heading}, {'-, '.join(f'{value:g}' for value in fixed)}-{other}. {BAND}"
    figure = Figure(name, (Panel("", about(spec, text)),), text, tuple(legend))
    cells = {(row["method"], row[key]): row for row in known}
    lines = {row["method"]: row["title"] for row in known}
    if key == "way":
        cells |= {("chance", way): {"accuracy": 100 / way, "ci95": None} for way in places}
        lines["chance"] = "chance"
    heads = {place: f"{place:g} {unit[0] if place == 1 else unit[1]}" for place in places}
    table = tables.matrix(
        name, f"{heading}: in %, with its 95 % interval. Bold: highest of its column.", "method", lines, heads, cells
    )
    return [Block(tuple(claims), figure=figure, tables=(table,))]


def figure4(result: StudyResult, name: str) -> list[Block]:
    """Strategies of distillation, a panel for each shot."""
    known = [row for row in result.rows if row["accuracy"] is not None]
    if not known:
        return []
    labels = {row["strategy"]: row["title"] for row in known}
    legend = [Series("accuracy", "fused", "diamond")]
    panels, claims, by_shot = [], [], split_by(known, "shot")
    for shot, rows in by_shot.items():
        marks = [mark(row, "accuracy", row["title"]) for row in rows]
        spec = charts.dots(
            marks, legend, list(labels.values()), "accuracy in %", domain=charts.span(marks, floor=0, ceiling=100)
        )
        panels.append(Panel(shots(shot), about(spec, f"Accuracy of each strategy of distillation at {shots(shot)}.")))
        claims.append(at_shot(shot, words.say_figure4(rows)))
    figure = Figure(
        name, tuple(panels), f"Accuracy by strategy of distillation; each panel has a scale of its own. {INTERVAL}"
    )
    cells = {(row["strategy"], row["shot"]): row for row in known}
    heads = {shot: shots(shot) for shot in by_shot}
    table = tables.matrix(
        name, "Accuracy in % with its 95 % interval. Bold: highest of its column.", "strategy", labels, heads, cells
    )
    return [Block(tuple(claims), figure=figure, tables=(table,))]


def _energy_mark(row: Mapping[str, Any], kinds: Mapping[str, Series]) -> dict[str, Any]:
    value = row["free_energy"]
    at = f"{row['episode']:,} episodes"
    said = number(value, 3)
    return {
        "series": kinds[row["modality"]].label,
        "x": row["episode"],
        "value": value,
        "low": value,
        "high": value,
        "at": at,
        "said": said,
    }


def _chance_mark(way: float) -> dict[str, Any]:
    value = 100 / way
    return {
        "series": "chance",
        "x": way,
        "value": value,
        "low": value,
        "high": value,
        "at": f"{way:g} ways",
        "said": measure(value, None),
    }


def _ticks(places: Sequence[float]) -> list[float]:
    """The places themselves where they are few; else Vega chooses."""
    return list(places) if len(places) <= 10 else []
