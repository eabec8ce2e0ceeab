"""Comparison tables as Markdown, CSV and LaTeX. All show the same figures as the pages; CSV has them unrounded."""

import csv
import io
import re

from sfumato.report.cells import Row, Table

_LATEX = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{"[": "{[}", "]": "{]}"},  # after the \\ of the line before, a bracket would be its argument
    **{"–": "--", "±": r"$\pm$", "−": "$-$", "∞": r"$\infty$", "×": r"$\times$", "→": r"$\to$", "·": r"$\cdot$"},
    **{"λ": r"$\lambda$", "σ": r"$\sigma$", "≥": r"$\ge$", "≤": r"$\le$", "²": r"$^2$", "½": r"$\frac12$"},
    "\u00a0": "~",
}


def to_markdown(table: Table) -> str:
    """The table with its title as a heading and its notes as a list.

    Underscores, asterisks, pipes, dollar signs and markup inside names stay text.
    """
    heads = [table.corner]
    for index in range(len(table.columns)):
        heads += [table.head(index), "published"] if table.is_compared(index) else [table.head(index)]
    lines = [
        [_markdown(head) for head in heads],
        [":---", *["---:"] * (len(heads) - 1)],
        *([_set_apart("**{}**", _markdown(text), row) for text in _texts(table, row)] for row in table.rows),
    ]
    parts = [f"### {_markdown(table.title)}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    if table.notes:
        parts.append("\n".join(f"- {_markdown(note)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def to_csv(table: Table) -> str:
    """The table for programs: one line per row, read back with any CSV reader.

    A column `x` of the table gives `x`, and where there are any, `x sd` and `x published`: unrounded, shares as
    fractions of 1, empty where there is no figure. `note`, `table` and `table notes` come last, the latter two the same
    in every line, so that a line that is cut out keeps its caveats.
    """
    heads = [table.corner]
    for index, name in enumerate(table.columns):
        heads += [name] + [f"{name} sd"] * table.has_spread(index) + [f"{name} published"] * table.is_compared(index)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*heads, "note", "table", "table notes"])
    for row in table.rows:
        line: list[str | float | None] = [row.label]
        for index, cell in enumerate(row.cells):
            line.append(cell.text if cell.ours is None else cell.ours)
            line += [cell.spread] * table.has_spread(index) + [cell.published] * table.is_compared(index)
        notes = [f"{name}: {cell.note}" for name, cell in zip(table.columns, row.cells, strict=True) if cell.note]
        writer.writerow([*line, "; ".join([row.note] * bool(row.note) + notes), table.title, " ".join(table.notes)])
    return stream.getvalue()


def to_latex(table: Table) -> str:
    r"""A `table` environment for a document that loads `booktabs`; names are escaped.

    The notes stand below the table as small text. Wide tables may need `\resizebox` or a `table*`.
    """
    compared = [table.is_compared(index) for index in range(len(table.columns))]
    heads = [
        rf"\multicolumn{{2}}{{c}}{{{_latex(table.head(index))}}}" if pair else _latex(table.head(index))
        for index, pair in enumerate(compared)
    ]
    rules, start = [], 2
    for pair in compared:
        rules += [rf"\cmidrule(lr){{{start}-{start + 1}}}"] * pair
        start += 2 if pair else 1
    under = [word for pair in compared for word in (("ours", "published") if pair else ("",))]
    body = [
        " & ".join(_set_apart(r"\textbf{{{}}}", _latex(text), row) for text in _texts(table, row)) + r" \\"
        for row in table.rows
    ]
    lines = [
        *(r"\begin{table}", r"\centering", rf"\caption{{{_latex(table.title)}}}"),
        *(rf"\begin{{tabular}}{{l{'r' * (start - 2)}}}", r"\toprule"),
        " & ".join([_latex(table.corner), *heads]) + r" \\",
        *([" ".join(rules), " & ".join(["", *under]) + r" \\"] if any(compared) else []),
        r"\midrule",
        *body,
        *(r"\bottomrule", r"\end{tabular}"),
        *([rf"\par\smallskip\footnotesize {_latex(' '.join(table.notes))}"] if table.notes else []),
        *(r"\end{table}", ""),
    ]
    return "\n".join(lines)


def _texts(table: Table, row: Row) -> list[str]:
    """A row as Markdown and LaTeX show it, before escaping."""
    texts = [f"{row.label} ({row.note})" if row.note else row.label]
    for index, cell in enumerate(row.cells):
        parts = (cell.shown, cell.shown_spread, f"({cell.note})" if cell.note else "")
        texts.append(" ".join(part for part in parts if part))
        if table.is_compared(index):
            texts.append(cell.shown_published)
    return texts


def _set_apart(form: str, text: str, row: Row) -> str:
    return form.format(text) if row.emphasis else text


def _markdown(text: str) -> str:
    """Only an underscore between letters or digits has no meaning in Markdown, and names are full of those."""
    text = re.sub(r"([\\`*\[\]|$~#])|(?<![^\W_])(_)|(_)(?![^\W_])", lambda found: "\\" + found[0], _one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in _one_line(text))


def _one_line(text: str) -> str:
    return re.sub(r"[\r\n]+", " ", text)
