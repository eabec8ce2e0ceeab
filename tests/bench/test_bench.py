import json
import time

import pytest

from sfumato.bench import Row, run_bench, take_turns
from sfumato.errors import ConfigError


def test_ratios_of_known_durations():
    timings, ratio = take_turns({"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.005)}, rounds=5)
    assert 2.5 < ratio("slow", "fast") < 5
    assert ratio("fast", "slow") == pytest.approx(1 / ratio("slow", "fast"), rel=0.2)
    assert timings["slow"].rounds == 5
    assert timings["slow"].low <= timings["slow"].median <= timings["slow"].high


def test_targets_are_judged_in_their_own_direction():
    assert Row("a", 1.02, "b", 1.03).met is True
    assert Row("a", 1.04, "b", 1.03).met is False
    assert Row("a", 6.0, "b", 5.0, "at least").met is True
    assert Row("a", 4.0, "b", 5.0, "at least").met is False
    assert Row("a", 4.0, "b").met is None


@pytest.mark.slow
def test_a_quick_run_measures_everything_and_is_plain_data():
    seen: list[Row] = []
    result = run_bench(rounds=2, quick=True, tell=seen.append)
    json.dumps(result, allow_nan=False)
    assert len(result["rows"]) == len(seen) >= 25
    assert all(row["ratio"] > 0 for row in result["rows"])
    names = " ".join(row["name"] for row in result["rows"])
    for part in ("full (default)", "diagonal", "spherical", "throughput", "attack", "refresh", "memory", "EM"):
        assert part in names


def test_a_missing_scikit_learn_is_said_before_the_long_work(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"run `pip install 'sfumato\[bench\]'`"):
        run_bench(quick=True)
