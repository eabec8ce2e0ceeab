"""What only Ray's executor does: a real cluster of two nodes that loses one, and Ray started for one run."""

import importlib
import json
import os
import socket
import subprocess
import sys

import pytest
from pieces_of_work import act, run, until_node_is_killed, wait_for_end

from sfumato.errors import ConfigError, SfumatoWarning
from sfumato.studies import RayExecutor, usable_cores


def test_a_lost_node_loses_no_item(tmp_path):
    pytest.importorskip("ray", reason="needs the package ray")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        lost = second.node_id

        def kill_second_once_it_works() -> bool:
            ran = {path.read_text(): path.stem for path in tmp_path.glob("*.node-0")}
            if lost in ran and len(ran) == 2 and not (tmp_path / "killed").exists():
                cluster.remove_node(second, allow_graceful=False)
                wait_for_end((tmp_path / f"{ran[lost]}.start-0").read_text())  # its worker follows within a second
                (tmp_path / "killed").touch()
            return False

        items = [(str(tmp_path), name) for name in "abc"]
        found = run(RayExecutor(cluster.address), items, until_node_is_killed, stop=kill_second_once_it_works)
        outcomes = {outcome.item[1]: outcome for outcome in found}
    finally:
        cluster.shutdown()

    assert set(outcomes) == set("abc")
    assert [outcome.error for outcome in outcomes.values()] == [None] * 3
    assert {outcome.value for outcome in outcomes.values()} == {outcomes["a"].value}
    assert lost not in {outcome.value for outcome in outcomes.values()}
    (victim,) = (path.name[0] for path in tmp_path.glob("*.node-0") if path.read_text() == lost)
    assert outcomes[victim].attempts == 2
    assert [outcome.attempts for outcome in outcomes.values()].count(1) == 2


def test_ray_started_for_one_run_is_gone_after_it(tmp_path):
    """In a process of its own, with nothing set up before: as a user would meet it."""
    pytest.importorskip("ray", reason="needs the package ray")
    script = (
        "import json, os, signal, sys\n"
        "from pieces_of_work import act, run\n"
        "from sfumato.studies import build_executor\n"
        "signal.signal(signal.SIGTERM, handler := lambda *_: None)\n"
        "outcomes = run(build_executor('ray'), [(sys.argv[1], 'plain')], act)\n"
        "value = next(outcomes).value\n"
        "import ray\n"
        "kept, mode = signal.getsignal(signal.SIGTERM) is handler, os.environ['RAY_AUTH_MODE']\n"
        "there = ray.is_initialized()\n"
        "print(json.dumps([value, kept, there, mode, list(outcomes), ray.is_initialized()]))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", script, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    value, sigterm_kept, there, mode, rest, there_after = json.loads(done.stdout)
    assert (value, rest, there, there_after) == ("PLAIN", [], True, False)
    assert sigterm_kept  # a command line stops cleanly by its own handler
    assert mode == "token"  # Ray listens on every interface: strangers are refused
    assert not (tmp_path / ".ray").exists()


def test_no_cluster_at_the_address(monkeypatch):
    pytest.importorskip("ray", reason="needs the package ray")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"no Ray cluster answers at {address} \(.*\); start one with `ray"):
            list(run(RayExecutor(address), [1], act))
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address}"):
            list(run(RayExecutor(), [1], act))


def test_a_missing_ray_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # an import of it fails
    with pytest.raises(ConfigError, match=r"run `pip install 'sfumato\[ray\]'`"):
        RayExecutor()


def test_numbers_out_of_range():
    pytest.importorskip("ray", reason="needs the package ray")
    with pytest.raises(ConfigError, match="cpus must be at least 1, not 0"):
        RayExecutor(cpus=0)
    with pytest.raises(ConfigError, match="gpus must be 0 or more, not -1"):
        RayExecutor(gpus=-1)


def test_needs_that_this_machine_does_not_meet(tmp_path):
    pytest.importorskip("ray", reason="needs the package ray")
    cpus = usable_cores() + 1
    with pytest.raises(ConfigError, match=f"no node of Ray has {cpus} CPUs and 0 GPUs, which each item asks for; ask"):
        list(run(RayExecutor(cpus=cpus), [(str(tmp_path), "plain")], act))


# The last ones: from here on a Ray runs, to which the executors of the tests above would connect.
def test_needs_that_no_node_meets(running_ray, tmp_path):
    outcomes = run(RayExecutor(gpus=1), [(str(tmp_path), "plain")], act, stop=lambda: True)
    with pytest.warns(SfumatoWarning, match="no node of Ray has 1 CPUs and 1 GPUs, which each item asks for; waiting"):
        assert list(outcomes) == []


def test_work_that_the_node_cannot_import_is_told(running_ray, tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("def work(item):\n    return item\n")
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("only_here").work
    (outcome,) = run(RayExecutor(), [1], work)
    assert str(outcome.error).startswith("a worker cannot load the work (")
    assert "No module named 'only_here'" in str(outcome.error)
    assert outcome.attempts == 1


def test_a_killed_worker_is_explained(running_ray, tmp_path):
    (outcome,) = run(RayExecutor(attempts=1), [(str(tmp_path), "dies always")], act)
    assert str(outcome.error) == (
        "the worker of this item died once, the last time because its process died; "
        "give each item more cpus so that fewer share a node's memory"
    )
