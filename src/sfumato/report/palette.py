"""One name, one colour, one marker per defence, the same in every figure and table.

The colours follow Okabe and Ito (2008), which stay apart for readers with any of the common kinds of colour blindness,
darkened until text in them is readable (contrast at least 4.5), with three more for the paper's eight rows and two
baselines. Markers differ too, for print without colour. A defence and the same one with CEM (`X` and `X+cem`) share a
colour and differ in marker and line. Every colour is written as a CSS variable with a fallback, so that a page can
lighten it on a dark background.
"""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["GRID", "INK", "MUTED", "PAPER", "VARIABLES", "Style", "label", "styles"]

INK, MUTED, GRID, PAPER = "#24292f", "#646d76", "#dde1e5", "#ffffff"
_SERIES = (
    *("#6b7178", "#c25400", "#0072b2", "#00805c", "#b04a86", "#8a6300", "#7048b0"),
    *("#0f7c8a", "#a8323e", "#7a5c48"),
)
_DARK_SERIES = (
    *("#a9b1ba", "#f58a42", "#5ab3ec", "#3ecf9f", "#e59ac4", "#e0b13f", "#b9a0f2"),
    *("#4cc9d6", "#f07f88", "#c9a58c"),
)
_MARKERS = ("*", "o", "s", "D", "^", "v", "P", "X", "h", "p")
_CEM_MARKERS = ("8", "P", "X", "d", "<", ">", "H", "p", "o", "s")
_CEM = "+cem"

VARIABLES: dict[str, tuple[str, str, str]] = {
    "ink": (INK, "#e4e8ec", "text"),
    "muted": (MUTED, "#9aa4ae", "secondary text"),
    "grid": (GRID, "#343b43", "hairlines"),
    "paper": (PAPER, "#14181c", "background"),
    **{f"s{i}": (light, dark, "series") for i, (light, dark) in enumerate(zip(_SERIES, _DARK_SERIES, strict=True))},
}
"""CSS variable -> (light colour, dark colour, what it is for)."""

_KNOWN = {
    "none": ("no defence", 0),
    "noise": ("noise alone", 1),
    "noise+cem": ("noise + CEM", 2),  # the demo's pair is told apart by colour
    "noise_nopeek": ("Noise_NoPeek", 1),
    "noise_arl": ("Noise_ARL", 2),
    "bottleneck": ("Bottleneck", 3),
    "distcorr": ("DistCorr", 4),
    "dropout": ("Dropout", 5),
    "patrol": ("PATROL", 6),
    "ressfl": ("ResSFL", 7),
    "later_cut": ("later cut", 8),
    "label_smoothing": ("label smoothing", 9),
}


@dataclass(frozen=True)
class Style:
    """How one defence looks.

    Attributes:
        label: what readers see.
        slot: which series colour, `s0` to `s9`.
        colour: the light colour of that slot.
        marker: of its points, in matplotlib's notation.
        line: which kind of line joins them, 0 for a solid one.
    """

    label: str
    slot: int
    colour: str
    marker: str
    line: int = 0


def label(name: str) -> str:
    """What readers see for a defence: `noise_arl+cem` is `Noise_ARL + CEM`; an unknown name stays as it is."""
    family, cem = _family(name)
    return (_KNOWN[family][0] if family in _KNOWN else family) + (" + CEM" if cem else "")


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style per name. Known defences always look the same; others share the colours that are left.

    Nine unknown families (`X` and `X+cem` are one) without a known one beside them have a colour each; beyond that
    colours repeat with other markers.
    """
    unique = sorted(set(names))
    families = sorted({_family(name)[0] for name in unique})
    taken = {_KNOWN[family][1] for family in families if family in _KNOWN}
    every = [*range(3, len(_SERIES)), 1, 2]
    free = [slot for slot in every if slot not in taken]
    first = 0 if free else len(every)  # where every colour is taken, the markers have to differ
    free = free or every
    places = {family: (_KNOWN[family][1], 0) for family in families if family in _KNOWN}
    for index, family in enumerate((family for family in families if family not in _KNOWN), start=first):
        places[family] = (free[index % len(free)], index // len(free))
    result = {}
    for name in unique:
        family, cem = _family(name)
        slot, turn = places[family]
        markers = _CEM_MARKERS if cem else _MARKERS
        result[name] = Style(label(name), slot, _SERIES[slot], markers[(slot + turn) % len(markers)], int(cem))
    return result


def _family(name: str) -> tuple[str, bool]:
    """The name without `+cem`, and whether it was there."""
    if name in _KNOWN or not name.removesuffix(_CEM):
        return name, False
    return name.removesuffix(_CEM), name.endswith(_CEM)
