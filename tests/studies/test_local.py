"""What only the local executor does."""

import os
import signal
import subprocess
import sys
import time

import pytest
from pieces_of_work import act, linger, pid, rest, run, starts, wait_for, wait_for_end

from sfumato.errors import ConfigError
from sfumato.studies import EXECUTORS, LocalExecutor, build_executor, usable_cores
from sfumato.studies.local import _exit_code


def test_the_death_of_a_worker_is_explained(tmp_path):
    items = [(str(tmp_path), name) for name in ("dies always", "exits")]
    errors = {outcome.item[1]: str(outcome.error) for outcome in run(LocalExecutor(2, attempts=1), items, act)}
    assert errors == {
        "dies always": "the worker of this item died once, the last time because it was killed by SIGKILL; "
        "free some memory or use fewer workers, then run it again",
        "exits": "the worker of this item died once, the last time because it ended with exit code 5; "
        'read its own message above; a script that starts workers needs its `if __name__ == "__main__":`',
    }


def test_the_exit_code_is_waited_for_where_another_thread_collects_it():
    class Collected:
        codes = iter([None, None, -9, -9])

        @property
        def exitcode(self) -> int | None:
            return next(self.codes)

    assert _exit_code(Collected()) == -9


def test_a_script_from_standard_input_has_workers_and_one_without_its_guard_is_told_of_it(tmp_path):
    script = (
        "from sfumato.studies import LocalExecutor\nimport math\n"
        "with LocalExecutor(1, 1, attempts=1) as executor:\n"
        "    for one in executor.run([4.0], math.sqrt): print(one.value, one.error)\n"
    )
    piped = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True)
    assert piped.stdout == "2.0 None\n"
    (tmp_path / "bare.py").write_text(script)
    bare = subprocess.run([sys.executable, tmp_path / "bare.py"], capture_output=True, text=True)
    assert "a script that starts workers needs its `if __name__" in bare.stdout
    assert "memory" not in bare.stdout


def test_one_process_does_round_after_round():
    with LocalExecutor(1) as executor:
        numbers = {outcome.value for items in ((1, 2), (3,)) for outcome in executor.run(items, pid)}
    assert len(numbers) == 1  # torch is loaded once


def test_cores_are_shared_between_the_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.studies.local.usable_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    (alone,) = run(LocalExecutor(), [(str(tmp_path), "threads")], act)
    assert alone.value[1] == "6"  # MKL may take fewer: no more than the machine has
    assert os.environ["OMP_NUM_THREADS"] == "7"  # the caller's own stays
    assert "MKL_NUM_THREADS" not in os.environ
    for workers, items, expected in ((None, 4, (4, 1)), (None, 9, (6, 1)), (2, 9, (2, 3))):
        executor = LocalExecutor(workers)
        executor._open(items)
        assert (executor._places(), executor._share) == expected


def test_one_worker_takes_one_item_after_the_other(tmp_path):
    items = [(str(tmp_path), name) for name in "abc"]
    assert [outcome.value for outcome in run(LocalExecutor(1), items, rest)] == ["a", "b", "c"]
    assert len({path.read_text() for path in starts(tmp_path, "*")}) == 1  # the same process: torch is loaded once


def test_a_worker_that_dies_idle_costs_nothing(tmp_path):
    outcomes = run(LocalExecutor(1), [(str(tmp_path), "plain"), (str(tmp_path), "other")], act)
    next(outcomes)
    number = int((tmp_path / "plain.start-0").read_text())
    os.kill(number, signal.SIGKILL)
    wait_for_end(str(number))
    (second,) = outcomes
    assert (second.value, second.attempts) == ("OTHER", 1)


def test_ctrl_c_ends_the_workers(tmp_path):
    def pressed() -> bool:
        if (tmp_path / "long.start-0").exists():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        list(LocalExecutor(1).run([(str(tmp_path), "long")], linger, stop=pressed))
    began = (tmp_path / "long.start-0").stat().st_mtime
    assert time.time() - began < 4  # asked to end; killed only where it does not obey in time
    wait_for_end((tmp_path / "long.start-0").read_text(), seconds=1)


def test_workers_of_a_killed_process_end(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pieces_of_work import linger\n"
        "from sfumato.studies import LocalExecutor\n"
        "if __name__ == '__main__':\n"
        f"    list(LocalExecutor(1).run([({str(tmp_path)!r}, 'long')], linger))\n"
    )
    with subprocess.Popen([sys.executable, script]) as process:
        wait_for(tmp_path / "long.start-0")
        time.sleep(0.1)
        process.kill()
    wait_for_end((tmp_path / "long.start-0").read_text(), seconds=5)


def test_executors_by_name(tmp_path):
    assert set(EXECUTORS) == {"local", "ray", "slurm"}
    executor = build_executor("local", workers=3, threads=2)
    assert isinstance(executor, LocalExecutor)
    assert (executor.workers, executor.threads) == (3, 2)
    with pytest.raises(ConfigError, match="unknown executor 'cloud'; known are local, ray, slurm"):
        build_executor("cloud")
    with pytest.raises(ConfigError, match="executor 'local' has no option 'gpus'; it takes workers, threads, attempts"):
        build_executor("local", gpus=1)
    with pytest.raises(ConfigError, match="executor 'slurm' needs the option folder"):
        build_executor("slurm")


@pytest.mark.parametrize("name", ["workers", "threads", "attempts"])
def test_numbers_below_one(name):
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, not 0"):
        build_executor("local", **{name: 0})


def test_no_cluster_package_is_loaded_before_it_is_needed():
    code = "import sys, sfumato.studies; print(sorted({'ray', 'submitit', 'cloudpickle'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_there_is_a_core():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
