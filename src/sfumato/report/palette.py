"""One name, one colour, one marker per defence, the same in every figure and table.

The colours follow Okabe and Ito (2008), which stay apart for readers with any of the common kinds of colour blindness,
darkened until text in them is readable (contrast at least 4.5). Markers differ too, for print without colour. Every
colour is written as a CSS variable with a fallback, so that a page can lighten it on a dark background.
"""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["GRID", "INK", "MUTED", "PAPER", "VARIABLES", "Style", "styles"]

INK, MUTED, GRID, PAPER = "#24292f", "#646d76", "#dde1e5", "#ffffff"
_SERIES = ("#6b7178", "#c25400", "#0072b2", "#00805c", "#b04a86", "#8a6300", "#7048b0")
_DARK_SERIES = ("#a9b1ba", "#f58a42", "#5ab3ec", "#3ecf9f", "#e59ac4", "#e0b13f", "#b9a0f2")
_MARKERS = ("*", "o", "s", "D", "^", "v", "P")

VARIABLES: dict[str, tuple[str, str, str]] = {
    "ink": (INK, "#e4e8ec", "text"),
    "muted": (MUTED, "#9aa4ae", "secondary text"),
    "grid": (GRID, "#343b43", "hairlines"),
    "paper": (PAPER, "#14181c", "background"),
    **{f"s{i}": (light, dark, "series") for i, (light, dark) in enumerate(zip(_SERIES, _DARK_SERIES, strict=True))},
}
"""CSS variable -> (light colour, dark colour, what it is for)."""

_KNOWN = {"none": ("no defence", 0), "noise": ("noise alone", 1), "noise+cem": ("noise + CEM", 2)}


@dataclass(frozen=True)
class Style:
    """How one defence looks.

    Attributes:
        label: what readers see.
        slot: which series colour, `s0` to `s6`.
        colour: the light colour of that slot.
        marker: of its points, in matplotlib's notation.
    """

    label: str
    slot: int
    colour: str
    marker: str


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style per name. `none`, `noise` and `noise+cem` always look the same; other names share the other colours."""
    result = {}
    free = len(_KNOWN)
    for name in sorted(set(names)):
        if name in _KNOWN:
            label, slot = _KNOWN[name]
        else:
            label, slot = name, free
            free = free + 1 if free + 1 < len(_SERIES) else len(_KNOWN)
        result[name] = Style(label, slot, _SERIES[slot], _MARKERS[slot])
    return result
