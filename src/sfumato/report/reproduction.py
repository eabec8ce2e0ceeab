"""The page of `sfumato reproduce`: tables and figures of the paper, ours beside the published ones."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.page import write_page
from sfumato.report.tables import Table, to_html
from sfumato.report.verdict import Verdict

__all__ = ["write_reproduction_page"]

_PNG = b"\x89PNG\r\n\x1a\n"
_ID = re.compile(r'\bid="([^"]*)"')


def write_reproduction_page(
    path: Path,
    *,
    title: str,
    tables: Sequence[Table] = (),
    figures: Sequence[tuple[str, str]] = (),
    pictures: Sequence[tuple[str, bytes]] = (),
    notes: Sequence[str] = (),
    evidence: Mapping[str, Any],
    seconds: float,
) -> None:
    """Write tables, figures and pictures as one HTML file that needs nothing else: no network, no scripts.

    Args:
        path: of the page.
        title: what the page says first, such as `Table 1 at budget lite: ours beside the published numbers`.
        tables: each under its title.
        figures: (caption, inline SVG of this package), each made with a `key` of its own. The first line of a
            caption is the heading, the rest stands below.
        pictures: (caption, PNG), likewise.
        notes: what has to be known first: budget, seeds, data, how much is done.
        evidence: device, versions, commit.
        seconds: wall time of all runs together.

    Raises:
        ConfigError: there is nothing to show, a picture is no PNG, or two figures have the same key.
        StorageError: the file could not be written.
    """
    if not (tables or figures or pictures):
        raise ConfigError("the page has neither a table nor a figure; run an experiment before writing it")
    ids = [name for _, svg in figures for name in _ID.findall(svg)]
    if len(set(ids)) < len(ids):
        raise ConfigError("two figures of the page have the same key; draw each with a key of its own")
    parts: list[dict[str, Any]] = [
        {"heading": table.title, "table": to_html(table), "broad": len(table.columns) > 3} for table in tables
    ]
    for caption, svg in figures:
        parts.append({"svg": svg, **_headed(caption)})
    for caption, png in pictures:
        if not png.startswith(_PNG):
            raise ConfigError(f"the picture '{_headed(caption)['heading']}' is no PNG; pass the bytes of one")
        uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
        parts.append({"uri": uri, "alt": caption.replace("\n", ". "), **_headed(caption)})
    write_page(
        path,
        "reproduction.html.j2",
        title=title,
        verdict=Verdict(title, tuple(notes)),
        parts=parts,
        compared=any(table.is_compared(index) for table in tables for index in range(len(table.columns))),
        seconds=seconds,
        evidence=dict(evidence),
    )


def _headed(caption: str) -> dict[str, str]:
    heading, _, rest = caption.partition("\n")
    return {"heading": heading, "caption": rest}
