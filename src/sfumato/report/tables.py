"""Comparison tables, our figures beside the published ones, as Markdown, CSV and LaTeX."""

import csv
import io
import math
import re
from dataclasses import dataclass
from typing import Any, Self

from sfumato.errors import ConfigError
from sfumato.report.averages import TINY, Mean, number_text

_MOST = 2 - math.floor(math.log10(TINY))  # decimals; a figure that needs more gets a power of ten
MISSING = "–"
"""What stands where there is no figure."""


@dataclass(frozen=True)
class Cell:
    """One figure beside the published one.

    Attributes:
        ours: what we measured; None where nothing was.
        spread: standard deviation over seeds; None for a single seed.
        published: the paper's figure, in the unit of `ours`; None where it has none.
        digits: decimals as shown; 4, or 2 of a percentage, where None. A figure of ours that these decimals would show
            as 0 gets three significant digits.
        percent: True shows a share of 1 as 100.
        text: shown in place of `ours`, for what is no number.
        note: a few words behind it, such as `not converged`.

    >>> Cell(0.9186, 0.004, percent=True).shown, Cell(0.0000123).shown, Cell(4.2e-17).shown
    ('91.86', '0.0000123', '4.2·10⁻¹⁷')
    """

    ours: float | None = None
    spread: float | None = None
    published: float | None = None
    digits: int | None = None
    percent: bool = False
    text: str | None = None
    note: str = ""

    @classmethod
    def of(cls, figure: Mean | None, **how: Any) -> Self:
        """A mean over seeds with its spread, or nothing."""
        return cls(**how) if figure is None else cls(figure.mean, figure.sd, **how)

    @property
    def shown(self) -> str:
        """Our figure without its spread."""
        return self._written(self.ours, self._decimals()) if self.text is None else self.text

    @property
    def shown_spread(self) -> str:
        """`± 0.0004`, with the decimals of the figure; empty where there is no spread."""
        known = self.text is None and self.ours is not None and self.spread is not None
        return f"± {self._written(self.spread, self._decimals())}" if known else ""

    @property
    def shown_published(self) -> str:
        """The paper's figure, with as many decimals as `digits` says."""
        return self._written(self.published, self._digits())

    @property
    def is_number(self) -> bool:
        """Whether it holds a figure of ours or a published one."""
        return (self.ours is not None and self.text is None) or self.published is not None

    def _digits(self) -> int:
        return self.digits if self.digits is not None else 2 if self.percent else 4

    def _decimals(self) -> int:
        digits, size = self._digits(), abs(self.ours or 0.0) * (100 if self.percent else 1)
        return 2 - math.floor(math.log10(size)) if 0 < size < 0.5 * 10.0**-digits else digits

    def _written(self, value: float | None, decimals: int) -> str:
        if value is None or math.isinf(value):
            return MISSING if value is None else "∞" if value > 0 else "−∞"
        value = 100 * value if self.percent else value
        return (number_text(value) if decimals > _MOST else f"{value:.{decimals}f}").replace("-", "−")


@dataclass(frozen=True)
class Row:
    """One line: what it is, a cell for each column, a few words under the label, and whether it is set apart."""

    label: str
    cells: tuple[Cell, ...]
    note: str = ""
    emphasis: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of figures, and what has to be known to read them.

    A column whose cells have no published figure is shown without a place for one, and a column of percentages says so
    in its head.

    Attributes:
        title: such as `Table 1: CIFAR-10, VGG11`.
        columns: names of the figures, without `%`.
        rows: at least one.
        notes: sentences on seeds, budget, data and oddities of the published table.
        corner: head of the first column.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    corner: str = "method"

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError(f"the table '{self.title}' has no rows; give at least one")
        if len(set(self.columns)) < len(self.columns):
            raise ConfigError(f"the table '{self.title}' has two columns of one name; name each differently")
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ConfigError(
                    f"row '{row.label}' of the table '{self.title}' has {len(row.cells)} cells for {len(self.columns)} "
                    "columns; give one for each"
                )
        for index, name in enumerate(self.columns):
            if len({cell.percent for cell in self._column(index) if cell.is_number}) > 1:
                raise ConfigError(f"column '{name}' of the table '{self.title}' mixes percentages with other figures")

    def _column(self, index: int) -> tuple[Cell, ...]:
        return tuple(row.cells[index] for row in self.rows)

    def is_compared(self, index: int) -> bool:
        """Whether any cell of a column has a published figure."""
        return any(cell.published is not None for cell in self._column(index))

    def has_spread(self, index: int) -> bool:
        """Whether any cell of a column has a spread."""
        return any(cell.spread is not None for cell in self._column(index))

    def head(self, index: int) -> str:
        """The name of a column as shown, with `%` where its figures are percentages."""
        percent = any(cell.percent for cell in self._column(index) if cell.is_number)
        return f"{self.columns[index]}, %" if percent else self.columns[index]


_LATEX = {
    **{character: f"\\{character}" for character in "{}$&#_%"},
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{"[": "{[}", "]": "{]}"},  # after the \\ of the line before, a bracket would be its argument
    **{"–": "--", "±": r"$\pm$", "−": "$-$", "∞": r"$\infty$", "×": r"$\times$", "→": r"$\to$", "·": r"$\cdot$"},
    **{"λ": r"$\lambda$", "σ": r"$\sigma$", "≥": r"$\ge$", "≤": r"$\le$", "²": r"$^2$", "½": r"$\frac12$"},
    **{raised: f"$^{plain}$" for raised, plain in zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789", strict=True)},
    "\u00a0": "~",
}


def to_markdown(table: Table) -> str:
    """The table with its title as a heading and its notes as a list.

    Underscores, asterisks, pipes, dollar signs and markup inside names stay text.
    """
    heads = table_heads(table)
    lines = [
        [_markdown(head) for head in heads],
        [":---", *["---:"] * (len(heads) - 1)],
        *([_set_apart("**{}**", _markdown(text), row) for text in row_texts(table, row)] for row in table.rows),
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
        " & ".join(_set_apart(r"\textbf{{{}}}", _latex(text), row) for text in row_texts(table, row)) + r" \\"
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


def table_heads(table: Table) -> list[str]:
    """The heads of the columns, those of published figures among them."""
    heads = [table.corner]
    for index in range(len(table.columns)):
        heads += [table.head(index)] + ["published"] * table.is_compared(index)
    return heads


def row_texts(table: Table, row: Row) -> list[str]:
    """A row as terminal, Markdown and LaTeX show it, before escaping."""
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
