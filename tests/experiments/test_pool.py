import json
import shutil
from dataclasses import replace

from sfumato.attacks import DecoderConfig
from sfumato.experiments.job import Job
from sfumato.experiments.pool import run_jobs
from sfumato.training import TrainConfig, load_run

TRAIN = TrainConfig(data="digits", model="digits", epochs=1, batch_size=256, noise_std=0.1, device="cpu")
JOB = Job("noise", TRAIN, DecoderConfig(epochs=1, width=4, blocks=0))


def test_only_missing_jobs_run_and_damaged_results_run_again(tmp_path):
    jobs = [JOB, replace(JOB, train=replace(TRAIN, seed=1))]
    seen: list[dict] = []
    first = run_jobs(jobs, tmp_path, workers=2, done=lambda _done, _total, line: seen.append(line))
    assert len(seen) == 2
    assert {line["seed"] for line in first} == {0, 1}
    again = run_jobs(jobs, tmp_path, done=lambda *_: seen.append({}))
    assert len(seen) == 2
    assert again == first
    (tmp_path / f"{jobs[1].key}.json").write_text("{ half")
    repaired = run_jobs(jobs, tmp_path, workers=1)
    for line in (*repaired, *first):
        line.pop("job_seconds")
        for figures in line["attacks"].values():
            figures.pop("seconds")
    assert repaired == first  # the same numbers from another process
    assert json.loads((tmp_path / f"{jobs[1].key}.json").read_text())["seed"] == 1


def test_keys_change_with_every_setting():
    keys = {
        JOB.key,
        replace(JOB, train=replace(TRAIN, lam=0.7)).key,
        replace(JOB, attack=replace(JOB.attack, lr=1e-2)).key,
        replace(JOB, fold=0).key,
        replace(JOB, fold=1).key,
    }
    assert len(keys) == 5


def test_a_run_that_should_lie_there_and_does_not_is_made_again(tmp_path):
    job = replace(JOB, folder=str(tmp_path / "models" / "noise-s0"))
    (line,) = run_jobs([job], tmp_path / "jobs", workers=1)
    assert set(line["attacks"]) == {"decoder", "ridge", "nearest"}
    assert line["mse_test"] == min(one["test"]["mse"] for one in line["attacks"].values())
    run = load_run(tmp_path / "models" / "noise-s0")
    assert run.result["accuracy"] == line["accuracy"]
    shutil.rmtree(tmp_path / "models")
    run_jobs([job], tmp_path / "jobs", workers=1)
    assert (tmp_path / "models" / "noise-s0" / "model.safetensors").exists()
