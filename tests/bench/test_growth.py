"""The picture of how the cost grows, and the exponents in it."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from growth import fitted_exponent, scaling_figure


def sweep(what: str, over: str, power: float) -> dict:
    values = (10, 20, 40)
    seconds = tuple(3e-4 * value**power for value in values)
    return {"what": what, "over": over, "values": values, "seconds": seconds, "exponent": power}


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(power):
    values = [3.0, 7.0, 50.0]
    assert fitted_exponent(values, [0.2 * value**power for value in values]) == pytest.approx(power)


def test_one_panel_per_operation_and_every_exponent_is_told():
    svg = scaling_figure(
        [sweep("loss", "batch", 0.5), sweep("refresh", "samples", 1.0), sweep("loss", "clusters", 0.0)]
    )
    root = ElementTree.fromstring(svg)
    text = " ".join(node.text or "" for node in root.iter() if node.text)
    for part in ("loss", "refresh", "batch: exponent 0.50", "samples: exponent 1.00", "clusters: exponent 0.00"):
        assert part in text
    assert "refresh over samples 10 to 40: exponent 1.00" in svg
