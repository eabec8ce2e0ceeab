import math
import re
from xml.etree import ElementTree

import pytest

from sfumato.errors import ConfigError
from sfumato.report.chart import Curve, Fit, Point
from sfumato.report.figures import entropy_scatter

SVG = "{http://www.w3.org/2000/svg}"
DOTS = (Point(0.0, 0.01, note="σ² 0.01"), Point(5.0, 0.015, 0.5, 0.002, "σ² 0.1"), Point(10.0, 0.02, converged=False))


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def ticks(svg: str) -> dict[str, tuple[float, float]]:
    return {
        node.text: (float(node.get("x")), float(node.get("y")))
        for node in ElementTree.fromstring(svg).iter(f"{SVG}text")
        if node.get("x")
    }


def strokes(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """The corners of every line in a colour."""
    found = []
    for node in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if colour in node.get("style", "") and "fill: none" in node.get("style", ""):
            numbers = [float(word) for word in re.findall(r"-?\d+\.?\d*", node.get("d") or "")]
            found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def test_it_says_what_it_shows():
    svg = entropy_scatter(
        [Curve("noise_arl+cem", DOTS, fit=Fit(0.01, 0.069, 0.987))], key="fig3", errors="sd over seeds"
    )
    root = ElementTree.fromstring(svg)
    assert root.get("aria-labelledby") == "fig3-title fig3-description"
    words = root.find(f"{SVG}desc").text
    assert "Noise_ARL + CEM: σ² 0.01: H 0, MSE 0.0100" in words
    assert "σ² 0.1: H 5 ± 0.5, MSE 0.0150 ± 0.0020" in words
    assert "H 10, MSE 0.0200 (attack not converged); fitted 0.01 exp(0.069 H), R² 0.99. Bars: sd over seeds." in words
    for text in ("Noise_ARL + CEM", "0.01 exp(0.069 H), R² 0.99", "σ² 0.01", "σ² 0.1", "attacker's error (MSE)"):
        assert text in texts(svg)
    assert all(node.get("id", "fig3-").startswith("fig3-") for node in root.iter())


def test_dots_lie_where_the_axes_say():
    svg = entropy_scatter([Curve("noise", (Point(0.0, 0.01), Point(10.0, 0.04)))])
    low, high = [
        (float(node.get("x")), float(node.get("y")))
        for node in ElementTree.fromstring(svg).iter(f"{SVG}use")
        if "--s1" in node.get("style", "") and "--paper" in node.get("style", "")
    ]
    at = ticks(svg)
    assert (low[0], high[0]) == pytest.approx((at["0"][0], at["10"][0]), abs=0.01)
    assert low[1] - high[1] == pytest.approx(at["0.010"][1] - at["0.040"][1], abs=0.01)
    assert low[1] == pytest.approx(at["0.010"][1], abs=5)  # half the height of a digit


def test_the_fit_is_drawn_as_given():
    """a exp(b x) with a 0.01 and b log(2)/10 doubles from left to right and is sqrt(2) as high in the middle."""
    fitted = entropy_scatter([Curve("noise", DOTS, fit=Fit(0.01, math.log(2) / 10, 1.0))])
    curve = max(strokes(fitted, "--s1"), key=len)
    at = ticks(fitted)
    unit = (at["0.000"][1] - at["0.020"][1]) / 2  # of 0.01
    assert len(curve) == 101
    assert curve[0][1] - curve[-1][1] == pytest.approx(unit, rel=1e-3)
    assert curve[0][1] - curve[50][1] == pytest.approx(unit * (math.sqrt(2) - 1), rel=1e-3)
    assert all(len(stroke) < 5 for stroke in strokes(entropy_scatter([Curve("noise", DOTS)]), "--s1"))


def test_the_data_of_a_figure_hold_its_fit():
    svg = entropy_scatter([Curve("noise", DOTS, fit=Fit(0.01, 0.1, 0.9)), Curve("mine", DOTS[2:], "mine")])
    assert [(row["series"], row.get("R2")) for row in svg.rows] == [("noise alone", 0.9)] * 3 + [("mine", None)]
    assert (svg.rows[1]["H"], svg.rows[1]["a"], svg.rows[1]["b"]) == (5.0, 0.01, 0.1)


def test_entropies_in_the_hundreds_of_nats():
    svg = entropy_scatter(
        [Curve("noise", (Point(-900.0, 0.01), Point(-700.0, 0.02)), fit=Fit(0.00000123e250, 0.9, 1.0))]
    )
    assert "1.23·10²⁴⁴ exp(0.9 H), R² 1.00" in texts(svg)
    falling = Curve("noise", DOTS, fit=Fit(1.5e-5, -0.25, -0.5))
    assert "1.5·10⁻⁵ exp(−0.25 H), R² −0.50" in texts(entropy_scatter([falling]))


def test_several_series_have_their_own_look_and_one_without_a_name_needs_no_legend():
    svg = entropy_scatter([Curve("noise_nopeek+cem", DOTS), Curve("noise_arl+cem", DOTS, "arl, <λ 16>")])
    assert {"Noise_NoPeek + CEM", "arl, <λ 16>"} <= set(texts(svg))
    assert "--s1" in svg
    assert "--s2" in svg
    assert "noise alone" not in texts(entropy_scatter([Curve("noise", DOTS)]))


def test_an_unconverged_attack_is_hollow():
    hollow = "fill: var(--paper, #ffffff); stroke: var(--s1, #c25400)"
    assert hollow in entropy_scatter([Curve("noise", DOTS)])
    assert hollow not in entropy_scatter([Curve("noise", DOTS[:2])])


def test_the_same_input_gives_the_same_bytes():
    assert entropy_scatter([Curve("noise", DOTS)]) == entropy_scatter([Curve("noise", DOTS)])


def test_what_is_no_figure_is_refused():
    with pytest.raises(ConfigError, match="has no points; give at least one measured model"):
        entropy_scatter([Curve("noise", ())])
