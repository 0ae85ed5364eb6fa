"""Colours and marks of all figures: the same thing has the same colour everywhere, and a shape or dash beside it.

Specs name colours by their light value. The page replaces them by CSS variables, so that the style sheet alone decides
between light, dark and print; pictures keep the light ones.
"""

from typing import Any

from ..plots import COLOURS as STREAMS
from ..plots import FUSED
from .document import Series
from .wording import shown

COLOURS: dict[str, tuple[str, str]] = {
    "rgb": (STREAMS["rgb"], "#f0805f"),
    "flow": (STREAMS["flow"], "#63a4e8"),
    "fused": (FUSED, "#58c08a"),
    "amber": ("#a8690b", "#e0a84a"),
    "violet": ("#7a4fd0", "#b195f5"),
    "pink": ("#c2337f", "#f27fb8"),
    "teal": ("#1f7f86", "#55c1c8"),
    "neutral": ("#6b7280", "#9aa3b0"),
    "ink": ("#22252a", "#e4e4e0"),
    "grid": ("#dcdcd8", "#3a3d42"),
}
"""Light and dark value by name."""

SHAPES: dict[str, str] = {
    "circle": "M0,-4A4,4 0 1 1 0,4A4,4 0 1 1 0,-4Z",
    "square": "M-3.5,-3.5H3.5V3.5H-3.5Z",
    "diamond": "M0,-5L5,0L0,5L-5,0Z",
    "triangle-up": "M0,-4.5L4.5,4H-4.5Z",
    "triangle-down": "M0,4.5L4.5,-4H-4.5Z",
    "cross": "M-1.5,-4.5H1.5V-1.5H4.5V1.5H1.5V4.5H-1.5V1.5H-4.5V-1.5H-1.5Z",
    "triangle-right": "M-4,-4.5L4.5,0L-4,4.5Z",
    "triangle-left": "M4,-4.5L-4.5,0L4,4.5Z",
}
"""SVG path by the name that Vega gives the shape."""

DASHES: tuple[tuple[int, ...], ...] = ((), (6, 3), (2, 2), (8, 3, 2, 3), (4, 2), (1, 3), (10, 4), (6, 2, 1, 2, 1, 2))
"""By the place of a series among its kind."""

ARRANGEMENTS = {
    "rgb": Series("RGB", "rgb", "circle"),
    "flow": Series("flow", "flow", "square", (6, 3)),
    "ec": Series("EC", "amber", "triangle-up", (2, 2)),
    "ea": Series("EA", "violet", "triangle-down", (4, 2)),
    "lf": Series("LF", "teal", "cross", (8, 3, 2, 3)),
    "ami": Series("AMI", "fused", "diamond"),
    "own": Series("own", "pink", "triangle-right", (1, 3)),
}
"""How a comparison's columns look."""

_FUSIONS = {
    "ami": Series("AMI", "fused", "diamond"),
    "late": Series("late fusion", "teal", "cross", (8, 3, 2, 3)),
    "select": Series("select", "violet", "triangle-down", (4, 2)),
    "belief": Series("belief", "amber", "triangle-up", (2, 2)),
    "posterior-mean": Series("posterior mean", "pink", "triangle-right", (1, 3)),
    "rgb": Series("RGB", "rgb", "circle"),
    "flow": Series("flow", "flow", "square", (6, 3)),
    "rgb alone": Series("RGB alone", "rgb", "circle"),
    "flow alone": Series("flow alone", "flow", "square", (6, 3)),
}
_METHODS = {"amfir": ("fused", "diamond", ()), "amfar": ("violet", "triangle-down", (4, 2))}
_SUFFIXES = {"-rgb": ("rgb", "circle", ()), "-flow": ("flow", "square", (6, 3)), "-lf": ("teal", "cross", (8, 3, 2, 3))}
_OTHERS = ("amber", "pink", "neutral", "teal", "violet", "flow", "rgb")


def view_series(names: list[str]) -> dict[str, Series]:
    """How views (modalities, fusions) look, by name; unknown ones take what is left, in their order."""
    return _named(names, _FUSIONS)


def arrangement_series(names: list[str]) -> dict[str, Series]:
    """How arrangements look, by name."""
    return _named(names, ARRANGEMENTS)


def method_series(titles: dict[str, str]) -> dict[str, Series]:
    """How methods look, by name.

    Args:
        titles: Name of the method -> how the legend calls it.
    """
    found: dict[str, Series] = {}
    spare = iter(range(len(titles)))
    taken: set[str] = set()
    for name, title in titles.items():
        style = _METHODS.get(name) or next((s for end, s in _SUFFIXES.items() if name.endswith(end)), None)
        if style is None or style[0] in taken:
            place = next(spare)
            style = (_OTHERS[place % len(_OTHERS)], list(SHAPES)[(place + 3) % len(SHAPES)], DASHES[(place + 2) % 8])
        taken.add(style[0])
        found[name] = Series(title, *style)
    return found


def series_in_order(labels: list[str]) -> dict[str, Series]:
    """How any few things look that have no colour of their own, by label."""
    return _named(labels, {})


def config(font: str = "sans-serif") -> dict[str, Any]:
    """Vega-Lite's settings for all figures: thin lines, no frames, no background."""
    ink, grid = COLOURS["ink"][0], COLOURS["grid"][0]
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            **text,
            "domainColor": grid,
            "tickColor": grid,
            "gridColor": grid,
            "titlePadding": 8,
            "labelLimit": 330,
        },
        "legend": {
            **text,
            "title": None,
            "orient": "bottom",
            "columns": 4,
            "symbolStrokeWidth": 2,
            "symbolOpacity": 1,
            "labelLimit": 0,
        },
        "title": {"color": ink, "fontSize": 13, "fontWeight": "normal", "anchor": "start"},
        "text": {"color": ink, "fontSize": 12},
    }


def _named(names: list[str], known: dict[str, Series]) -> dict[str, Series]:
    fresh = [name for name in names if name not in known]
    found = {name: known[name] for name in names if name in known}
    used = {series.colour for series in found.values()}
    colours = [name for name in _OTHERS if name not in used] or list(_OTHERS)
    shapes = list(SHAPES)
    for place, name in enumerate(fresh):
        found[name] = Series(
            shown(name), colours[place % len(colours)], shapes[place % len(shapes)], DASHES[place % len(DASHES)]
        )
    return {name: found[name] for name in names}
