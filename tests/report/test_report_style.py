"""The looks of the paper's rows, and figures with many curves."""

from xml.etree import ElementTree

import pytest

from sfumato.report.chart import Curve, Point
from sfumato.report.figures import trade_off
from sfumato.report.style import label, styles

SVG = "{http://www.w3.org/2000/svg}"
ROWS = (
    *("none", "bottleneck", "distcorr", "dropout", "patrol", "ressfl", "noise_nopeek", "noise_arl"),
    *("later_cut", "label_smoothing"),
)


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("none", "no defence"),
        ("noise_nopeek", "Noise_NoPeek"),
        ("noise_arl+cem", "Noise_ARL + CEM"),
        ("later_cut+cem", "later cut + CEM"),
        ("noise+cem", "noise + CEM"),
        ("mine", "mine"),
        ("mine+cem", "mine + CEM"),
        ("+cem", "+cem"),
        ("", ""),
        ("Noise_ARL + CEM", "Noise_ARL + CEM"),  # a label is as good as a name
        ("later Cut", "later cut"),
        ("mine + CEM", "mine + CEM"),
    ],
)
def test_labels(name, seen):
    assert label(name) == seen
    assert styles([name])[name].label == seen


def test_every_row_of_the_paper_has_a_colour_and_every_curve_a_look_of_its_own():
    looks = styles([name + end for name in ROWS for end in ("", "+cem")])
    assert len({looks[name].slot for name in ROWS}) == 10
    assert len({(look.slot, look.marker) for look in looks.values()}) == 20
    assert len({looks[name].marker for name in ROWS}) == 10  # apart without colour too
    assert len({looks[f"{name}+cem"].marker for name in ROWS}) == 10
    for name in ROWS:
        assert looks[name].colour == looks[f"{name}+cem"].colour
        assert (looks[name].line, looks[f"{name}+cem"].line) == (0, 1)
        assert styles([f"{name}+cem"])[f"{name}+cem"] == looks[f"{name}+cem"]


def test_a_defence_of_ones_own_keeps_its_colour_with_cem_and_takes_no_known_one():
    looks = styles(["noise_arl", "bottleneck", "mine", "mine+cem", "other"])
    assert looks["mine"].slot == looks["mine+cem"].slot
    assert looks["mine"].marker != looks["mine+cem"].marker
    assert len({looks[name].slot for name in ("noise_arl", "bottleneck", "mine", "other")}) == 4


def test_pairs_named_by_their_labels_share_a_colour():
    looks = styles(["Noise_ARL", "Noise_ARL + CEM", "mine", "mine + CEM"])
    assert looks["Noise_ARL"] == styles(["noise_arl"])["noise_arl"]
    for name in ("Noise_ARL", "mine"):
        assert looks[name].slot == looks[f"{name} + CEM"].slot
        assert (looks[name].line, looks[f"{name} + CEM"].line) == (0, 1)
    assert looks["mine"].slot != looks["Noise_ARL"].slot


def test_nine_unknown_names_have_nine_colours_and_more_repeat_them_with_other_markers():
    assert len({look.slot for look in styles(map(str, range(9))).values()}) == 9
    looks = styles([f"{number:02}" for number in range(18)])
    assert len({(look.slot, look.marker) for look in looks.values()}) == 18
    full = styles([*ROWS, "mine"])  # every colour is taken
    assert len({(look.slot, look.marker) for look in full.values()}) == 11


def six(names: list[str], legend: list[str] | None = None) -> str:
    points = (Point(0.01, 0.6, note="σ² 0.01"), Point(0.02, 0.55, note="σ² 0.5"))
    return trade_off([Curve(name, points, (legend or names)[index]) for index, name in enumerate(names)])


def height(svg: str) -> float:
    return float(ElementTree.fromstring(svg).get("viewBox").split()[3])


def test_six_curves_with_names_of_their_own():
    """As in Figure 4c: three cuts, with and without CEM."""
    cuts = [f"cut {number}{end}" for number in (1, 2, 3) for end in ("", "+cem")]
    svg = six(cuts, [f"Noise_ARL, {name}" for name in cuts])
    written = [node.text for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {f"Noise_ARL, {name}" for name in cuts} <= set(written)
    assert svg.count("stroke-dasharray") == 6  # three lines, and the same three in the legend
    assert len({slot for slot in range(10) if f"--s{slot}," in svg}) == 3


def test_a_long_legend_makes_the_figure_higher_not_the_axes_lower():
    names = [f"λ = {number}" for number in range(6)]
    long = [f"Noise_ARL + CEM, cut 2, σ² 0.01, λ = {number}" for number in range(6)]
    assert height(six(names[:4])) == height(six(names[:1])) == pytest.approx(4.1 * 72)
    assert height(six(names)) == pytest.approx((4.1 + 0.26) * 72)  # three lines of two names
    assert height(six(names, long)) == pytest.approx((4.1 + 4 * 0.26) * 72)  # six lines of one name
