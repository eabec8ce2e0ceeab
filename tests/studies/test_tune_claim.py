"""`benchmarks/tune_claim.py`: does the search keep its promise? Its figures are what they say."""

import sys
from pathlib import Path

import pytest

from sfumato.studies import BASELINE, Setting, Space
from sfumato.studies.space import Training

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from tune_claim import judge_seed, summarise


def test_the_claims_figures_are_what_they_say():
    space = Space(noise_stds=(0.1,), lams=(0.5,), folds=2, baselines=1, draws=1)

    def record(right, error):
        fresh = {"draws": 1, "right": right, "selecting": "0101", "error_selecting": error, "error_confirming": error}
        return {"fresh": fresh | {"strongest": "ridge", "attacks": {}, "leakage": {}}}

    records = {Training(BASELINE, f): record("1111", 0.01) for f in range(2)}
    records |= {Training(Setting(0.1), f): record("1111", 0.03) for f in range(2)}
    records |= {Training(Setting(0.1, 0.5), f): record("1110", 0.05) for f in range(2)}
    good = judge_seed(records, space, {"noise_std": 0.1, "lam": 0.0}, whole=True)
    assert (good["met"], good["lost"], good["kept"]) == (True, 0.0, 1.0)  # the stronger one breaks the floor
    bad = judge_seed(records, space, {"noise_std": 0.1, "lam": 0.5}, whole=True)
    assert (bad["met"], bad["lost"], bad["lost_each"]) == (False, 0.25, [0.25, 0.25])
    none = judge_seed(records, space, None, whole=True)
    assert none["kept"] == 0.0
    lines = [{"seed": i, "status": "found", "trainings": 10} | line for i, line in enumerate((good, bad))]
    summary = summarise([*lines, {"seed": 2, "status": "none", "trainings": 20} | none])
    assert (summary["seeds"], summary["found"], summary["met"], summary["mean_lost"]) == (3, 2, 1, 0.125)
    assert summary["mean_kept"] == pytest.approx((1 + 0.05 / 0.03 + 0) / 3)
