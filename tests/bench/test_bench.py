import json
import sys
from pathlib import Path

import pytest

from sfumato.bench import Ratio, take_turns

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from scoreboard import measure


def test_ratios_of_known_durations(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("sfumato.bench.timing.time.perf_counter", lambda: clock[0])
    order = []

    def taking(name, *seconds):
        left = list(seconds)

        def call():
            order.append(name)
            clock[0] += left.pop(0)

        return call

    variants = {"slow": taking("slow", 9, 9, 2, 4, 40), "fast": taking("fast", 9, 9, 1, 1, 8)}
    timings, ratio = take_turns(variants, rounds=3)
    assert (ratio("slow", "fast"), ratio("fast", "slow")) == (4, 1 / 4)  # the median of 2, 4 and 5
    assert timings == {"slow": 4, "fast": 1}
    assert order[:4] == ["fast", "slow", "slow", "fast"]


def test_targets_are_judged_in_their_own_direction():
    assert Ratio("a", 1.02, "b", 1.03).met is True
    assert Ratio("a", 1.04, "b", 1.03).met is False
    assert Ratio("a", 6.0, "b", 5.0, "at least").met is True
    assert Ratio("a", 4.0, "b", 5.0, "at least").met is False
    assert Ratio("a", 4.0, "b").met is None


@pytest.mark.slow
def test_a_quick_run_measures_everything_that_the_page_on_speed_shows_as_plain_data(capsys):
    found = measure(2, quick=True)
    stored = json.loads((Path(__file__).parents[2] / "results" / "bench.json").read_text())
    json.dumps(found, allow_nan=False)
    assert found.keys() == stored.keys()
    assert all(row["ratio"] > 0 for row in found["rows"])
    assert capsys.readouterr().err.count(" x ") >= len(found["rows"])  # each is told as it comes
    names = [{row["name"].split(",")[0] for row in result["rows"]} for result in (stored, found)]
    sized = {"diagonal EM", "warm refresh", "attack step", "a batch of 128 augmented images"}  # by their size
    assert names[0] - names[1] <= sized
    told = " ".join(row["name"] for row in found["rows"])
    for part in ("full (default)", "diagonal", "spherical", "running update", "features of a refresh", "warm refresh"):
        assert part in told
    assert [sweep["over"] for sweep in found["scaling"]] == [sweep["over"] for sweep in stored["scaling"]]
    assert [line["what"] for line in found["roofline"]] == [line["what"] for line in stored["roofline"]]
