"""Table 9: the sizes of the paper's networks, and what the times are ratios of."""

import pytest
import torch

from sfumato.experiments.budget import load_budget, load_spec
from sfumato.experiments.efficiency import efficiency_table, measure_efficiency
from sfumato.report.tables import to_markdown


def test_sizes_are_the_papers_and_times_are_ratios():
    budget = load_budget("smoke")
    measured = measure_efficiency(budget, torch.device("cpu"))
    others, patrol = measured["rows"]["others"], measured["rows"]["patrol"]
    assert others["encoder"]["parameters"] == 85_256
    assert others["decoder"]["parameters"] == 9_689_738
    assert measured["whole_parameters"] == 9_774_994
    assert patrol["encoder"]["parameters"] <= 85_256
    assert others["encoder"]["macs"] == 21_233_664
    assert round(others["encoder"]["macs_paper"] / 1e6, 1) == 21.9
    assert all(value > 0 for value in measured["ratio"].values())
    text = to_markdown(efficiency_table(load_spec("table9"), budget, measured))
    assert "0.085" in text
    assert "9.690" in text
    assert "9.775 M; its cloud half has 9.69 M" in text
    assert measured["rows"]["others"]["decoder"]["milliseconds"] == pytest.approx(
        measured["rows"]["patrol"]["decoder"]["milliseconds"], rel=3
    )
