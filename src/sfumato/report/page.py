"""Templates to files: one environment in which everything is escaped that does not come from this package."""

from functools import cache
from pathlib import Path
from typing import Any

from sfumato.files import write_text
from sfumato.report.palette import VARIABLES
from sfumato.report.svg import inline

__all__ = ["write_page"]

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
    """Render `template` with `values`, escaped unless the template says otherwise, and write the page atomically."""
    text = _environment().get_template(template).render(variables=VARIABLES, **values)
    write_text(path, text)


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
    environment.filters["evidence"] = _evidence
    environment.filters["inline"] = inline
    return environment


def _evidence(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """The entries in a fixed order, known ones first and under their proper names; unknown values are left out."""
    known = [(label, values[name]) for name, label in _EVIDENCE.items() if values.get(name) is not None]
    return known + [(name, values[name]) for name in sorted(set(values) - set(_EVIDENCE)) if values[name] is not None]
