"""The page of `sfumato reproduce`: tables and figures of the paper, ours beside the published ones."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError
from sfumato.provenance import evidence
from sfumato.report.drawn import Drawn, save_figure
from sfumato.report.page import Section, figure, part, table, write_page
from sfumato.report.pictures import data_uri
from sfumato.report.tables import Table, to_markdown
from sfumato.report.verdict import Verdict

_ID = re.compile(r'\bid="([^"]*)"')


@dataclass
class Presentation:
    """What a table or figure shows: figures as (caption, SVG), pictures as (caption, PNG), and notes below the title.

    The seconds are those of all experiments together, the evidence that of the first; the table's notes name every
    device.
    """

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    notes: Sequence[str] = ()
    seconds: float = 0.0
    evidence: Mapping[str, Any] = field(default_factory=lambda: evidence("cpu"))

    def markdown(self) -> str:
        """All tables."""
        return "\n\n".join(map(to_markdown, self.tables))


def write_reproduction_page(path: Path, shown: Presentation) -> None:
    """Write tables, figures and pictures as one HTML file that needs nothing else, and the figures as files beside it.

    A page `table1.html` has `table1-figure1.svg`, `.pdf` and `.csv` for a paper, and a picture `.png` and `.pdf`.
    """
    title, tables, figures, pictures = shown.title, shown.tables, shown.figures, shown.pictures
    if not (tables or figures or pictures):
        raise ConfigError("the page has neither a table nor a figure; run an experiment before writing it")
    ids = [name for _, svg in figures for name in _ID.findall(svg)]
    if len(set(ids)) < len(ids):
        raise ConfigError("two figures of the page have the same key; draw each with a key of its own")
    sections = [Section(_own(one.title, title, "The numbers"), [table(one)], len(one.columns) > 3) for one in tables]
    for caption, svg in figures:
        heading, _, rest = caption.partition("\n")
        sections.append(Section(_own(heading, title, "The figure"), [figure(svg, rest)]))
    for caption, png in pictures:
        heading, _, rest = caption.partition("\n")
        if not png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ConfigError(f"the picture '{heading}' is no PNG; pass the bytes of one")
        picture = part("picture", uri=data_uri(png), alt=caption.replace("\n", ". "), caption=rest)
        sections.append(Section(_own(heading, title, "The pictures"), [picture]))
    compared = any(one.is_compared(index) for one in tables for index in range(len(one.columns)))
    reading = Section("How to read this", [*[part("compared")] * compared, part("limits", own=[])])
    write_page(
        path,
        title="Sfumato: the paper, reproduced",
        verdict=Verdict(title, tuple(shown.notes)),
        sections=[*sections, reading],
        facts=[],
        seconds=shown.seconds,
        evidence=shown.evidence,
    )
    for number, (_, one) in enumerate([*figures, *pictures], 1):
        if isinstance(one, Drawn | bytes):
            save_figure(path.with_name(f"{path.stem}-figure{number}"), one)


def _own(heading: str, title: str, instead: str) -> str:
    """The page has its title once: a part of the same name gets a plain one."""
    return instead if title.startswith(heading) else heading
