"""What every executor promises, whichever way it reaches its workers."""

import contextlib
import os
import threading

import pytest
from pieces_of_work import act, linger, lives, pid, rest, run, starts, wait_for_end

from sfumato.errors import DataError, SfumatoError

NAMES = ["dies always", "dies once", "fails", "plain"]


@pytest.fixture(scope="module")
def outcomes(hire, tmp_path_factory):
    """All that can happen to an item, in one run."""
    folder = tmp_path_factory.mktemp("mixed")
    found = {}
    for outcome in run(hire(), [(str(folder), name) for name in NAMES], act):
        assert outcome.item[1] not in found, "an item has one outcome"
        found[outcome.item[1]] = outcome
    return found, folder


def test_every_item_has_an_outcome(outcomes):
    found, folder = outcomes
    assert set(found) == set(NAMES)
    plain = found["plain"]
    assert (plain.value, plain.error, plain.attempts, len(starts(folder, "plain"))) == ("PLAIN", None, 1, 1)


def test_an_exception_comes_back_and_is_not_tried_again(outcomes):
    found, folder = outcomes
    outcome = found["fails"]
    assert type(outcome.error) is DataError
    assert str(outcome.error) == "the set is empty; give another one"
    assert "pieces_of_work.py" in outcome.error.__notes__[0]  # where it was raised
    assert (outcome.value, outcome.attempts, len(starts(folder, "fails"))) == (None, 1, 1)


def test_a_dead_worker_costs_its_item_one_attempt(outcomes):
    found, folder = outcomes
    outcome = found["dies once"]
    assert (outcome.value, outcome.error, outcome.attempts) == ("DIES ONCE", None, 2)
    assert len(starts(folder, "dies once")) == 2


def test_an_item_that_kills_its_workers_is_given_up(outcomes):
    found, folder = outcomes
    outcome = found["dies always"]
    assert (outcome.value, outcome.attempts, len(starts(folder, "dies always"))) == (None, 3, 3)
    assert type(outcome.error) is SfumatoError
    assert str(outcome.error).startswith("the worker of this item died 3 times, the last time because ")


def test_stop_waits_for_what_runs_and_starts_nothing(hire, tmp_path):
    items = [(str(tmp_path), name) for name in "abcd"]
    done = [outcome.value for outcome in run(hire(2), items, rest, stop=lambda: bool(starts(tmp_path, "*")))]
    assert sorted(done) == ["a", "b"]
    assert len(starts(tmp_path, "*")) == 2
    assert list(run(hire(2), items, rest, stop=lambda: True)) == []
    assert len(starts(tmp_path, "*")) == 2


def test_closing_early_leaves_no_worker(hire, tmp_path):
    with contextlib.closing(hire(2).run([(str(tmp_path), "long"), (str(tmp_path), "short")], linger)) as outcomes:
        assert next(outcomes).value == "short"
        number = (tmp_path / "long.start-0").read_text()
        assert lives(number)
    wait_for_end(number)


def test_work_that_cannot_be_sent_is_refused_at_once(hire):
    lock = threading.Lock()
    with pytest.raises(SfumatoError, match=r"the work or an item cannot be sent to a worker \(.*\); define the func"):
        list(run(hire(), [lock], act))


def test_threads_are_as_told_and_torch_is_loaded_only_by_work_that_needs_it(hire, tmp_path):
    with hire() as executor:
        values = [one.value for name in ("imports", "threads") for one in executor.run([(str(tmp_path), name)], act)]
    assert values == [False, (1, "1")]


def test_nothing_to_do(hire):
    assert list(run(hire(), [], act)) == []


def test_workers_stay_for_the_next_round_and_end_with_the_block(hire, request):
    with hire(1) as executor:
        rounds = [[outcome.value for outcome in executor.run(items, pid)] for items in ((1, 2), (), (3,))]
    assert [len(one) for one in rounds] == [2, 0, 1]
    assert os.getpid() not in {value for one in rounds for value in one}
    if "ray" not in request.node.name:  # an idle worker of a cluster that was there before is the cluster's own
        for number in {value for one in rounds for value in one}:
            wait_for_end(str(number))
