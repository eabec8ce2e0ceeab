"""What a run folder may hold when it comes from a stranger or a broken disk: one kind of error, from one reader."""

import json
import os
from dataclasses import replace

import pytest
import torch

from sfumato import checkpoint
from sfumato.attacks import RidgeConfig
from sfumato.data import DataSets, ImageSet
from sfumato.errors import CheckpointError
from sfumato.training import TrainConfig, build_defenses, build_model, load_run, load_trained, train_run
from sfumato.training.inversion import attack_run

CONFIG = TrainConfig(model="digits", epochs=1, batch_size=32, hold_out=0, device="cpu", watch=False)


def picture_set(count, seed, shape=(3, 12, 20)):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=random)
    return ImageSet(images, torch.arange(count) % 3, ("a", "b", "c"))


@pytest.fixture
def run(tmp_path):
    """A finished run without a training."""
    images = picture_set(6, 0)
    model = build_model(CONFIG, images, build_defenses(CONFIG, 3))
    meta = {"config": CONFIG.as_dict(), "classes": ["a", "b", "c"], "image_shape": [3, 12, 20]}
    checkpoint.save(tmp_path / "model.safetensors", model.state_dict(), meta)
    result = {"data": "", "accuracy": 1.0, "test_images": 3, "evidence": {}}
    for name, value in (("config", {"config": CONFIG.as_dict()}), ("result", result)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    return tmp_path, model, meta


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"image_shape": None}, "another model than its settings say"),
        ({"image_shape": [3, 12]}, r"image_shape is \[3, 12\]"),
        ({"image_shape": [3, 10**9, 20]}, "image_shape is"),
        ({"image_shape": [1, 12, 20]}, "another model than its settings say"),
        ({"classes": 5}, "classes are 5"),
        ({"classes": ["a"]}, "another model than its settings say"),
        ({"config": 3}, ""),
        ({"width": 10**6}, "width is 1000000; give a number below 4097"),
        ({"width": 4000}, r"the settings say [\d,]+ parameters"),
        ({"noise_std": 1e308}, "noise_std is 1e[+]308; give a number below 1e[+]06"),
        ({"model": "nothing"}, "another model than its settings say"),
    ],
)  # fmt: skip
def test_a_hostile_description_is_one_error(run, change, match):
    folder, model, meta = run
    if change.keys() <= {"width", "noise_std", "model"}:
        change = {"config": meta["config"] | change}
    checkpoint.save(folder / "model.safetensors", model.state_dict(), meta | change)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_trained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "result.json"])
def test_a_pipe_is_no_file_and_nobody_waits_for_it(run, name):
    folder, _, _ = run
    assert load_trained(folder).input_shape == (3, 12, 20)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match=f"{name} is no ordinary file"):
        load_trained(folder)


def test_images_that_are_not_square_from_training_to_attack(tmp_path):
    sets = DataSets("folder", picture_set(60, 0), picture_set(30, 1))
    train_run(replace(CONFIG, noise_std=0.05), tmp_path, sets=sets)
    found = load_run(tmp_path)
    attacked = attack_run(found, sets, RidgeConfig())
    assert attacked.test.pixels.shape[1:] == (3, 12, 20)
