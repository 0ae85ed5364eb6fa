"""A report as Markdown with pictures, for READMEs and papers."""

import json
import re

from .build import LEAD
from .charts import picture_spec
from .document import Block, Clip, Figure, Group, Report, Section, Table
from .wording import number, shown

SCALE = 2
"""Pixels of a picture for each of its points."""


def to_markdown(report: Report) -> str:
    """Write the text; pictures lie beside it in `figures/`."""
    lines = [f"# {plain(report.title)}", plain(LEAD)]
    for group in report.groups:
        lines += _group(group, len(report.groups) > 1)
    return "\n\n".join(lines) + "\n"


def pictures(report: Report) -> dict[str, Figure]:
    """Figures by the name of their PNG."""
    blocks = [block for group in report.groups for section in group.sections for block in section.blocks]
    return {f"{block.figure.name}.png": block.figure for block in blocks if block.figure}


def to_png(figure: Figure) -> bytes:
    """Draw a figure as the page does, on white."""
    import vl_convert

    return bytes(vl_convert.vegalite_to_png(json.dumps(picture_spec(figure)), scale=SCALE))


def plain(text: str) -> str:
    r"""Escape what Markdown or the HTML inside it would take for markup.

    >>> plain("a_b <i> | [c]")
    'a\\_b &lt;i&gt; \\| \\[c\\]'
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)


def _group(group: Group, many: bool) -> list[str]:
    lines = [f"## {plain(group.title)}"] if many else []
    level = 3 if many else 2
    for section in group.sections:
        lines += _section(section, level)
    lines += _list("Not run", group.missing)
    lines.append(f"{'#' * level} Provenance")
    lines += [f"```sh\n{command.replace('```', '')}\n```" for command in group.facts.commands]
    facts = [f"- {plain(name)}: {plain(value)}" for name, value in group.facts.values]
    return [*lines, "\n".join(facts)] if facts else lines


def _section(section: Section, level: int) -> list[str]:
    lines = [f"{'#' * level} {plain(section.title)}"]
    lines += [plain(section.settings)] if section.settings else []
    for block in section.blocks:
        lines += _block(block, level + 1)
    lines += [] if section.blocks else ["It gave no numbers."]
    return [*lines, *_list("Left out", section.skipped), *_list("Notes", section.notes)]


def _block(block: Block, level: int) -> list[str]:
    lines = [f"{'#' * level} {plain(block.heading)}"] if block.heading else []
    if block.claims:
        lines.append("\n".join(f"- {plain(claim)}" for claim in block.claims))
    if block.figure:
        lines += [
            f"![{plain(block.figure.caption)}](figures/{block.figure.name}.png)",
            f"*{plain(block.figure.caption)}*",
        ]
    for table in block.tables:
        lines += [plain(table.caption), _table(table)]
    return [*lines, _clips(block.clips)] if block.clips else lines


def _table(table: Table) -> str:
    rule = ["---:" if numeric else "---" for numeric in table.numeric]
    rows = [[f"**{plain(cell.text)}**" if cell.bold else plain(cell.text) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [[plain(title) for title in table.header], rule, *rows])


def _clips(clips: tuple[Clip, ...]) -> str:
    rows = [["clip", "class", "predictions", "AMI weights"], ["---"] * 4]
    for clip in clips:
        predictions = ", ".join(f"{shown(name)}: {predicted}" for name, predicted in clip.predictions)
        weights = ", ".join(f"{shown(name)} {number(weight, 2)}" for name, weight in clip.weights)
        rows.append([plain(text) for text in (clip.name, clip.label, predictions, weights)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _list(title: str, lines: tuple[str, ...]) -> list[str]:
    return [f"{title}:", "\n".join(f"- {plain(line)}" for line in lines)] if lines else []
