import contextlib
import importlib.util
import os
import secrets
from pathlib import Path

import pytest

HERE = str(Path(__file__).parent)


def need(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")


@pytest.fixture(scope="session", autouse=True)
def importable_in_workers():
    """Workers that Ray and submitit start find the tests' work as they would find an installed package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([HERE, *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # 15 is usual: beside other tests an import of torch takes minutes
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray leaves one in the home folder
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture
def in_this_process(monkeypatch):
    """Commands measure here: a worker has to start, and to load torch, before it does anything."""
    from sfumato.studies.executor import Here

    monkeypatch.setattr("sfumato.cli.reproduce.build_executor", lambda *_, **__: contextlib.nullcontext(Here()))
    monkeypatch.setattr("sfumato.studies.tuning.LocalExecutor", lambda *_, **__: contextlib.nullcontext(Here()))


@pytest.fixture(scope="module")
def running_ray():
    """One Ray for many tests: it takes seconds to start."""
    need("ray")
    import ray

    ray.init(address="local", num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(params=["local", "slurm", "ray"], scope="module")
def hire(request, tmp_path_factory):
    """Make an executor with so many places side by side, one thread each unless told."""
    from sfumato.studies import LocalExecutor, RayExecutor, SlurmExecutor

    if request.param == "local":
        yield lambda places=2: LocalExecutor(places, threads=1)
    elif request.param == "slurm":
        need("submitit")
        import submitit

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(submitit.LocalJob, "_results_timeout_s", 0)  # no network disk to wait for
            folder = tmp_path_factory.mktemp("jobs")
            yield lambda places=2: SlurmExecutor(folder, cluster="local", cpus=1, jobs=places)
    else:
        request.getfixturevalue("running_ray")
        yield lambda places=2: RayExecutor(cpus=2 // places)
