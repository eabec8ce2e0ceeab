"""The one style: a name, a colour and a marker per defence, the same everywhere, and matplotlib's settings.

The colours follow Okabe and Ito (2008), which stay apart for readers with any of the common kinds of colour blindness,
darkened until text in them is readable (contrast at least 4.5), with three more for the paper's eight rows and two
baselines. Markers differ too, for print without colour. A defence and the same one with CEM share a colour and differ
in marker and line. In a page every colour is a CSS variable with a fallback, lighter on a dark background.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

INK, MUTED, GRID, PAPER = "#24292f", "#646d76", "#dde1e5", "#ffffff"
LINES = ("-", "--", "-.", ":")
_SERIES = ("#6b7178", "#c25400", "#0072b2", "#00805c", "#b04a86", "#8a6300", "#7048b0", "#0f7c8a", "#a8323e", "#7a5c48")
_DARK = ("#a9b1ba", "#f58a42", "#5ab3ec", "#3ecf9f", "#e59ac4", "#e0b13f", "#b9a0f2", "#4cc9d6", "#f07f88", "#c9a58c")
_MARKERS = ("*", "o", "s", "D", "^", "v", "P", "X", "h", "p")
_CEM_MARKERS = ("8", "P", "X", "d", "<", ">", "H", "p", "o", "s")
_SIZES = {"*": 15.0, "P": 9.0, "X": 9.0, "d": 8.5}  # thin shapes have to be larger to look as large

VARIABLES: dict[str, tuple[str, str]] = {
    "ink": (INK, "#e4e8ec"),
    "muted": (MUTED, "#9aa4ae"),
    "grid": (GRID, "#343b43"),
    "paper": (PAPER, "#14181c"),
    "soft": ("#f4f6f8", "#1d2329"),
    **{f"s{slot}": pair for slot, pair in enumerate(zip(_SERIES, _DARK, strict=True))},
}
"""CSS variable -> its light and its dark colour."""

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
_BY_LABEL = {label.casefold(): name for name, (label, _) in _KNOWN.items()}

_SETTINGS: Any = {
    **{"svg.fonttype": "none", "svg.hashsalt": "sfumato", "pdf.fonttype": 42},
    **{"font.family": "sans-serif", "font.size": 12.0, "text.color": INK, "figure.facecolor": "none"},
    **{"axes.edgecolor": GRID, "axes.labelcolor": INK, "axes.linewidth": 0.8, "axes.facecolor": "none"},
    **{"axes.grid": True, "axes.axisbelow": True, "grid.color": GRID, "grid.linewidth": 0.6},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.formatter.useoffset": False},
    **{"xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED},
    "lines.linewidth": 1.8,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Where a figure has to be built and saved: under our settings, whatever the reader's own settings are."""
    import matplotlib
    import matplotlib.style

    with matplotlib.style.context({}, after_reset=True), matplotlib.rc_context(_SETTINGS):
        yield


@dataclass(frozen=True)
class Style:
    """How one defence looks: its label, its series `s0` to `s9` and that colour, its marker, its kind of line."""

    label: str
    slot: int
    colour: str
    marker: str
    line: int = 0

    @property
    def size(self) -> float:
        """Of the marker, in points."""
        return _SIZES.get(self.marker, 6.5)


def label(name: str) -> str:
    """What readers see for a defence; an unknown name stays as it is.

    >>> label("noise_arl+cem")
    'Noise_ARL + CEM'
    """
    family, cem = _family(name)
    return (_KNOWN[family][0] if family in _KNOWN else family) + (" + CEM" if cem else "")


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style per name or label. Known defences always look the same; others share the colours that are left.

    Nine unknown families (`X`, `X+cem` and `X + CEM` are one) without a known one beside them have a colour each;
    beyond that colours repeat with other markers.

    >>> styles(["mine", "mine+cem"])["mine"].colour == styles(["mine", "mine+cem"])["mine+cem"].colour
    True
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
    """The name without `+cem` or ` + CEM`, short where it is known, and whether it had that end."""
    known = _BY_LABEL.get(name.casefold(), name)
    if known in _KNOWN:
        return known, False
    stem = name
    for end in ("+cem", " + CEM"):
        stem = stem.removesuffix(end)
    return (_BY_LABEL.get(stem.casefold(), stem), True) if stem and stem != name else (name, False)
