"""What goes back from a worker is certain to arrive."""

import os
from multiprocessing.reduction import ForkingPickler

import pytest
from pieces_of_work import Odd, act

from sfumato.errors import DataError, SfumatoError
from sfumato.studies import usable_cores
from sfumato.studies.executor import perform, unloadable


@pytest.fixture(autouse=True)
def threads_as_before():
    import torch

    before = torch.get_num_threads()
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
    assert perform(act, (str(tmp_path), "threads"), 3).value[0] == 3


def test_an_exit_is_the_end_of_the_worker(tmp_path):
    with pytest.raises(SystemExit):
        perform(act, (str(tmp_path), "exits"), 1)


def test_a_worker_that_cannot_load_the_work():
    assert str(unloadable("No module named 'mine'").error) == (
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
