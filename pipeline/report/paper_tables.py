"""The papers' tables as blocks of claims, figures and tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import charts, tables, words
from .document import Block, Figure, Panel, Series
from .marks import about, ends_of, grouped, mark, split_by
from .read import StudyResult
from .theme import ARRANGEMENTS, arrangement_series
from .wording import number, points, shots, slug

Rows = Sequence[Mapping[str, Any]]

OWN = "own"
"""Arrangement of methods that have none to choose."""
WAY = 5
"""Of published numbers that say none."""
INTERVAL = "Bars: 95 % interval over episodes."


def table1(result: StudyResult, name: str) -> list[Block]:
    """A dot plot and a table for each shot; what the papers report below them."""
    rows = _mean_over_seeds(result.rows)
    arrangements = {row["arrangement"]: None for row in rows}
    kinds = arrangement_series(
        [a for a in ARRANGEMENTS if a in arrangements] + [a for a in arrangements if a not in ARRANGEMENTS]
    )
    blocks = [_table1_block(part, shot, kinds, name) for shot, part in split_by(rows, "shot").items()]
    return blocks + published_block(result, name)


def _table1_block(rows: Rows, shot: int, kinds: Mapping[str, Series], name: str) -> Block:
    titles = _best_first(rows)
    marks = [mark(row, kinds[row["arrangement"]].label, row["title"]) for row in rows if row["accuracy"] is not None]
    legend = tuple(kinds[a] for a in kinds if any(row["arrangement"] == a for row in rows))
    way = rows[0]["way"]
    where = f"{way:g}-way {shot:g}-shot"
    figure = None
    if marks:
        spec = charts.dots(
            marks, legend, list(titles.values()), "accuracy in %", domain=charts.span(marks, floor=0, ceiling=100)
        )
        text = f"Accuracy of each method in each arrangement, {where}. {INTERVAL} Chance is {number(100 / way)} %."
        figure = Figure(f"{name}-{shot:g}shot", (Panel("", about(spec, text)),), text, legend)
    cells = {(row["method"], row["arrangement"]): row for row in rows}
    caption = f"Accuracy in % with its 95 % interval, {where}. Bold: highest of its column."
    table = tables.matrix(f"{name}-{shot:g}shot", caption, "method", titles, {a: kinds[a].label for a in kinds}, cells)
    return Block(tuple(words.say_table1(rows)), where, figure, (table,))


def published_block(result: StudyResult, name: str) -> list[Block]:
    """What the papers report for the same data set, episodes and backbones, beside the entries here; or nothing."""
    published = [row for row in result.extra.get("published") or [] if row.get("accuracy") is not None]
    if not published:
        return []
    ours = {_entry_of(row): row for row in result.rows}
    titles = {row.get("method"): row.get("title") for row in result.rows}
    body = [
        [
            tables.text(row.get("title") or titles.get(row.get("method")) or row.get("method")),
            tables.text(_column(row)),
            tables.count(row.get("way")),
            tables.count(row.get("shot")),
            tables.figure(row["accuracy"], 1),
            tables.accuracy(ours.get(_entry_of(row))),
            tables.text(row.get("source")),
        ]
        for row in published
    ]
    header = ["method", "arrangement", "way", "shot", "published", "here", "source"]
    used = [place for place in range(len(header)) if any(cells[place].text for cells in body)]
    body, header = [[cells[place] for place in used] for cells in body], [header[place] for place in used]
    caption = "Accuracy in % as the papers report it (theirs, not measured here), and the same entry here."
    count = f"{len(body)} number{'' if len(body) == 1 else 's'}"
    told = f"The papers report {count} for this data set and these backbones."
    return [Block((told,), "Published numbers", tables=(tables.table(f"{name}-published", caption, header, body),))]


def _entry_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a measurement and a published number have in common."""
    return row.get("method"), row.get("arrangement") or OWN, row.get("shot"), row.get("way") or WAY


def _column(row: Mapping[str, Any]) -> str | None:
    name = row.get("arrangement")
    return ARRANGEMENTS[name].label if name in ARRANGEMENTS else name


def table2(result: StudyResult, name: str) -> list[Block]:
    """For each base and shot, what leaving a part out changes."""
    blocks: list[Block] = []
    for base, of_base in split_by(result.rows, "base").items():
        for shot, rows in split_by(of_base, "shot").items():
            blocks.append(_ablation_block(rows, str(base), shot, name))
    return blocks + published_block(result, name)


def _ablation_block(rows: Rows, base: str, shot: int, name: str) -> Block:
    label = f"{name}-{slug(base)}-{shot:g}shot"
    marks = []
    for row in rows:
        if row["method"] != base and row["difference"] is not None:
            ends = ends_of(row["difference"], row["difference_ci95"])
            said = points(row["difference"], row["difference_ci95"])
            marks.append(
                {"name": row["title"], "series": "difference", "value": row["difference"], **ends, "said": said}
            )
    figure = None
    if marks:
        marks.sort(key=lambda mark: mark["value"])
        legend = [Series("difference", "violet" if base == "amfar" else "fused", "diamond")]
        names = [mark["name"] for mark in marks]
        axis = "difference to the full method in points"
        spec = charts.dots(marks, legend, names, axis, domain=charts.span(marks, 0.0), rule=0.0)
        text = f"{base.upper()} with a part left out or changed, {shots(shot)}: differences to the full method, paired "
        text += f"on the same episodes. {INTERVAL}"
        figure = Figure(label, (Panel("", about(spec, text)),), text)
    body = [
        [
            tables.text(row["title"]),
            tables.accuracy(row),
            tables.difference(row["difference"], row["difference_ci95"]) if row["method"] != base else tables.NOTHING,
            tables.p_value(row.get("p")) if row["method"] != base else tables.NOTHING,
        ]
        for row in rows
    ]
    caption = f"Ablation of {base.upper()}, {shots(shot)}: accuracy in %, difference to the full method in points."
    table = tables.table(label, caption, ["variant", "accuracy", "difference", "p"], body)
    return Block(tuple(words.say_table2(rows)), f"{base.upper()}, {shots(shot)}", figure, (table,))


def _mean_over_seeds(rows: Rows) -> list[Mapping[str, Any]]:
    """One row for each entry. The mean's interval is at most the mean of the intervals, however they are correlated."""
    found: list[Mapping[str, Any]] = []
    for part in grouped(rows, ("method", "arrangement", "way", "shot")).values():
        known = [row for row in part if row["accuracy"] is not None]
        widths = [row["ci95"] for row in known if row["ci95"] is not None]
        mean = sum(row["accuracy"] for row in known) / len(known) if known else None
        width = sum(widths) / len(widths) if known and len(widths) == len(known) else None
        found.append({**part[0], "accuracy": mean, "ci95": width})
    return found


def _best_first(rows: Rows) -> dict[str, str]:
    """Methods and their titles, by their highest accuracy."""
    top: dict[str, float] = {}
    for row in rows:
        top[row["method"]] = max(top.get(row["method"], -1.0), -1.0 if row["accuracy"] is None else row["accuracy"])
    titles = {row["method"]: row["title"] for row in rows}
    return {method: titles[method] for method in sorted(top, key=lambda name: -top[name])}
