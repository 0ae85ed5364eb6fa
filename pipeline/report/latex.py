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
    '"': r"{\char34}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MINUS SIGN}": "$-$",
    "\N{RIGHTWARDS ARROW}": r"$\to$",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
}


def tables_of(report: Report) -> dict[str, str]:
    """LaTeX by file name, of all tables of the report."""
    return {f"{table.name}.tex": to_latex(table) for block in report.blocks() for table in block.tables}


def to_latex(table: Table) -> str:
    """A table environment, or one that goes on over pages where it is long."""
    columns = "".join("r" if numeric else "l" for numeric in table.numeric)
    head = f"    {' & '.join(map(escaped, table.header))} \\\\"
    rows = [f"    {' & '.join(map(_cell, row))} \\\\" for row in table.rows]
    caption, label = f"  \\caption{{{escaped(table.caption)}}}", f"  \\label{{tab:{table.name}}}"
    if table.folded:
        lines = [
            "% Made by amfir report; needs \\usepackage{booktabs,longtable}.",
            f"\\begin{{longtable}}{{{columns}}}",
            f"{caption}{label.strip()} \\\\",
            *(r"    \toprule", head, r"    \midrule", r"    \endhead", r"    \bottomrule", r"    \endfoot"),
            *rows,
            r"\end{longtable}",
        ]
        return "\n".join(lines) + "\n"
    lines = [
        "% Made by amfir report; needs \\usepackage{booktabs}.",
        r"\begin{table}",
        r"  \centering",
        caption,
        label,
        f"  \\begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        head,
        r"    \midrule",
        *rows,
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
