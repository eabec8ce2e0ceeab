"""Table 9: the sizes of the paper's networks, and what the times are ratios of."""

from sfumato.report.tables import to_markdown
from sfumato.studies import Workspace
from sfumato.studies.efficiency import TimingTrial, efficiency_table
from sfumato.studies.plan import load_budget, load_spec


def test_sizes_are_the_papers_and_times_are_ratios(tmp_path):
    timing = TimingTrial(load_budget("smoke"), "cpu")
    assert (timing.key, timing.alone) == ("table9-smoke", True)
    measured = timing.measure(Workspace(tmp_path, tmp_path / "none.png"))
    others, patrol = measured["rows"]["others"], measured["rows"]["patrol"]
    assert others["encoder"]["parameters"] == 85_256
    assert others["decoder"]["parameters"] == 9_689_738
    assert measured["whole_parameters"] == 9_774_994
    assert patrol["encoder"]["parameters"] <= 85_256
    assert others["encoder"]["macs"] == 21_233_664
    assert round(others["encoder"]["macs_paper"] / 1e6, 1) == 21.9
    assert all(value > 0 for value in measured["ratio"].values())
    text = to_markdown(efficiency_table(load_spec("table9"), measured))
    assert "0.085" in text
    assert "9.690" in text
    assert "9.775 M; its cloud half has 9.69 M" in text
    assert all(half["milliseconds"] > 0 for row in measured["rows"].values() for half in row.values())
