"""A report as one HTML file that asks for nothing else: styles, data, pictures and the plotting library are inside."""

import base64
import json
from collections.abc import Mapping
from functools import cache
from html import escape
from importlib import resources
from importlib.metadata import version
from string import Template
from typing import Any

from .build import LEAD
from .document import Block, Cell, Clip, Facts, Figure, Group, Report, Section, Series, Table
from .pictures import small_picture
from .theme import COLOURS, SHAPES, config
from .wording import number, shown

_LIBRARY = "window.vegaEmbed = vegaEmbed;"
"""What the page takes of the bundle."""
NARROW = 4
"""A table of so many columns is no wider than the text."""
BROAD = 8
"""One of more columns may be wider than a figure."""


def to_html(report: Report) -> str:
    """Write the page."""
    specs: dict[str, Any] = {}
    main = "\n".join(_group(group, len(report.groups) > 1, specs) for group in report.groups)
    return Template(_read("page.html")).substitute(
        title=escape(report.title),
        version=escape(version("amfir")),
        lead=_text(LEAD),
        colours=_colours(),
        style=_read("page.css"),
        contents=_contents(report),
        main=main,
        library=library(),
        specs=_variables(to_script(specs)),
        look=_variables(
            to_script(config("system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"))
        ),
        script=_read("page.js"),
    )


def to_script(value: Any) -> str:
    r"""JSON that can stand in a script element: no tag can end it, and no line separator breaks it.

    >>> to_script("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    text = str(vl_convert.javascript_bundle(_LIBRARY))
    assert "</script" not in text.lower()
    return text


def _variables(text: str) -> str:
    """Colours by name, which the style sheet gives a value."""
    for name, (light, _) in COLOURS.items():
        text = text.replace(f'"{light}"', f'"var(--{name})"')
    return text


def _colours() -> str:
    light = "".join(f"--{name}:{value[0]};" for name, value in COLOURS.items())
    dark = "".join(f"--{name}:{value[1]};" for name, value in COLOURS.items())
    dark += "--paper:#16181b;--soft:#22252a;--quiet:#a3a9b2;--link:#8ab8ec;color-scheme:dark;"
    system = "@media screen and (prefers-color-scheme: dark){:root:root:not([data-theme=light]){" + dark + "}}"
    chosen = "@media screen{:root:root[data-theme=dark]{" + dark + "}}"
    return ":root{" + light + "}\n" + system + "\n" + chosen


def _contents(report: Report) -> str:
    items = []
    for group in report.groups:
        sections = "".join(f'<li><a href="#{s.name}">{escape(s.title)}</a></li>' for s in group.sections)
        sections += f'<li><a href="#{group.name}-provenance">Provenance</a></li>'
        if len(report.groups) > 1:
            items.append(f'<li><a href="#{group.name}">{escape(group.title)}</a><ul>{sections}</ul></li>')
        else:
            items.append(sections)
    return f"<ol>{''.join(items)}</ol>"


def _group(group: Group, many: bool, specs: dict[str, Any]) -> str:
    heading = f'<h2 id="{group.name}">{escape(group.title)}</h2>' if many else ""
    level = 3 if many else 2
    sections = "\n".join(_section(section, level, specs) for section in group.sections)
    missing = _list("Not run", group.missing)
    return f'<div class="group">{heading}\n{sections}\n{missing}\n{_provenance(group, level)}</div>'


def _section(section: Section, level: int, specs: dict[str, Any]) -> str:
    settings = f'<p class="settings">{escape(section.settings)}</p>' if section.settings else ""
    blocks = "\n".join(_block(block, level + 1, specs) for block in section.blocks)
    empty = "" if section.blocks else "<p>It gave no numbers.</p>"
    notes = _list("Left out", section.skipped) + _list("Notes", section.notes)
    heading = f'<h{level} id="{section.name}">{escape(section.title)}</h{level}>'
    return f'<section aria-labelledby="{section.name}">\n{heading}\n{settings}{blocks}{empty}{notes}</section>'


def _block(block: Block, level: int, specs: dict[str, Any]) -> str:
    parts = [f"<h{level}>{escape(block.heading)}</h{level}>"] if block.heading else []
    if block.claims:
        parts.append(f'<ul class="claims">{"".join(f"<li>{_text(claim)}</li>" for claim in block.claims)}</ul>')
    if block.figure:
        parts.append(_figure(block.figure, specs))
    parts += [_table(table) for table in block.tables]
    if block.clips:
        parts.append(f'<div class="clips">{"".join(map(_clip, block.clips))}</div>')
    return "\n".join(parts)


def _figure(figure: Figure, specs: dict[str, Any]) -> str:
    panels = []
    for place, panel in enumerate(figure.panels):
        name = f"plot-{figure.name}-{place}"
        specs[name] = panel.spec
        title = f'<p class="panel-title">{escape(panel.title)}</p>' if panel.title else ""
        label = escape(str(panel.spec.get("description") or figure.caption))
        panels.append(f'<div>{title}<div class="plot" id="{escape(name)}" role="img" aria-label="{label}"></div></div>')
    kind = {1: "", 3: " three"}.get(len(panels), " many")
    legend = _legend(figure.series) if figure.series else ""
    return (
        f'<figure id="figure-{escape(figure.name)}">{legend}<div class="panels{kind}">{"".join(panels)}</div>'
        f"<figcaption>{_text(figure.caption)}</figcaption></figure>"
    )


def _legend(series: tuple[Series, ...]) -> str:
    items = []
    for one in series:
        colour, dash = f"var(--{one.colour})", ",".join(map(str, one.dash))
        line = f'<line x1="-12" x2="12" y1="0" y2="0" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"/>'
        mark = f'<path d="{SHAPES[one.shape]}" fill="{colour}"/>'
        sample = f'<svg width="26" height="12" viewBox="-13 -6 26 12" aria-hidden="true">{line}{mark}</svg>'
        label = escape(one.label)
        items.append(
            f'<li><button type="button" aria-pressed="false" data-series="{label}">{sample}{label}</button></li>'
        )
    return f'<ul class="legend" aria-label="Legend: choose a series to show it alone">{"".join(items)}</ul>'


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col"{_number(numeric)}><button type="button">{escape(title)}</button></th>'
        for title, numeric in zip(table.header, table.numeric, strict=True)
    )
    rows = "".join(
        f"<tr>{''.join(_cell(cell, numeric) for cell, numeric in zip(row, table.numeric, strict=True))}</tr>"
        for row in table.rows
    )
    label = escape(f"caption-{table.name}")
    body = (
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{label}"><table aria-labelledby="{label}">'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    columns = len(table.header)
    kind = "table narrow" if columns <= NARROW else "table broad" if columns > BROAD else "table"
    if table.folded:
        body = f'<details><summary id="{label}">{_text(table.caption)}</summary>{body}</details>'
    else:
        body = f'<p class="caption" id="{label}">{_text(table.caption)}</p>{body}'
    return f'<div class="{kind}" id="table-{escape(table.name)}">{body}</div>'


def _cell(cell: Cell, numeric: bool) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    text = escape(cell.text)
    words = ' class="words"' if not numeric and len(cell.text) > 34 else _number(numeric)
    return f"<td{words}{value}>{f'<b>{text}</b>' if cell.bold else text}</td>"


def _number(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _clip(clip: Clip) -> str:
    pictures = "".join(
        f'<img src="{_data_url(*small_picture(one.path))}" alt="{escape(one.label)}">' for one in clip.pictures
    )
    shares = "".join(_share(name, weight) for name, weight in clip.weights)
    said = ", ".join(f"{shown(name)} {number(weight, 2)}" for name, weight in clip.weights)
    weights = f'<div class="weights" role="img" aria-label="AMI weights: {escape(said)}">{shares}</div>' if said else ""
    pairs = [f"<dt>{escape(shown(name))}</dt>{_prediction(clip, predicted)}" for name, predicted in clip.predictions]
    details = [("AMI weights", said)] if said else []
    pairs += [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in (*details, *clip.details)]
    top = f'<div class="pictures">{pictures}</div>' if pictures else ""
    return (
        f'<article class="clip">{top}<h5>{escape(clip.label)}</h5><p>{escape(clip.name)}</p>'
        f"{weights}<dl>{''.join(pairs)}</dl></article>"
    )


def _share(name: str, weight: float) -> str:
    colour = name if name in COLOURS else "neutral"
    return f'<span style="width:{100 * weight:.1f}%;background:var(--{colour})"></span>'


def _prediction(clip: Clip, predicted: str) -> str:
    return f'<dd class="{"hit" if predicted == clip.label else "miss"}">{escape(predicted)}</dd>'


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _list(title: str, lines: tuple[str, ...]) -> str:
    if not lines:
        return ""
    return f'<div class="note"><h4>{title}</h4><ul>{"".join(f"<li>{_text(line)}</li>" for line in lines)}</ul></div>'


def _provenance(group: Group, level: int) -> str:
    name = f"{group.name}-provenance"
    commands = "".join(
        f'<div class="command"><pre><code>{escape(command)}</code></pre><button type="button">Copy</button></div>'
        for command in group.facts.commands
    )
    told = "<p>The studies were made by</p>" if commands else ""
    return (
        f'<section aria-labelledby="{name}"><h{level} id="{name}">Provenance</h{level}>{told}{commands}'
        f"{_fact_lists(group.facts)}</section>"
    )


def _fact_lists(facts: Facts) -> str:
    """A list for each first part of the names; long ones folded."""
    parts: dict[str, list[str]] = {}
    for name, value in facts.values:
        part, _, rest = name.partition(".")
        parts.setdefault(part, []).append(f"<dt>{escape(rest or part)}</dt><dd>{escape(value)}</dd>")
    titles: Mapping[str, str] = {
        "versions": "Versions",
        "config": "Settings",
        "provenance": "Data and machine",
        "specs": "What made the features",
    }
    return "".join(
        f"<details{' open' if part == 'versions' else ''}><summary>{titles.get(part, escape(part))}</summary>"
        f'<dl class="facts">{"".join(pairs)}</dl></details>'
        for part, pairs in parts.items()
    )


def _text(text: str) -> str:
    """Escaped, and no line ends before a unit or within a measurement."""
    return escape(text).replace(" %", "&nbsp;%").replace(" \N{PLUS-MINUS SIGN} ", "&nbsp;\N{PLUS-MINUS SIGN}&nbsp;")


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
