"""One builder for every page: a headline, sections made of parts, the evidence; one file that needs nothing else.

A part is a macro of `templates/parts.html.j2`; everything in it is escaped that does not come from this package.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.files import write_text
from sfumato.report.cells import Table
from sfumato.report.drawn import Drawn
from sfumato.report.style import VARIABLES
from sfumato.report.verdict import Verdict

__all__ = ["Section", "evidence_list", "figure", "part", "table", "write_page"]

_EVIDENCE = {"python": "Python", "torch": "PyTorch", "sfumato": "Sfumato"}
_ORDER = ("device", "threads", "precision", "python", "torch", "sfumato", "commit")


class Section(NamedTuple):
    """A heading and the parts below it; `wide` lets it leave the column of text, for tables of many columns."""

    heading: str
    parts: Sequence[Any]
    wide: bool = False


def part(name: str, **values: Any) -> Any:
    """The macro `name` of the parts, as HTML."""
    return getattr(_environment().get_template("parts.html.j2").module, name)(**values)


def table(shown: Table) -> Any:
    """A table as a fragment: on a narrow page each row becomes a card, so that nothing is cut.

    The title is not in it but names the table for screen readers; the page has it as a heading.
    """
    return part("table", table=shown)


def figure(drawn: Drawn, caption: str) -> Any:
    """A figure and its caption, to which the figure adds what its bars and hollow points mean."""
    return part("figure", svg=drawn.inline, caption=" ".join(text for text in (caption, drawn.remarks) if text))


def evidence_list(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The entries in a fixed order, known ones first and under their proper names; unknown values are left out."""
    names = [*_ORDER, *sorted(set(values) - set(_ORDER))]
    return [(_EVIDENCE.get(name, name), values[name]) for name in names if values.get(name) is not None]


def write_page(
    path: Path,
    *,
    title: str,
    verdict: Verdict,
    sections: Iterable[Section | None],
    facts: Sequence[tuple[str, Any]],
    seconds: float,
    evidence: Mapping[str, Any],
    settings: Sequence[tuple[str, str]] = (),
) -> None:
    """Write one page atomically.

    Args:
        path: of the page.
        title: above the headline and in the browser's tab.
        verdict: the headline and its notes.
        sections: from top to bottom; None is left out.
        facts: names and values that stand before the evidence.
        seconds: what it all took.
        evidence: device, versions, commit.
        settings: (summary, text), folded away at the end.

    Raises:
        StorageError: the file could not be written.
    """
    text = _environment().get_template("base.html.j2").render(
        variables=VARIABLES,
        title=title,
        verdict=verdict,
        sections=[one for one in sections if one is not None],
        facts=[*facts, ("time", f"{seconds:.0f} s"), *evidence_list(evidence)],
        settings=settings,
    )  # fmt: skip
    write_text(path, text)


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
