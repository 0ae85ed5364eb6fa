"""The entries of a comparison as Markdown for people, CSV for spreadsheets, and JSON."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from .compare_cells import FUSED, OWN
from .compare_entries import Entry, Setting, Spent, best_of
from .significance import LEVEL, Difference

TITLES = {"rgb": "RGB", "ec": "EC", "ea": "EA", "lf": "LF", "ami": "AMI", OWN: "own"}

LEGEND = (
    "Accuracy in % with its 95 % interval over episodes. **Bold**: best of its column. ~: not significantly below it "
    f"(paired differences on the same episodes, two-sided, Holm over the column, p >= {LEVEL:g}). "
    "EC, EA: fused early by concatenation, co-attention; LF: late, of heads trained by themselves; AMI: AMFIR's "
    "distillation and fusion; own: the method's."
)
PUBLISHED_LEGEND = (
    "[In brackets]: what the papers report for this dataset and these backbones (theirs, not measured here)."
)


def markdown(entries: Sequence[Entry], setting: Setting, notes: Sequence[str] = ()) -> str:
    """Write a table and a ranking for each shot.

    Args:
        entries: Of `make_entries`.
        setting: What they have in common.
        notes: Sentences to stand below.
    """
    failures = {entry.failure: None for entry in entries if entry.failed}
    numbers = {line: number for number, line in enumerate(failures, 1)}
    parts: list[str] = []
    for shot in dict.fromkeys(entry.shot for entry in entries):
        shown = [entry for entry in entries if entry.shot == shot]
        parts += [_heading(shown[0], setting), _main(shown, numbers), _ranking(shown)]
    legend = [LEGEND] + ([PUBLISHED_LEGEND] if any(entry.published for entry in entries) else [])
    parts += [" ".join(legend), *(f"Note: {note}." for note in notes)]
    parts += ["\n".join(f"{number}. failed: {line}" for line, number in numbers.items())] if numbers else []
    return "\n\n".join(parts) + "\n"


def columns_of(entries: Sequence[Entry]) -> list[str]:
    """Arrangements that occur: streams in the order they came, then the fused ones, then the methods' own."""
    present = dict.fromkeys(entry.arrangement for entry in entries)
    streams = [name for name in present if name not in (*FUSED, OWN)]
    return [*streams, *(name for name in (*FUSED, OWN) if name in present)]


def records(entries: Sequence[Entry], setting: Setting) -> list[dict[str, Any]]:
    """One flat JSON-able object for each entry."""
    return [_record(entry, setting) for entry in entries]


def to_csv(entries: Sequence[Entry], setting: Setting) -> str:
    """One line for each entry; columns of published numbers only where there is one."""
    rows = records(entries, setting)
    names = [name for name in rows[0] if not name.startswith("published") or any(entry.published for entry in entries)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _heading(entry: Entry, setting: Setting) -> str:
    seeds = f", mean of {entry.seeds} seeds" if entry.seeds > 1 else ""
    return (
        f"## {setting.way}-way {entry.shot}-shot on {setting.split}\n\n"
        f"{setting.episodes:,} episodes, queries of each class: {setting.query}{seeds}; "
        f"chance is {100 / setting.way:.1f} %."
    )


def _main(entries: Sequence[Entry], numbers: dict[str, int]) -> str:
    columns = columns_of(entries)
    best = {name: best_of(entry for entry in entries if entry.arrangement == name) for name in columns}
    cells = {(entry.row, entry.arrangement): entry for entry in entries}
    lines = [_line(["method", *(TITLES.get(name, name) for name in columns)]), _line(["---"] * (len(columns) + 1))]
    for row, title in {entry.row: entry.title for entry in entries}.items():
        texts = [_cell(cells.get((row, name)), best[name], numbers) for name in columns]
        lines.append(_line([title, *texts]))
    return "\n".join(lines)


def _cell(entry: Entry | None, best: Entry | None, numbers: dict[str, int]) -> str:
    if entry is None:
        return ""
    published = f" [{entry.published[0]:.1f}]" if entry.published else ""
    if entry.failed:
        return f"failed ({numbers[entry.failure]}){published}"
    text = f"{entry.accuracy:.2f} +- {entry.ci95:.2f}"
    if entry.seeds_sd is not None:
        text += f" (seeds {entry.seeds_sd:.2f})"
    if best is not None and entry.accuracy == best.accuracy:
        return f"**{text}**{published}"
    level = entry.to_column is not None and not entry.to_column.significant
    return f"{text}{' ~' if level else ''}{published}"


def _ranking(entries: Sequence[Entry]) -> str:
    """Each method at its best arrangement, with what that costs."""
    rows = [best_of(entry for entry in entries if entry.row == row) for row in dict.fromkeys(e.row for e in entries)]
    ordered = sorted((entry for entry in rows if entry), key=lambda entry: -entry.accuracy)
    if not ordered:
        return "Every method failed."
    header = ["rank", "method", "at its best", "accuracy", "to the best", "p (Holm)", "parameters"]
    header += ["training s", "training episodes/s", "evaluation episodes/s"]
    lines = [_line(header), _line(["---"] * len(header))]
    for entry in ordered:
        place = 1 + sum(other.accuracy > entry.accuracy for other in ordered)
        arrangement = TITLES.get(entry.arrangement, entry.arrangement)
        accuracy = f"{entry.accuracy:.2f} +- {entry.ci95:.2f}"
        lines.append(_line([str(place), entry.title, arrangement, accuracy, *_behind(entry.to_table), *_spent(entry)]))
    compared = sum(not entry.failed for entry in entries) - 1
    note = "Ranking: each method in the arrangement that came out best on these very episodes, against the best of all"
    if compared:
        note += f"; p is adjusted over all {compared} entries of this shot that are held against it"
    return "\n".join(lines) + f"\n\n{note}."


def _behind(difference: Difference | None) -> list[str]:
    if difference is None:
        return ["", ""]
    p = "< 0.0001" if difference.p < 1e-4 else f"{difference.p:.4f}"
    return [f"{difference.mean:.2f} +- {difference.ci95:.2f}", p]


def _spent(entry: Entry) -> list[str]:
    spent = entry.spent
    assert spent is not None
    parameters = "" if spent.parameters is None else f"{spent.parameters:,}"
    return [parameters, *map(_figure, (spent.train_seconds, spent.train_rate, spent.evaluation_rate))]


def _figure(value: float | None) -> str:
    """Two digits at least; nothing where nothing is known."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(texts) + " |"


def _record(entry: Entry, setting: Setting) -> dict[str, Any]:
    published = entry.published or (None, None)
    spent = asdict(entry.spent) if entry.spent else dict.fromkeys(field.name for field in fields(Spent))
    return {
        "way": setting.way,
        "shot": entry.shot,
        "query": setting.query,
        "episodes": setting.episodes,
        "method": entry.row,
        "title": entry.title,
        "arrangement": entry.arrangement,
        "seeds": entry.seeds,
        "accuracy": None if entry.failed else entry.accuracy,
        "ci95": None if entry.failed else entry.ci95,
        "seeds_sd": entry.seeds_sd,
        "rank": entry.rank,
        **_flat("to_column_best", entry.to_column),
        **_flat("to_table_best", entry.to_table),
        **spent,
        "published": published[0],
        "published_source": published[1],
        "failure": entry.failure or None,
    }


def _flat(name: str, difference: Difference | None) -> dict[str, float | None]:
    values = (None, None, None) if difference is None else (difference.mean, difference.ci95, difference.p)
    return dict(zip((name, f"{name}_ci95", f"{name}_p_holm"), values, strict=True))
