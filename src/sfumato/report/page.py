"""Templates to files: one environment in which everything is escaped that does not come from this package."""

from functools import cache
from pathlib import Path
from typing import Any

from sfumato.files import write_text
from sfumato.report.palette import VARIABLES, Style, styles
from sfumato.report.svg import inline

__all__ = ["render", "write_page"]

_EVIDENCE = {
    "device": "device",
    "threads": "threads",
    "precision": "precision",
    "python": "Python",
    "torch": "PyTorch",
    "sfumato": "Sfumato",
    "commit": "commit",
}


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render `template` and write it atomically."""
    write_text(path, render(template, **values))


def render(template: str, **values: Any) -> str:
    """The text of a page. Values are escaped; names ending in `_svg` are figures of ours and are not."""
    from markupsafe import Markup

    for name, value in values.items():
        if name.endswith("_svg") and value is not None:
            values[name] = Markup(inline(value))
    text: str = _environment().get_template(template).render(variables=VARIABLES, **values)
    return text


@cache
def _environment() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["style"] = _style
    environment.filters["evidence"] = _evidence
    return environment


def _style(name: str) -> Style:
    return styles([name])[name]


def _evidence(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """The entries in a fixed order, known ones first and under their proper names; unknown values are left out."""
    known = [(label, values[name]) for name, label in _EVIDENCE.items() if values.get(name) is not None]
    return known + [(name, values[name]) for name in sorted(set(values) - set(_EVIDENCE)) if values[name] is not None]
