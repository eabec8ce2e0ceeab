"""What the commands print: progress while they work, tables when they are done."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # a device has no room of reports
    from sfumato.report import tables as report

_errors = Console(stderr=True, soft_wrap=True)
console = Console(soft_wrap=True)
"""Where results go: standard output, unless `--json -` has that for itself."""


class Bar:
    """A progress bar on a terminal; plain lines, where there are any, everywhere else."""

    def __init__(self, progress: Progress | None, label: str, *, silent: bool = False) -> None:
        self._progress = progress
        self._silent = silent
        self._task = progress.add_task(label, total=None) if progress is not None else None

    def at(self, done: float, total: float) -> None:
        """Move the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def line(self, text: str) -> Self:
        """Print one line above the bar."""
        if not self._silent:
            _errors.print(text, highlight=False, markup=False)
        return self


@contextmanager
def progress_bar(label: str, *, shown: bool = True) -> Iterator[Bar]:
    """Show progress on standard error, so that standard output holds only results; nothing at all unless `shown`."""
    if not shown or not sys.stderr.isatty():
        yield Bar(None, label, silent=not shown)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_errors, transient=True) as progress:
        yield Bar(progress, label)


def say(text: str) -> None:
    """Print a sentence to standard output."""
    console.print(text, highlight=False, markup=False)


def show(shown: "report.Table", title: str) -> None:
    """Print a table of the reports as a page has it, without its notes."""
    from sfumato.report.tables import row_texts, table_heads

    table(title, table_heads(shown), [row_texts(shown, row) for row in shown.rows])


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, whole: bool = False) -> None:
    """Print a table: the first column to the left, figures to the right.

    With `whole`, no cell is shortened, even where lines get longer than the terminal is wide.
    """
    shown = Table(title=Text(title, "table.title") if title else None, title_justify="left")
    for index, name in enumerate(columns):
        shown.add_column(name, justify="left" if index == 0 else "right", no_wrap=whole)
    for row in rows:
        shown.add_row(*map(Text, row))  # a text is printed as it is; "[red]" in a file's name is no colour
    if whole:
        wanted = Measurement.get(console, console.options.update(max_width=10_000), shown).maximum
        # `print(width=...)` gives no more than the terminal has.
        Console(file=console.file, soft_wrap=True, width=max(wanted, console.width)).print(shown)
    else:
        console.print(shown)
