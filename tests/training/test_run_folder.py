"""What a run folder may hold when it comes from a stranger or a broken disk: one kind of error, from one reader."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from sfumato import checkpoint
from sfumato.attacks import RidgeConfig
from sfumato.data import DataSets, ImageSet
from sfumato.errors import CheckpointError, Interrupted
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


def whole(change):
    return lambda tensors: {name: change(value) for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state | {"channel.noise": torch.full((7, 1), 0.1)}, "a shape for features of 7 values, and"),
        (lambda state: state | {"channel.noise": torch.full((960, 1), 0.1).int()}, r"stored noise is torch.int32 of"),
        (lambda state: state | {"channel.noise": torch.tensor(0.1)}, r"of shape \(\), not \(D, 1 [+] r\)"),
        (lambda state: state | {"channel.noise": torch.ones(5)}, r"of shape \(5,\), not \(D, 1 [+] r\)"),
        (whole(lambda value: value * torch.nan if value.is_floating_point() else value), "is not finite"),
        (whole(lambda value: value.double()), "is torch.float64, not torch.float32"),
        (whole(lambda value: value.to(torch.complex64)), "is torch.complex64, not torch.float32"),
    ],
)  # fmt: skip
def test_hostile_tensors_are_one_error(run, change, match):
    folder, model, meta = run
    checkpoint.save(folder / "model.safetensors", change(model.state_dict()), meta)
    with pytest.raises(CheckpointError, match=f"another model than its settings say.*{match}"):
        load_trained(folder)


@pytest.mark.parametrize(
    "header", ["[" * 100_000, '{"format": -1}', '{"format": null}', '{"format": NaN}', "[1]", "{}"]
)
def test_a_hostile_header_is_one_error(tmp_path, header):
    save_file({"x": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"sfumato": header})
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(tmp_path / "x.safetensors")


WRONG = (None, -1, 1e308, "x", [1], {"a": 1}, True, "gone")


def damaged(values, name, wrong):
    kept = {key: value for key, value in values.items() if key != name}
    return kept if wrong == "gone" else kept | {name: wrong}


@pytest.mark.parametrize("name", ["data", "accuracy", "test_images", "evidence"])
def test_a_damaged_result_is_one_error(run, name):
    folder, _, _ = run
    path = folder / "result.json"
    sound = json.loads(path.read_text())
    for wrong in ([], "gone", None):
        path.write_text(json.dumps(damaged(sound, name, wrong)))
        with pytest.raises(CheckpointError, match=f"result.json is damaged .{name} is"):
            load_trained(folder)


def test_damaged_settings_of_an_unfinished_run_are_one_error(tmp_path):
    sets = DataSets("folder", picture_set(12, 0), picture_set(6, 1))
    for wrong in (*WRONG, {"epochs": "x"}, {"epochs": -1}, {"width": 10**40}):
        claim = damaged({"config": CONFIG.as_dict(), "data": "", "caveat": ""}, "config", wrong)
        (tmp_path / "config.json").write_text(json.dumps(claim))
        for read in (lambda: train_run(CONFIG, tmp_path, sets=sets), lambda: TrainConfig.of_run(tmp_path, {})):
            with pytest.raises(CheckpointError):
                read()


def test_a_damaged_checkpoint_is_one_error_whatever_is_wrong_with_it(tmp_path):
    sets, config = DataSets("folder", picture_set(64, 0), picture_set(6, 1)), replace(CONFIG, checkpoint_seconds=0)
    asked = iter([False, True])
    with pytest.raises(Interrupted):
        train_run(config, tmp_path, sets=sets, should_stop=lambda: next(asked))
    path = tmp_path / "state.safetensors"
    tensors, meta = checkpoint.load(path)
    (tmp_path / "state.safetensors.previous").unlink(missing_ok=True)
    cases = [(tensors, damaged(meta, name, wrong)) for name in ("identity", "place", "history") for wrong in WRONG]
    cases += [(tensors, meta | {"place": place}) for place in ([5, 0], [0, 99], [0.5, 0], [0, 0, 0])]
    for name in ("sums", next(name for name in tensors if name.startswith("model."))):
        cases.append(({key: value for key, value in tensors.items() if key != name}, meta))
        cases.append((tensors | {name: torch.zeros(3, 2)}, meta))
    cases.append((tensors | {"optimizer.99.momentum_buffer": torch.zeros(1)}, meta))
    for state, described in cases:
        checkpoint.save(path, state, described)
        with pytest.raises(CheckpointError, match="choose another --run folder") as caught:
            train_run(config, tmp_path, sets=sets)
        assert "\n" not in str(caught.value)
    checkpoint.save(path, tensors, meta)
    assert train_run(config, tmp_path, sets=sets)["train_images"] == 64


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
