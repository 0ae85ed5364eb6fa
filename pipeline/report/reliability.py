"""The reliability study as blocks: which modality to trust, weights against gains, calibration."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import charts, tables
from . import words_checks as words
from .document import Block, Cell, Figure, Panel, Series, Table
from .marks import about, ends_of, renamed, split_by
from .read import StudyResult
from .theme import series_in_order, view_series
from .wording import at_shot, measure, number, shots, shown
from .words_checks import ALWAYS

Rows = Sequence[Mapping[str, Any]]

_DIAGRAM = (
    "Reliability diagrams: accuracy of the queries whose confidence lies in a bin, over their mean confidence. On the "
    "dotted diagonal confidence is honest. Grey: share of the queries in each bin, {temperatures}."
)


def reliability(result: StudyResult, name: str) -> list[Block]:
    """Selection, weights against gains, calibration."""
    blocks = [_selection(result.rows, f"{name}-selection")] if result.rows else []
    weights = [row for row in result.extra.get("weights") or [] if row.get("gain") is not None]
    blocks += [_weights(weights, f"{name}-weights")] if weights else []
    calibrated = split_by(result.extra.get("calibration") or [], "shot")
    return blocks + [_calibration(rows, shot, f"{name}-calibration-{shot}shot") for shot, rows in calibrated.items()]


def _selection(rows: Rows, name: str) -> Block:
    constants = [row["criterion"] for row in rows if row["criterion"].startswith(ALWAYS)]
    modalities = list(dict.fromkeys(criterion.removeprefix(ALWAYS) for criterion in constants))
    kinds = {key: renamed(one, f"always {one.label}") for key, one in view_series(modalities).items()}
    panels, claims = [], []
    for shot, part in split_by(rows, "shot").items():
        known = sorted((r for r in part if r["selection_accuracy"] is not None), key=lambda r: -r["selection_accuracy"])
        bars = [_share(row, row["criterion"]) for row in known if not row["criterion"].startswith(ALWAYS)]
        rules = [
            {**_share(row, ""), "series": kinds[row["criterion"].removeprefix(ALWAYS)].label}
            for row in known
            if row["criterion"].startswith(ALWAYS)
        ]
        if bars:
            names = [bar["name"] for bar in bars]
            spec = charts.bars(bars, names, rules, list(kinds.values()), "right modality picked in %")
            panels.append(
                Panel(shots(shot), about(spec, f"How often each criterion picks the right modality, {shots(shot)}."))
            )
        claims.append(at_shot(shot, words.say_selection(part)))
    caption = "Queries that exactly one modality gets right: how often each criterion picks that one. "
    caption += "Lines: always taking one modality."
    figure = Figure(name, tuple(panels), caption, tuple(kinds.values())) if panels else None
    return Block(tuple(claims), "Which modality to trust", figure, (_selection_table(rows, name),))


def _selection_table(rows: Rows, name: str) -> Table:
    """Criteria by shots: picks and AUROC, or with one modality whether the criterion tells where it is right."""
    found = {(row["criterion"], row["shot"]): row for row in rows}
    shown_shots = list(dict.fromkeys(row["shot"] for row in rows))
    alone = words.only_modality(rows)
    caption = "Right modality picked, in %, and AUROC."
    columns = [("selection_accuracy", "picked", 2), ("auroc", "AUROC", 3)]
    if alone:
        caption = f"AUROC over all queries: whether the criterion tells where {shown(alone)} is right."
        columns = [(f"auroc_{alone}", f"AUROC of {shown(alone)}", 3)]
    body = []
    for criterion in dict.fromkeys(row["criterion"] for row in rows):
        cells = [tables.text(criterion)]
        for shot in shown_shots:
            row = found.get((criterion, shot), {})
            cells += [tables.figure(row.get(key), digits) for key, _, digits in columns]
        body.append(cells)
    header = ["criterion", *(f"{what}, {shots(shot)}" for shot in shown_shots for _, what, _ in columns)]
    return tables.table(name, caption, header, body)


def _share(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    said = measure(row["selection_accuracy"], None)
    return {"name": name, "value": row["selection_accuracy"], "said": said, "short": number(row["selection_accuracy"])}


def _weights(rows: Rows, name: str) -> Block:
    first = shown(rows[0].get("modality") or "the first modality")
    kinds = {
        "gain": Series(f"{first} alone over the other", "rgb", "circle"),
        "fused_gain": Series("AMI over late fusion", "fused", "diamond", (6, 3)),
    }
    marks = {
        shot: [_gain(row, key, one.label) for row in part for key, one in kinds.items() if row.get(key) is not None]
        for shot, part in split_by(rows, "shot").items()
    }
    domain = charts.span([one for part in marks.values() for one in part], 0.0)
    panels, claims = [], []
    for shot, part in marks.items():
        axes = (f"AMI's weight of {first}", "gain in points")
        spec = charts.lines(part, list(kinds.values()), *axes, domain=domain, rule=(0.0, ""))
        panels.append(Panel(shots(shot), about(spec, f"Gain over AMI's weight of {first}, {shots(shot)}.")))
        said = words.say_weights([row for row in rows if row["shot"] == shot])
        claims.append(at_shot(shot, said))
    caption = f"Queries in bins of AMI's weight of {first}: accuracy of {first} alone minus the other's there, and of "
    caption += "AMI minus late fusion's."
    body = [
        [
            tables.count(row["shot"]),
            Cell(f"{number(row['low'], 2)} to {number(row['high'], 2)}", row["low"]),
            tables.count(row.get("count")),
            tables.figure(row["weight"], 3),
            tables.figure(row["gain"], 1),
            tables.figure(row.get("fused_gain"), 1),
        ]
        for row in rows
    ]
    header = ["shot", "bin", "queries", "mean weight", "gain", "gain of AMI over late"]
    table = tables.table(name, f"Weight of {first} and what it gains, in points.", header, body, folds=True)
    return Block(
        tuple(claims), "Weights against gains", Figure(name, tuple(panels), caption, tuple(kinds.values())), (table,)
    )


def _gain(row: Mapping[str, Any], key: str, label: str) -> dict[str, Any]:
    at = f"weight {number(row['weight'], 2)}, {row.get('count') or 0:,} queries"
    said = f"{words.signed(row[key])} points"
    return {"series": label, "x": row["weight"], "value": row[key], **ends_of(row[key], None), "at": at, "said": said}


def _calibration(rows: Rows, shot: int, name: str) -> Block:
    temperatures = list(dict.fromkeys(row["temperatures"] for row in rows))
    kinds = series_in_order(temperatures)
    drawn = "folds" if "folds" in temperatures else temperatures[0]
    panels = []
    for view, part in split_by(rows, "view").items():
        marks = [one for row in part for one in _bins(row, kinds[row["temperatures"]].label, drawn)]
        text = f"Reliability diagram of {shown(view)}, {shots(shot)}."
        panels.append(Panel(shown(view), about(charts.calibration(marks, list(kinds.values())), text)))
    body = [
        [
            tables.text(shown(row["view"])),
            tables.text(row["temperatures"]),
            tables.figure(row["ece"]),
            tables.figure(row.get("nll"), 3),
            tables.figure(row.get("accuracy")),
        ]
        for row in rows
    ]
    header = ["view", "temperatures", "ECE in %", "NLL in nats", "accuracy in %"]
    table = tables.table(name, f"Expected calibration error by view and temperatures, {shots(shot)}.", header, body)
    caption = f"{shots(shot).capitalize()}. {_DIAGRAM.format(temperatures=f'temperatures {drawn}')}"
    figure = Figure(name, tuple(panels), caption, tuple(kinds.values()))
    listed = (table, _bins_table(rows, shot, f"{name}-bins"))
    return Block(tuple(words.say_calibration(rows)), f"Calibration, {shots(shot)}", figure, listed)


def _bins_table(rows: Rows, shot: int, name: str) -> Table:
    body = [
        [
            tables.text(shown(row["view"])),
            tables.text(row["temperatures"]),
            tables.figure(100 * one["low"], 1),
            tables.figure(100 * one["high"], 1),
            tables.count(one["count"]),
            tables.figure(one["confidence"], 1),
            tables.figure(one["accuracy"], 1),
        ]
        for row in rows
        for one in _filled(row)
    ]
    header = ["view", "temperatures", "confidence from", "to", "queries", "mean confidence", "accuracy"]
    return tables.table(name, f"Bins of the diagrams, in %, {shots(shot)}.", header, body, folds=True)


def _filled(row: Mapping[str, Any]) -> Rows:
    """Bins that hold queries."""
    return [b for b in row["bins"] if b["count"] and b["confidence"] is not None and b["accuracy"] is not None]


def _bins(row: Mapping[str, Any], label: str, drawn: str) -> list[dict[str, Any]]:
    bins = _filled(row)
    total = sum(b["count"] for b in bins)
    return [
        {
            "series": label,
            "x": b["confidence"],
            "value": b["accuracy"],
            "share": 100 * b["count"] / total,
            "low": 100 * b["low"],
            "high": 100 * b["high"],
            "bars": row["temperatures"] == drawn,
            "at": f"confidence {number(b['confidence'])} %, {b['count']:,} queries",
            "said": f"accuracy {number(b['accuracy'])} %",
        }
        for b in bins
    ]
