"""The engine: only what is missing is measured, once, by any number of callers, whatever happens to them."""

import json
import threading
import time
from dataclasses import replace

import pytest
from fake_trials import Fake
from pieces_of_work import starts, wait_for

from sfumato.errors import DataError
from sfumato.studies import LocalExecutor, Store, run_trials
from sfumato.studies.engine import missing
from sfumato.studies.executor import Here


@pytest.fixture
def place(tmp_path):
    """A function that runs trials here by name, and the store."""
    store = Store(tmp_path / "store", locks=tmp_path / "work" / "locks")

    def run(*names, executor=None, **options):
        trials = [Fake(str(tmp_path), name) for name in names]
        return run_trials(trials, executor or Here(), store, tmp_path / "work", **options)

    return run, store, tmp_path


def test_only_what_is_missing_or_damaged_is_measured(place):
    run, store, folder = place
    summary = run("a", "b", "a")
    assert (summary.done, summary.total, summary.failed, summary.elsewhere) == (2, 2, (), 0)
    assert store.read("fake-a") == {"key": "fake-a", "value": 1, "warnings": []}
    store.path("fake-b").write_text("{ half")
    assert [one.name for one in missing([Fake(str(folder), name) for name in "abc"], store)] == ["b", "c"]
    assert run("a", "b", "c").done == 3
    assert [len(starts(folder, name)) for name in "abc"] == [1, 2, 1]
    assert run("a", "b", "c").done == 3
    assert [len(starts(folder, name)) for name in "abc"] == [1, 2, 1]


def test_what_should_lie_beside_the_result_and_does_not_is_made_again(place):
    run, _, folder = place
    run("leaves a file")
    (folder / "left").unlink()
    run("leaves a file")
    run("leaves a file")
    assert len(starts(folder, "leaves a file")) == 2


def test_warnings_are_kept_with_the_result(place):
    run, store, _ = place
    run("warns")
    assert store.read("fake-warns")["warnings"] == ["mind the gap"]


def test_a_failure_is_raised_once_nothing_runs_or_collected(place):
    run, store, _ = place
    with pytest.raises(DataError, match="the set is empty"):
        run("fails", "a")
    assert store.read("fake-a") is not None
    told = []
    summary = run("fails", "b", keep_going=True, report=lambda done, total, result: told.append((done, total, result)))
    assert summary.failed == (("fake-fails", "the set is empty; give another one"),)
    assert (summary.done, summary.total) == (1, 2)
    assert {"key": "fake-fails", "error": "the set is empty; give another one"} in [result for *_, result in told]
    assert told[-1][:2] == (1, 2)
    with pytest.raises(ZeroDivisionError):
        run("breaks", keep_going=True)


def test_a_deadline_stops_and_the_same_call_resumes(place):
    run, store, folder = place
    assert run("a", "b", deadline=0.0).done == 0
    began = time.monotonic()
    assert run("long", "a", deadline=time.time() + 0.2).done == 0  # `long` is asked to stop, `a` is not begun
    assert time.monotonic() - began < 60
    assert store.read("fake-long") is None
    assert starts(folder, "a") == []
    assert run("a", "b").done == 2


def test_progress_is_told_between_two_results(place):
    run, _, folder = place

    def report(done, total, result):
        if done == 0.5:
            (folder / "go").touch()  # ends the trial, which would wait for ever

    with LocalExecutor(1, threads=1) as executor:
        assert run("tells", executor=executor, report=report).done == 1
    assert not list((folder / "work").glob("*.progress"))


def test_two_callers_never_measure_one_trial_twice(place, monkeypatch):
    """One caller is inside of it: the other leaves it to the first, or waits for its result."""
    run, store, folder = place
    monkeypatch.setattr("sfumato.studies.engine._TELL_SECONDS", 0.01)
    first = threading.Thread(target=run, args=("waits",))
    first.start()
    wait_for(folder / "waits.start-0")
    summary = run("waits", "a", keep_going=True)
    assert (summary.done, summary.elsewhere) == (1, 1)
    second = threading.Thread(target=run, args=("waits",))
    second.start()
    (folder / "go").touch()
    first.join()
    second.join()
    assert store.read("fake-waits")["value"] == 1
    assert len(starts(folder, "waits")) == 1


def test_what_must_be_alone_runs_here_and_first(place):
    _, store, folder = place
    trials = [Fake(str(folder), "a"), Fake(str(folder), "b", alone=True)]
    order = []
    run_trials(trials, Here(), store, folder / "work", report=lambda *told: order.append((told[2] or {}).get("key")))
    assert [key for key in order if key] == ["fake-b", "fake-a"]


def test_workers_write_results_and_their_death_costs_an_attempt(place):
    run, store, _ = place
    with LocalExecutor(2, threads=1) as executor:
        assert run("a", "b", "c", executor=executor).done == 3
    assert {store.read(f"fake-{name}")["value"] for name in "abc"} == {1}
    assert json.loads(store.path("fake-a").read_text())["key"] == "fake-a"
    assert replace(Fake("x", "a"), folder="y").key == "fake-a"  # where it runs decides nothing
