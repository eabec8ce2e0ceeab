"""The demo, with smaller trainings: what it leaves and what it says of them."""

import json

import pytest
import torch

from sfumato.errors import CheckpointError
from sfumato.studies import demo
from sfumato.training import load_run


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "_TRAIN", demo._TRAIN | {"epochs": 1, "limit": 200, "test_limit": 40})
    monkeypatch.setattr(demo, "_ATTACK", demo._ATTACK | {"epochs": 1, "width": 4, "blocks": 0})
    monkeypatch.setattr(demo, "NOISES", (0.4,))
    monkeypatch.setattr(demo, "SEEDS", (0,))


def test_rows_and_run_folders_are_what_scripts_rely_on(tmp_path, small):
    result, originals, pictures = demo.run_demo(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert [row["defense"] for row in result["rows"]] == ["none", "noise", "noise+cem"]
    for row, name in zip(result["rows"], ("none", "noise0.4", "noise+cem"), strict=True):
        assert {"seed", "accuracy", "mse_train", "psnr_test", "ssim_test", "identified", "information"} <= set(row)
        assert row["mse_test"] == min(one["test"]["mse"] for one in row["attacks"].values())
        assert row["mse_train"] == min(one["train"]["mse"] for one in row["attacks"].values())
        assert load_run(tmp_path / "models" / f"{name}-s0").result["accuracy"] == row["accuracy"]
        assert pictures[name].shape == originals.shape == (10, 1, 8, 8)
    assert list(result["histories"]) == ["noise+cem"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "jobs").glob("*.json")}
    again, *_ = demo.run_demo(tmp_path)
    assert again["rows"] == result["rows"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "jobs").glob("*.json")} == before  # nothing ran
    (tmp_path / "models" / "none-s0" / "reconstructed.png").write_bytes(b"no picture")
    with pytest.raises(CheckpointError, match=r"reconstructed.png is damaged; delete it and run the command again"):
        demo.run_demo(tmp_path)


def test_its_settings_give_distinct_experiments_and_folders(tmp_path):
    found = demo.demo_experiments(tmp_path)
    assert len({one.key for one in found}) == len({one.folder for one in found}) == 4 * len(demo.SEEDS)
    assert [one.train.seed for one in found] == sorted(one.train.seed for one in found)
    assert {one.train.noise_std for one in found if not one.train.cem} == {0.0, *demo.NOISES}
    assert all(torch.device(one.train.device).type == "cpu" for one in found)


def rows(*values):
    names = ("defense", "noise_std", "accuracy", "mse_test")
    return [{"seed": seed, "identified": 0.5} | dict(zip(names, one, strict=True)) for seed in (0, 1) for one in values]


def test_cem_is_compared_with_noise_at_its_own_accuracy():
    levels = [("none", 0.0, 0.99, 0.01), ("noise", 0.4, 0.97, 0.02), ("noise", 0.8, 0.90, 0.03)]
    found = demo.equal_accuracy(rows(*levels, ("noise+cem", 0.1, 0.98, 0.03)))
    assert found["error"]["curve_value"] == pytest.approx(0.015)
    assert found["error"]["effect"] == pytest.approx(2.0)
    assert found["identified"]["effect"] == 0.0
    assert demo.equal_accuracy(rows(*levels)) is None
