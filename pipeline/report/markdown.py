"""A report as Markdown with pictures, for READMEs and papers."""

import io
import json
import re
from html import escape

from .build import LEAD
from .charts import picture_spec
from .document import Block, Clip, Figure, Group, Picture, Report, Section, Table
from .pictures import small_picture
from .wording import number, shown

SCALE = 2
"""Pixels of a picture for each of its points."""

COLOURS = 128
"""Of a picture."""


def to_markdown(report: Report) -> str:
    """Write the text; pictures lie beside it in `figures/`."""
    lines = [f"# {plain(report.title)}", plain(LEAD)]
    for group in report.groups:
        lines += _group(group, len(report.groups) > 1)
    return "\n\n".join(lines) + "\n"


def pictures(report: Report) -> dict[str, Figure]:
    """Figures by the name of their PNG."""
    return {f"{block.figure.name}.png": block.figure for block in report.blocks() if block.figure}


def thumbnails(report: Report) -> dict[str, bytes]:
    """Pictures of clips by file name."""
    clips = [clip for block in report.blocks() for clip in block.clips]
    return dict(_thumbnail(picture) for clip in clips for picture in clip.pictures)


def _thumbnail(picture: Picture) -> tuple[str, bytes]:
    kind, data = small_picture(picture.path)
    return f"{picture.name}.{kind}", data


def to_png(figure: Figure) -> bytes:
    """Draw a figure as the page does, on white."""
    import vl_convert
    from PIL import Image

    drawn = vl_convert.vegalite_to_png(json.dumps(picture_spec(figure)), scale=SCALE)
    # Lines on white need no more colours, and an eighth of the bytes: READMEs are opened on phones, too.
    small = Image.open(io.BytesIO(drawn)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    data = io.BytesIO()
    small.save(data, "PNG", optimize=True)
    return data.getvalue()


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
        lines += _table(table)
    return [*lines, _clips(block.clips)] if block.clips else lines


def _table(table: Table) -> list[str]:
    """Its caption and its rows; folded as GitHub folds where it is long."""
    if table.folded:
        return [f"<details>\n<summary>{escape(table.caption)}</summary>", _rows(table), "</details>"]
    return [plain(table.caption), _rows(table)]


def _rows(table: Table) -> str:
    rule = ["---:" if numeric else "---" for numeric in table.numeric]
    rows = [[f"**{plain(cell.text)}**" if cell.bold else plain(cell.text) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [[plain(title) for title in table.header], rule, *rows])


def _clips(clips: tuple[Clip, ...]) -> str:
    """A row for each; thumbnails first, then what was found."""
    kinds = list(dict.fromkeys(picture.kind for clip in clips for picture in clip.pictures))
    details = list(dict.fromkeys(name for clip in clips for name, _ in clip.details))
    header = [*kinds, "clip", "class", "predictions", "AMI weights", *details]
    rows = [[plain(title) for title in header], ["---"] * len(header)]
    for clip in clips:
        shots = {one.kind: f"![{plain(one.label)}](figures/{_thumbnail(one)[0]})" for one in clip.pictures}
        found = dict(clip.details)
        predictions = ", ".join(f"{shown(name)}: {predicted}" for name, predicted in clip.predictions)
        weights = ", ".join(f"{shown(name)} {number(weight, 2)}" for name, weight in clip.weights)
        texts = (clip.name, clip.label, predictions, weights, *(found.get(name, "") for name in details))
        rows.append([*(shots.get(kind, "") for kind in kinds), *map(plain, texts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _list(title: str, lines: tuple[str, ...]) -> list[str]:
    return [f"{title}:", "\n".join(f"- {plain(line)}" for line in lines)] if lines else []
