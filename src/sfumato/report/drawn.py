"""A finished figure: SVG that can stand inside a page or alone, and the same as PDF and as CSV."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sfumato.files import write_atomic
from sfumato.report.style import VARIABLES, drawing

_VARIABLE = {light: f"var(--{name}, {light})" for name, (light, _) in VARIABLES.items()}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_REFERENCE = re.compile(r"#([\w.-]+)")


class Drawn(str):
    """A figure as an SVG element, with what it was made from.

    Attributes:
        figure: the `matplotlib.figure.Figure`.
        rows: its data, one mapping per point.
        remarks: sentences for its caption on what only some figures have, such as hollow points.
    """

    figure: Any
    rows: Sequence[Mapping[str, Any]]
    remarks: str


def to_svg(
    figure: Any,
    *,
    key: str,
    title: str,
    description: str,
    rows: Sequence[Mapping[str, Any]] = (),
    remarks: str = "",
) -> Drawn:
    """The figure as an SVG element that scales with its surroundings.

    Colours of the style become CSS variables with the light colour as fallback, fonts are those of the page, and the
    same figure gives the same bytes.
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
    for parent in list(root.iter("defs")):  # matplotlib's style sheet would address every element of the page
        for sheet in parent.findall("style"):
            parent.remove(sheet)
    root.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": root.get("viewBox", ""),
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-description",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    for tag, name, text in (("desc", "description", description), ("title", "title", title)):
        element = ElementTree.Element(tag, {"id": f"{key}-{name}"})
        element.text = text
        root.insert(0, element)
    drawn = Drawn(ElementTree.tostring(root, encoding="unicode"))
    drawn.figure, drawn.rows, drawn.remarks = figure, rows, remarks
    return drawn


def save_figure(stem: Path, figure: Drawn | bytes) -> list[Path]:
    """Write a figure for a paper: `stem` with .svg, .pdf and .csv (its data, unrounded); a PNG as .png and .pdf.

    Raises:
        StorageError: a file could not be written.
    """
    stream = io.BytesIO()
    if isinstance(figure, bytes):
        from PIL import Image

        Image.open(io.BytesIO(figure)).convert("RGB").save(
            stream, "PDF", resolution=150.0, creationDate=None, modDate=None
        )
        files: dict[str, bytes | str] = {"png": figure}
    else:
        with drawing():
            figure.figure.savefig(stream, format="pdf", metadata={"CreationDate": None})
        table = io.StringIO()
        heads = dict.fromkeys(name for row in figure.rows for name in row)
        writer = csv.DictWriter(table, list(heads), lineterminator="\n")
        writer.writeheader()
        writer.writerows(figure.rows)
        files = {"svg": str(figure), "csv": table.getvalue()}
    paths = []
    for suffix, content in {**files, "pdf": stream.getvalue()}.items():
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        data = content.encode() if isinstance(content, str) else content
        write_atomic(paths[-1], partial(Path.write_bytes, data=data))
    return paths


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
