"""From a matplotlib figure to SVG that can stand inside a page: text as text, colours as variables, stable bytes."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from sfumato.report.palette import GRID, INK, MUTED, VARIABLES

__all__ = ["drawing", "inline", "to_svg"]

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sfumato",
    "font.family": "sans-serif",
    "font.size": 11.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 11.0,
    "ytick.labelsize": 11.0,
    "lines.linewidth": 1.8,
    "lines.markersize": 6.0,
}
_NAMESPACE = ' xmlns="http://www.w3.org/2000/svg"'
_VARIABLE = {light: f"var(--{name}, {light})" for name, (light, _, _) in VARIABLES.items()}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r"#([\w.-]+)")


@contextmanager
def drawing() -> Iterator[None]:
    """Where a figure has to be built: under our settings, whatever the reader's own matplotlib settings are."""
    import matplotlib
    import matplotlib.style

    with matplotlib.style.context({}, after_reset=True), matplotlib.rc_context(_SETTINGS):
        yield


def to_svg(figure: Any, *, key: str, title: str, description: str) -> str:
    """The figure as an SVG element that scales with its surroundings.

    Colours of the palette become CSS variables with the light colour as fallback, fonts are those of the page, and
    the same figure gives the same bytes.

    Args:
        figure: a `matplotlib.figure.Figure`, built inside `drawing()`.
        key: begins every id, so that several figures can share a page.
        title: read out by screen readers, shown as a tooltip.
        description: what the figure shows, for those who cannot see it.
    """
    stream = io.StringIO()
    with drawing():
        figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(stream.getvalue())
    referenced = {name for node in root.iter() for value in node.attrib.values() for name in _REFERENCE.findall(value)}
    for node in root.iter():
        node.tag = _local(node.tag)
        node.attrib = {_local(name): value for name, value in node.attrib.items()}
        if node.get("id") not in referenced:
            node.attrib.pop("id", None)
        for name, value in node.attrib.items():
            node.attrib[name] = _rewritten(name, value, key)
    # matplotlib's style sheet addresses `*`; inside a page that would be every element of the page.
    for parent in list(root.iter("defs")):
        for sheet in parent.findall("style"):
            parent.remove(sheet)
    box = root.get("viewBox", "")
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": box,
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-description",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    for name, text in (("description", description), ("title", title)):
        element = ElementTree.Element("desc" if name == "description" else "title", {"id": f"{key}-{name}"})
        element.text = text
        root.insert(0, element)
    return ElementTree.tostring(root, encoding="unicode")


def inline(svg: str) -> str:
    """The element for use inside an HTML page, which needs no namespace."""
    return svg.replace(_NAMESPACE, "", 1)


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _rewritten(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name in ("href", "clip-path"):
        return _REFERENCE.sub(rf"#{key}-\1", value)
    if name == "style":
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
        return _COLOUR.sub(lambda found: _VARIABLE.get(found[0], found[0]), value)
    return " ".join(value.split()) if name == "d" else value
