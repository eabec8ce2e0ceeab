"""One builder for every page: a headline, sections made of parts, the evidence; one file that needs nothing else.

A part is a macro of `templates/parts.html.j2`; everything in it is escaped that does not come from this package.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sfumato.files import write_text
from sfumato.report.drawn import Drawn
from sfumato.report.style import VARIABLES
from sfumato.report.tables import Table
from sfumato.report.verdict import Verdict

CONVERGED = "had converged: its error on held-out images no longer fell notably."
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


def figure(svg: str, caption: str) -> Any:
    """A figure of this package and its caption, to which the figure adds what its bars and hollow points mean."""
    remarks = svg.remarks if isinstance(svg, Drawn) else ""
    inline = svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)  # HTML needs no namespace
    return part("figure", svg=inline, caption=" ".join(text for text in (caption, remarks) if text))


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
    """Write one page atomically: a headline, sections (None is left out), facts and evidence, settings folded away."""
    shown = [one for one in sections if one is not None]
    every = [*facts, ("time", f"{seconds:.0f} s"), *evidence_list(evidence)]
    values = {"title": title, "verdict": verdict, "sections": shown, "facts": every, "settings": settings}
    write_text(path, _environment().get_template("base.html.j2").render(variables=VARIABLES, **values))


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
