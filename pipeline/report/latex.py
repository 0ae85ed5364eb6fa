"""Tables for papers: LaTeX with booktabs."""

from .document import Cell, Report, Table

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "\N{RIGHTWARDS ARROW}": r"$\to$",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
}


def tables_of(report: Report) -> dict[str, str]:
    """LaTeX by file name, of all tables of the report."""
    blocks = [block for group in report.groups for section in group.sections for block in section.blocks]
    return {f"{table.name}.tex": to_latex(table) for block in blocks for table in block.tables}


def to_latex(table: Table) -> str:
    """A table environment; needs the package booktabs."""
    columns = "".join("r" if numeric else "l" for numeric in table.numeric)
    lines = [
        "% Made by amfir report; needs \\usepackage{booktabs}.",
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{escaped(table.caption)}}}",
        f"  \\label{{tab:{table.name}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {' & '.join(map(escaped, table.header))} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(map(_cell, row))} \\\\" for row in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    r"""Escape LaTeX's special characters.

    >>> escaped("100 % of a_b & c")
    '100 \\% of a\\_b \\& c'
    """
    return "".join(_SPECIAL.get(char, char) for char in text)


def _cell(cell: Cell) -> str:
    # A bracket at the start of a row would be taken for an argument of the \\ before it.
    text = escaped(cell.text)
    text = f"{{{text}}}" if text.startswith("[") else text
    return f"\\textbf{{{text}}}" if cell.bold else text
