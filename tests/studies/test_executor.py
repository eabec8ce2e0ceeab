"""The loop of every executor, on a place that only pretends, and what goes back from a worker."""

import os
from multiprocessing.reduction import ForkingPickler

import pytest
from pieces_of_work import Odd, act

from sfumato.cores import thread_environment
from sfumato.errors import DataError, SfumatoError
from sfumato.studies import usable_cores
from sfumato.studies.executor import Death, Executor, Here, Reply, perform


class Pretended(Executor):
    """Ends one item per look, the oldest first, and dies of an item as often as `deaths` says."""

    def __init__(self, places=2, deaths=None, queue=False, **options):
        super().__init__(**options)
        self.places, self.deaths, self.queue = places, dict(deaths or {}), queue
        self.most, self.closed, self.opened, self.given = 0, [], [], []

    def _open(self, count):
        self.opened.append(count)

    def _places(self):
        return self.places

    def _submit(self, work, item):
        self.given.append((work, item))
        return len(self.given) - 1

    def _wait(self, handles, seconds):
        self.most = max(self.most, len(handles))
        return handles[:1]

    def _report(self, handle):
        work, item = self.given[handle]
        if self.deaths.get(item, 0) > 0:
            self.deaths[item] -= 1
            return Death("it fell asleep", "wake it")
        return Reply(work(item))

    def _withdraw(self, handle):
        return self.queue

    def _close(self, handles):
        self.closed.append([self.given[handle][1] for handle in handles])


def double(item):
    return 2 * item


def test_no_more_run_side_by_side_than_there_is_room_for():
    with Pretended(2) as executor:
        assert [one.value for one in executor.run([1, 2, 3, 4, 5], double)] == [2, 4, 6, 8, 10]
        assert (executor.most, executor.opened, executor.closed) == (2, [5], [])
        assert list(executor.run([], double)) == []
        assert executor.opened == [5]
    assert executor.closed == [[]]


def test_the_dead_are_tried_again_after_the_others_and_given_up_in_the_end():
    executor = Pretended(1, {1: 1, 2: 3})
    found = [(one.item, one.value, one.attempts) for one in executor.run([1, 2, 3], double)]
    assert found == [(3, 6, 1), (1, 2, 2), (2, None, 3)]
    (last,) = Pretended(1, {2: 1}, attempts=1).run([2], double)
    assert str(last.error) == "the worker of this item died once, the last time because it fell asleep; wake it"


def test_a_stop_starts_nothing_new_and_withdraws_what_only_queues():
    asked = iter([False, True, True, True])
    found = list(Pretended(2).run([1, 2, 3], double, stop=lambda: next(asked)))
    assert [one.item for one in found] == [1, 2]
    asked = iter([False, True])
    assert [one.item for one in Pretended(2, queue=True).run([1, 2, 3], double, stop=lambda: next(asked))] == [1]


def test_leaving_early_closes_what_runs():
    executor = Pretended(3)
    run = executor.run([1, 2, 3], double)
    assert next(run).value == 2
    run.close()
    assert executor.closed == [[2, 3]]


def test_here_is_one_after_the_other_in_this_process():
    outcomes = list(Here().run([1, "a", None], lambda item: item + 1))
    assert [one.value for one in outcomes] == [2, None, None]
    assert [type(one.error) for one in outcomes] == [type(None), TypeError, TypeError]
    asked = iter([False, True])
    assert [one.value for one in Here().run([1, 2], double, stop=lambda: next(asked))] == [2]


@pytest.fixture(autouse=True)
def threads_as_before(monkeypatch):
    import torch

    before = torch.get_num_threads()
    for name, value in thread_environment(7).items():
        monkeypatch.setenv(name, value)  # put back as it was
    yield
    torch.set_num_threads(before)


def reply(tmp_path, name):
    return ForkingPickler.loads(ForkingPickler.dumps(perform(act, (str(tmp_path), name), 1)))


def test_a_value(tmp_path):
    answer = reply(tmp_path, "plain")
    assert (answer.value, answer.error) == ("PLAIN", None)


def test_an_exception_keeps_its_type_its_sentence_and_where_it_was_raised(tmp_path):
    error = reply(tmp_path, "fails").error
    assert type(error) is DataError
    assert str(error) == "the set is empty; give another one"
    (note,) = error.__notes__
    assert note.startswith("In the worker:\nTraceback")
    assert "pieces_of_work.py" in note


def test_an_exception_that_cannot_be_rebuilt_is_told(tmp_path):
    with pytest.raises(TypeError):
        ForkingPickler.loads(ForkingPickler.dumps(Odd(7, "strange")))
    error = reply(tmp_path, "fails oddly").error
    assert type(error) is SfumatoError
    assert str(error) == "Odd: 7: strange"


def test_a_result_that_cannot_be_sent_is_told(tmp_path):
    error = reply(tmp_path, "gives a function").error
    assert type(error) is SfumatoError
    assert str(error).startswith("the result, a function, cannot be sent back from the worker (")
    assert str(error).endswith("); return plain values or tensors")


def test_the_number_of_threads(tmp_path):
    """Of a torch that is loaded already, and of one that the work loads."""
    assert perform(act, (str(tmp_path), "threads"), 3).value == (3, "3")


def test_an_exit_is_the_end_of_the_worker(tmp_path):
    with pytest.raises(SystemExit):
        perform(act, (str(tmp_path), "exits"), 1)


def test_work_that_cannot_be_put_into_a_message():
    assert str(Executor.unsendable(TypeError("cannot pickle a lock\nat 0x7"))) == (
        "the work or an item cannot be sent to a worker (cannot pickle a lock); define the function in a module, "
        "and give items of plain values"
    )


def test_a_worker_that_cannot_load_the_work():
    assert str(Executor.unloadable("No module named 'mine'").error) == (
        "a worker cannot load the work (No module named 'mine'); have the same code importable there, "
        "and define the function and its arguments in a module"
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs processor affinity")
def test_usable_cores_are_those_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
