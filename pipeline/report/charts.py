"""Vega-Lite specs of the few kinds of plots that a report has, as plain dicts.

Every view is as wide as what holds it, and without a legend: the page and the pictures set one legend a figure, see
`document.Figure`. Rows are flat: `series`, `value`, `low`, `high` (ends of the 95 % interval) and what tooltips show.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .document import Figure, Panel, Series
from .theme import COLOURS, config

Rows = Sequence[Mapping[str, Any]]
Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
SHOWN = {"name": "shown", "value": ""}
"""The series that a click on the legend has picked; empty: all."""

_INK, _NEUTRAL, _GRID = (COLOURS[name][0] for name in ("ink", "neutral", "grid"))
_MANY_TIMES = 12
"""Ticks over a wider range than this stand on a logarithmic axis: 5, 6, ... 10, 20, 50, 100 ways."""
_PICKED = "shown === '' || datum.series === shown"


def dots(
    rows: Rows,
    series: Sequence[Series],
    names: Sequence[str],
    x_title: str,
    *,
    domain: tuple[float, float],
    rule: float | None = None,
    spread: bool = False,
) -> Spec:
    """Draw a point with its interval for each row, a line of the plot for each name.

    Args:
        rows: With `name` beside the usual.
        series: How its kinds look.
        names: Lines, from above.
        x_title: Title of the axis.
        domain: Ends of the axis.
        rule: Where a vertical line stands.
        spread: Whether the series of a name lie below each other.
    """
    y: Spec = {"field": "name", "type": "nominal", "sort": list(names), "title": None}
    y["axis"] = {"grid": True, "ticks": False, "domain": False, "labelPadding": 8}
    shared: Spec = {"y": y, **_kinds(series)}
    if spread:
        y["axis"]["grid"] = False
        shared["yOffset"] = {"field": "series", "sort": [one.label for one in series], "scale": {"paddingOuter": 0.4}}
    x = _axis("value", x_title, domain)
    interval = {"x": _axis("low", x_title, domain), "x2": {"field": "high"}, **_without(shared, "shape")}
    layers: list[Spec] = [
        *([_rule("x", rule)] if rule is not None else []),
        {"mark": {"type": "rule", "strokeWidth": 1.5}, "encoding": {**interval, **_dim()}},
        {"mark": _point(), "encoding": {"x": x, **shared, **_dim(), **_tip("name", "series")}},
    ]
    each = (7 * len(series) + 10) if spread else 22
    return _layered(rows, layers, height=max(60, each * len(names)))


def lines(
    rows: Rows,
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    *,
    ticks: Sequence[float] = (),
    domain: tuple[float, float],
    rule: tuple[float, str] | None = None,
    points: bool = True,
) -> Spec:
    """Draw a line with its band for each series over `x`.

    Args:
        rows: With `x` beside the usual.
        series: How they look.
        x_title: Title of the axis.
        y_title: Title of the other.
        ticks: Where the x axis has ticks; empty: where Vega likes.
        domain: Ends of the y axis.
        rule: Height of a horizontal line, and its name.
        points: Whether values are marked.
    """
    scale: Spec = {"zero": False, "nice": False}
    if ticks and min(ticks) > 0 and max(ticks) >= _MANY_TIMES * min(ticks):
        scale = {"type": "log", "nice": False}
    x: Spec = {"field": "x", "type": "quantitative", "title": x_title, "scale": scale}
    x["axis"] = {
        "grid": False,
        **({"values": list(ticks), "labelExpr": "format(datum.value, '~g')"} if ticks else {"tickCount": 5}),
    }
    y = _axis("value", y_title, domain)
    kinds = _kinds(series)
    band = {"x": x, "y": _axis("low", y_title, domain), "y2": {"field": "high"}, "color": kinds["color"]}
    line = {"x": x, "y": y, **_without(kinds, "shape"), "strokeDash": _dashes(series)}
    layers: list[Spec] = [
        *([_rule("y", rule[0], rule[1])] if rule else []),
        {"mark": {"type": "area"}, "encoding": {**band, **_dim(0.16, 0.03)}},
        {"mark": {"type": "line", "strokeWidth": 1.8}, "encoding": {**line, **_dim()}},
    ]
    if points:
        layers.append({"mark": _point(), "encoding": {"x": x, "y": y, **kinds, **_dim(), **_tip("series", "at")}})
    return _layered(rows, layers, height=230)


def bars(rows: Rows, names: Sequence[str], rules: Rows, series: Sequence[Series], x_title: str) -> Spec:
    """Draw a bar for each row, percent, and a vertical line for each of `rules`, which are of a series each."""
    y: Spec = {"field": "name", "type": "nominal", "sort": list(names), "title": None}
    y["axis"] = {"ticks": False, "domain": False, "labelPadding": 8}
    x = _axis("value", x_title, (0, 100))
    label = {"text": {"field": "short"}, "x": {"datum": 1}, "y": y}
    bar = {"x": x, "y": y, **_tip("name")}
    line = {"x": x, **_without(_kinds(series), "shape"), "strokeDash": _dashes(series), **_tip("series")}
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "color": COLOURS["fused"][0], "opacity": 0.45, "height": {"band": 0.7}},
            "encoding": bar,
        },
        {"mark": {"type": "text", "align": "left"}, "encoding": label},
        {"data": {"values": list(rules)}, "mark": {"type": "rule", "strokeWidth": 2.5}, "encoding": line},
    ]
    return _layered(rows, layers, height=max(60, 24 * len(names)))


def calibration(rows: Rows, series: Sequence[Series]) -> Spec:
    """Draw a reliability diagram: accuracy over confidence, the diagonal, and the share of queries of each bin.

    Args:
        rows: `x` (mean confidence), `value` (accuracy), `share` (of the queries), `low` and `high` (ends of the bin),
            all in percent, and `bars` (whether the row's share is drawn).
        series: How temperatures look.
    """
    ends = (0.0, 100.0)
    x, y = _axis("x", "confidence in %", ends), _axis("value", "accuracy in %", ends)
    kinds = _kinds(series)
    diagonal = {"values": [{"x": 0, "value": 0}, {"x": 100, "value": 100}]}
    bar = {
        "x": _axis("low", "confidence in %", ends),
        "x2": {"field": "high"},
        "y": _axis("share", "accuracy in %", ends),
    }
    line = {"x": x, "y": y, **_without(kinds, "shape"), "strokeDash": _dashes(series)}
    layers: list[Spec] = [
        {
            "transform": [{"filter": "datum.bars"}],
            "mark": {"type": "bar", "color": _NEUTRAL, "opacity": 0.28, "binSpacing": 1},
            "encoding": {**bar, "y2": {"datum": 0}, **_tip("series", "at")},
        },
        {
            "data": diagonal,
            "mark": {"type": "line", "color": _NEUTRAL, "strokeDash": [3, 3], "strokeWidth": 1},
            "encoding": {"x": x, "y": y},
        },
        {"mark": {"type": "line", "strokeWidth": 1.8}, "encoding": {**line, **_dim()}},
        {"mark": _point(), "encoding": {"x": x, "y": y, **kinds, **_dim(), **_tip("series", "at")}},
    ]
    return _layered(rows, layers, height=230)


def span(rows: Rows, *others: float, floor: float | None = None, ceiling: float | None = None) -> tuple[float, float]:
    """Ends of an axis that shows all intervals of the rows, and other values, with a little air.

    Args:
        rows: With `low` and `high`.
        others: What else has to be seen.
        floor: What the axis never goes below.
        ceiling: What it never goes above.
    """
    found = [row[key] for row in rows for key in ("low", "high")] + list(others)
    low, high = min(found), max(found)
    air = 0.04 * (high - low) or 1.0
    low, high = low - air, high + air
    return max(low, floor) if floor is not None else low, min(high, ceiling) if ceiling is not None else high


def picture_spec(figure: Figure) -> Spec:
    """Make the spec of a figure's PNG: its panels side by side, of fixed width, under one legend."""
    wide = len(figure.panels) == 1
    panels = [_of_fixed_width(panel, 560 if wide else 300) for panel in figure.panels]
    look = config()
    look["background"] = "#ffffff"
    spec: Spec = {"$schema": SCHEMA, "params": [SHOWN], "config": look, "padding": 12}
    if wide:
        return {**spec, **panels[0]}
    scales = {name: "shared" for name in ("color", "shape", "strokeDash")}
    return {
        **spec,
        "concat": panels,
        "columns": 3 if len(panels) == 3 else 2,
        "spacing": 28,
        "resolve": {"scale": scales},
    }


def _of_fixed_width(panel: Panel, width: int) -> Spec:
    spec: Spec = json.loads(
        json.dumps({k: v for k, v in panel.spec.items() if k not in ("$schema", "params", "autosize")})
    )
    _with_legend(spec)
    return {**spec, "width": width, **({"title": panel.title} if panel.title else {})}


def _with_legend(node: Any) -> None:
    """Give colours, shapes and dashes back the legend that the page draws by itself."""
    if isinstance(node, list):
        for item in node:
            _with_legend(item)
    elif isinstance(node, dict):
        if "scale" in node and node.get("legend", "") is None:
            del node["legend"]
        for item in node.values():
            _with_legend(item)


def _layered(rows: Rows, layers: list[Spec], height: int) -> Spec:
    return {
        "$schema": SCHEMA,
        "params": [SHOWN],
        "data": {"values": [dict(row) for row in rows]},
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "layer": layers,
    }


def _axis(field: str, title: str, domain: tuple[float, float]) -> Spec:
    scale = {"domain": list(domain), "nice": False, "zero": False}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, "axis": {"tickCount": 6}}


def _kinds(series: Sequence[Series]) -> Spec:
    """Colour and shape by series."""
    labels = [one.label for one in series]
    colours = {"domain": labels, "range": [COLOURS[one.colour][0] for one in series]}
    shapes = {"domain": labels, "range": [one.shape for one in series]}
    return {
        "color": {"field": "series", "type": "nominal", "scale": colours, "legend": None},
        "shape": {"field": "series", "type": "nominal", "scale": shapes, "legend": None},
    }


def _dashes(series: Sequence[Series]) -> Spec:
    scale = {"domain": [one.label for one in series], "range": [list(one.dash) or [1, 0] for one in series]}
    return {"field": "series", "type": "nominal", "scale": scale, "legend": None}


def _dim(full: float = 1.0, dimmed: float = 0.12) -> Spec:
    return {"opacity": {"condition": {"test": _PICKED, "value": full}, "value": dimmed}}


def _point() -> Spec:
    return {"type": "point", "filled": True, "size": 55, "opacity": 1}


def _tip(*fields: str) -> Spec:
    titles = {"name": "", "series": "", "at": "at"}
    shown = [{"field": field, "type": "nominal", "title": titles[field] or field} for field in fields]
    return {"tooltip": [*shown, {"field": "said", "type": "nominal", "title": "value"}]}


def _rule(channel: str, value: float, label: str = "") -> Spec:
    """A dashed line across the plot at a value of `channel`, with its name at the left end."""
    once: Spec = {"values": [{}]}  # with the plot's own rows, each of them would draw it again
    place = {channel: {"datum": value}}
    line = {"data": once, "mark": {"type": "rule", "color": _NEUTRAL, "strokeDash": [4, 4]}, "encoding": place}
    if not label:
        return line
    text = {"type": "text", "text": label, "align": "left", "baseline": "bottom", "dx": 4, "dy": -3, "color": _NEUTRAL}
    return {"layer": [line, {"data": once, "mark": text, "encoding": {**place, "x": {"value": 0}}}]}


def _without(encoding: Spec, key: str) -> Spec:
    return {name: value for name, value in encoding.items() if name != key}
