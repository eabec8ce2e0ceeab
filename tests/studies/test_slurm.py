"""What only the Slurm executor does; a few shell scripts play the cluster."""

import contextlib
import os
import signal
import sys

import pytest
from pieces_of_work import act, linger, run

from sfumato.errors import ConfigError, SfumatoError
from sfumato.studies import SlurmExecutor


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A Slurm where every job waits in the queue for ever; it notes what it is asked."""
    pytest.importorskip("submitit", reason="needs the package submitit")
    programs = tmp_path / "bin"
    programs.mkdir()
    scripts = {
        "srun": "exit 0",
        "sbatch": f"cat $1 >> {tmp_path}/batch; echo x >> {tmp_path}/ids; "
        f"echo Submitted batch job $(wc -l < {tmp_path}/ids | tr -d ' ')",
        "sacct": "echo 'JobID|State|NodeList'; for i in 1 2 3; do echo \"$i|PENDING|\"; done",
        "scancel": f"echo $1 >> {tmp_path}/cancelled",
    }
    for name, body in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_jobs_ask_for_what_they_need_and_queued_ones_are_withdrawn(cluster):
    executor = SlurmExecutor(cluster / "jobs", partition="gpu-short", gpus=1, cpus=3, minutes=45, jobs=2)
    assert list(run(executor, ["a", "b", "c"], act, stop=(cluster / "ids").exists)) == []
    lines = (cluster / "batch").read_text().splitlines()
    for line in ("--partition=gpu-short", "--gpus-per-node=1", "--cpus-per-task=3", "--time=45", "--job-name=sfumato"):
        assert lines.count(f"#SBATCH {line}") == 2, line
    assert (cluster / "cancelled").read_text().split() == ["1", "2"]


def test_closing_early_cancels_the_jobs(cluster):
    class Enough(Exception):
        pass

    def once_queued() -> bool:
        if (cluster / "ids").exists():
            raise Enough
        return False

    with pytest.raises(Enough):
        list(run(SlurmExecutor(cluster / "jobs"), ["a", "b"], act, stop=once_queued))
    assert (cluster / "cancelled").read_text().split() == ["1", "2"]


def test_a_refused_job_is_told(cluster):
    (cluster / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified' >&2\nexit 1\n"
    )
    with pytest.raises(ConfigError, match=r"Slurm refuses the job \(.*invalid partition.*\); check partition, gpus"):
        list(run(SlurmExecutor(cluster / "jobs", partition="wrong"), ["a"], act))


@pytest.fixture
def local(tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="needs the package submitit")
    monkeypatch.setattr(submitit.LocalJob, "_results_timeout_s", 0)  # no network disk to wait for
    return SlurmExecutor(tmp_path / "jobs", cluster="local", cpus=1, minutes=1, attempts=1)


def test_a_job_out_of_time_is_a_dead_worker(local, tmp_path):
    def run_out() -> bool:
        if (started := tmp_path / "long.start-0").exists() and started.stat().st_size:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(started.read_text()), signal.SIGUSR2)  # what Slurm sends before the end
        return False

    (outcome,) = run(local, [(str(tmp_path), "long")], linger, stop=run_out)
    assert type(outcome.error) is SfumatoError
    assert str(outcome.error).startswith(
        f"the worker of this item died once, the last time because the job was out of time; read {tmp_path}/jobs/"
    )
    assert str(outcome.error).endswith("_0_log.err, and give each job more minutes or memory")


def test_a_killed_job_is_explained(local, tmp_path):
    (outcome,) = run(local, [(str(tmp_path), "dies always")], act)
    assert "because the job left no result (state FINISHED); read " in str(outcome.error)


def test_work_that_the_node_cannot_import_is_told(local, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")
    (outcome,) = run(local, [(str(tmp_path), "plain")], act)
    assert str(outcome.error).startswith(
        "a worker cannot load the work (ModuleNotFoundError: No module named 'pieces_of_work'); have the same code"
    )
    assert outcome.attempts == 1


def test_no_slurm_here(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="needs the package submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no Slurm on this machine .*; go to a login node, or use the local"):
        SlurmExecutor(tmp_path)


def test_a_missing_submitit_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)  # an import of it fails
    with pytest.raises(ConfigError, match=r"run `pip install 'sfumato\[slurm\]'`"):
        SlurmExecutor(tmp_path)


def test_settings_without_meaning(tmp_path):
    pytest.importorskip("submitit", reason="needs the package submitit")
    with pytest.raises(ConfigError, match="unknown cluster 'moon'; give slurm or local"):
        SlurmExecutor(tmp_path, cluster="moon")
    with pytest.raises(ConfigError, match="gpus must be 0 or more, not -1"):
        SlurmExecutor(tmp_path, cluster="local", gpus=-1)
    for name in ("cpus", "minutes", "jobs"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1, not 0"):
            SlurmExecutor(tmp_path, cluster="local", **{name: 0})
