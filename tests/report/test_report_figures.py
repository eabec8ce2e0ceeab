import csv
import io
from xml.etree import ElementTree

import matplotlib
import pytest
import torch

from sfumato.errors import ConfigError
from sfumato.report.chart import Curve, Point
from sfumato.report.drawn import save_figure
from sfumato.report.figures import information_curve, line_figure, trade_off
from sfumato.report.pictures import labelled_rows
from sfumato.report.style import VARIABLES, styles

SVG = "{http://www.w3.org/2000/svg}"
CURVES = (
    Curve("none", (Point(0.006, 0.986),)),
    Curve("noise", (Point(0.009, 0.972, 0.0005, 0.002, "σ 0.1"), Point(0.03, 0.9, note="σ 0.6"))),
    Curve("noise+cem", (Point(0.013, 0.98, note="λ 0.1"), Point(0.024, 0.973, note="λ 1", emphasis=True))),
)


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_trade_off_is_well_formed_and_says_what_it_shows():
    svg = trade_off(CURVES, errors="standard deviation over seeds")
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert set(root.attrib) == {"viewBox", "role", "aria-labelledby", "style"}  # scales: no width, no height
    written = texts(svg)
    for text in ("no defence", "noise alone", "noise + CEM", "σ 0.1", "σ 0.6", "λ 0.1", "λ 1"):
        assert text in written
    title, description = root.find(f"{SVG}title"), root.find(f"{SVG}desc")
    assert root.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"
    assert "λ 1: MSE 0.0240, accuracy 97.3 %" in description.text
    assert "Bars: standard deviation over seeds." in svg.remarks
    assert svg.remarks in description.text


def test_a_figure_is_the_same_each_time_whatever_the_users_settings():
    first = trade_off(CURVES), information_curve({"noise+cem": [40, 9]})
    theirs = {
        "font.size": 30,
        "svg.fonttype": "path",
        "axes.grid": False,
        "axes.spines.left": False,
        "xtick.direction": "in",
    }
    with matplotlib.rc_context(theirs):
        assert (trade_off(CURVES), information_curve({"noise+cem": [40, 9]})) == first
    assert "Date" not in first[0]
    assert "<style" not in first[0]  # its rules would reach the whole page


def test_colours_are_variables_with_the_light_colour_as_fallback():
    svg = trade_off(CURVES)
    for slot, colour in ((0, "#6b7178"), (1, "#c25400"), (2, "#0072b2")):
        assert f"var(--s{slot}, {colour})" in svg
    assert svg.count("#0072b2") == svg.count("var(--s2, #0072b2)")
    assert "#000000" not in svg  # would vanish on a dark page


def test_ids_begin_with_the_key_and_every_reference_has_its_target():
    svg = trade_off(CURVES, key="left")
    root = ElementTree.fromstring(svg)
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids))
    assert all(name.startswith("left-") for name in ids)
    targets = {node.get("href")[1:] for node in root.iter() if node.get("href")}
    targets |= {node.get("clip-path")[5:-1] for node in root.iter() if node.get("clip-path")}
    assert targets
    assert set(ids) == targets | {"left-title", "left-description"}


def test_names_are_never_markup_formula_or_hidden():
    svg = trade_off([Curve("$x$", (Point(0.01, 0.9),)), Curve("_<b>&", (Point(0.02, 0.8, note="<i>$y$"),))])
    assert {"$x$", "_<b>&", "<i>$y$"} <= set(texts(svg))
    assert "<b>" not in svg


def test_a_collapsed_run_is_named_instead_of_flattening_the_rest():
    svg = trade_off([*CURVES, Curve("noise+cem", (Point(0.06, 0.1, note="λ 10"),))])
    assert "Too low for the figure: noise + CEM, λ 10: MSE 0.0600, accuracy 10.0 %." in svg.remarks
    assert "10" not in texts(svg)  # no tick of the axis down there
    assert svg.rows[-1]["accuracy"] == 0.1
    assert "Too low" not in trade_off(CURVES).remarks


def test_the_attacker_without_a_feature_is_a_line_unless_far_away():
    assert "answering with the mean image" in texts(trade_off(CURVES, reference=0.05))
    assert "answering with the mean image" not in texts(trade_off(CURVES, reference=0.5))


def test_a_floor_is_named_where_it_is_and_not_beyond_the_axes():
    assert "floor 95.0 %" in texts(trade_off(CURVES, floor=0.95))
    assert "floor 20.0 %" not in texts(trade_off(CURVES, floor=0.2))
    assert "floor 20.0 %: accuracy 20.0 %" in trade_off(CURVES, floor=0.2)


def spans(svg: str) -> list[tuple[float, float]]:
    """Width and height of every stroke that is one straight piece in the colour of noise alone."""
    found = []
    for node in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        words = (node.get("d") or "").split()
        if len(words) == 6 and "--s1" in node.get("style", ""):
            x0, y0, x1, y1 = (float(words[index]) for index in (1, 2, 4, 5))
            found.append((abs(x1 - x0), abs(y1 - y0)))
    return found


def test_error_bars_have_their_length():
    """Against the ticks: a bar of ± 0.005 is as wide as one step of 0.01, one of ± 1 point as high as 2 points."""
    point = Point(0.02, 0.9, 0.005, 0.01)
    svg = trade_off([Curve("noise", (point,)), Curve("none", (Point(0.04, 0.86),))])
    ticks = {
        node.text: (float(node.get("x")), float(node.get("y")))
        for node in ElementTree.fromstring(svg).iter(f"{SVG}text")
        if node.get("x")
    }
    step_x = ticks["0.02"][0] - ticks["0.01"][0]
    step_y = ticks["88"][1] - ticks["90"][1]
    bars = sorted(span for span in spans(svg) if max(span) > 4.5)  # the rest are caps
    assert bars == [pytest.approx((0, step_y), abs=0.01), pytest.approx((step_x, 0), abs=0.01)]


def test_an_unconverged_attack_is_hollow():
    solid = trade_off([Curve("noise", (Point(0.01, 0.9),))])
    hollow = trade_off([Curve("noise", (Point(0.01, 0.9, converged=False),))])
    assert "fill: var(--paper, #ffffff); stroke: var(--s1, #c25400)" in hollow
    assert "fill: var(--paper, #ffffff); stroke: var(--s1, #c25400)" not in solid
    assert "(attack not converged)" in hollow
    assert "Hollow points rest on an attack that had not converged" in hollow.remarks
    assert solid.remarks == ""  # neither bars nor hollow points: nothing to explain


def test_information_has_a_logarithmic_axis_only_where_it_spans_much():
    narrow = information_curve({"noise+cem": [40.0, 20.0, 9.2]})
    wide = information_curve({"noise+cem": [400.0, 20.0, 9.2], "other": [300.0, 5.0, 3.0]})
    assert "0" in texts(narrow)
    assert "9.2" in texts(narrow)
    assert "0" not in texts(wide)
    assert "other" in texts(wide)
    assert "noise + CEM: epoch of training 1, information bound 400, " in wide
    assert "0" in texts(information_curve({"noise+cem": [400.0, 0.0]}))  # zero has no logarithm


@pytest.mark.parametrize(("values", "zero"), [((73.0, 86.0), False), ((3.0, 86.0), True)])
def test_curves_far_above_zero_are_not_squeezed_against_the_top(values, zero):
    points = tuple(Point(30.0 + index, value) for index, value in enumerate(values))
    drawn = line_figure([Curve("CEM", points)], ("identified, %", "accuracy, %"), key="k", title="t")
    assert ("0" in texts(drawn)) == zero


def test_one_epoch_is_a_point():
    assert "<use" in information_curve({"noise+cem": [3.0]})


def test_nothing_to_draw_is_refused():
    with pytest.raises(ConfigError, match="has no points; give at least one measured setting"):
        trade_off([Curve("noise", ())])
    with pytest.raises(ConfigError, match="no run has a history"):
        information_curve({"noise": []})


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_colour_is_readable_by_the_web_guidelines(dark):
    paper = luminance(VARIABLES["paper"][dark])
    for name, pair in VARIABLES.items():
        if name not in ("paper", "grid", "soft"):
            low, high = sorted((luminance(pair[dark]), paper))
            assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_known_defences_keep_their_look_and_others_differ():
    looks = styles(["noise+cem", "b", "a", "none", "noise"])
    assert [looks[name].slot for name in ("none", "noise", "noise+cem", "a", "b")] == [0, 1, 2, 3, 4]
    assert len({look.marker for look in looks.values()}) == 5
    assert styles(["noise+cem"])["noise+cem"] == looks["noise+cem"]
    assert len(styles([str(number) for number in range(20)])) == 20


def test_a_figure_is_saved_for_a_paper_with_its_data(tmp_path):
    curves = [Curve("noise", (Point(0.0123456, 0.9, 0.001, note="σ 1"), Point(0.02, 0.8, converged=False)))]
    for folder in ("one", "two"):
        paths = save_figure(tmp_path / folder / "fig.4", trade_off(curves))
        assert [path.name for path in paths] == ["fig.4.svg", "fig.4.csv", "fig.4.pdf"]
    one, two = ([(tmp_path / folder / path.name).read_bytes() for path in paths] for folder in ("one", "two"))
    assert one == two
    svg, table, pdf = one
    assert ElementTree.fromstring(svg).tag == f"{SVG}svg"
    assert pdf.startswith(b"%PDF")
    first, second = csv.DictReader(io.StringIO(table.decode()))
    assert (first["series"], first["setting"], float(first["MSE"]), float(first["MSE bar"])) == (
        "noise alone",
        "σ 1",
        0.0123456,
        0.001,
    )
    assert (float(second["accuracy"]), second["accuracy bar"], second["converged"]) == (0.8, "", "False")


def test_a_picture_is_saved_as_png_and_pdf(tmp_path):
    png = labelled_rows({"original": torch.rand(2, 1, 8, 8)})
    paths = save_figure(tmp_path / "strip", png)
    assert [path.suffix for path in paths] == [".png", ".pdf"]
    assert paths[0].read_bytes() == png
    assert paths[1].read_bytes().startswith(b"%PDF")
    again = paths[1].read_bytes()
    save_figure(tmp_path / "strip", png)
    assert paths[1].read_bytes() == again
