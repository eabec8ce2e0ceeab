"""Attacking a run in its folder: each attack in a folder of its own, finished ones read back."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from sfumato import checkpoint
from sfumato.attacks import DecoderConfig, GanConfig, measure_leakage
from sfumato.errors import CheckpointError, ConfigError, Interrupted
from sfumato.training import TrainConfig, load_data, load_run, train_run
from sfumato.training.inversion import attack_run

CONFIG = TrainConfig(data="digits", limit=200, test_limit=60, epochs=1, noise_std=0.1, device="cpu")
SMALL = {"epochs": 1, "width": 4, "blocks": 0, "batch_size": 64}
ATTACKS = {"decoder": DecoderConfig(**SMALL), "gan": GanConfig(**SMALL, critic_steps=2)}


@pytest.fixture(scope="module")
def sets():
    return load_data(CONFIG)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, sets):
    folder = tmp_path_factory.mktemp("runs") / "run"
    train_run(CONFIG, folder, sets=sets)
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return load_run(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize("name", ATTACKS)
def test_a_finished_attack_is_read_back_and_not_made_again(run, sets, name, monkeypatch):
    first = attack_run(run, sets, ATTACKS[name])
    folder = run.folder / "attacks" / name
    assert {path.name for path in folder.iterdir()} == {
        "attack.safetensors",
        "config.json",
        "pictures.safetensors",
        "result.json",
    }
    assert json.loads((folder / "result.json").read_text())["attack"] == name
    assert first.result["seconds"] > 0
    weights, meta = checkpoint.load(folder / "attack.safetensors")
    assert {name for name in weights if name.startswith("whitening.")} >= {"whitening.mean", "whitening.scale"}
    assert weights["body.0.conv2.weight"].shape == (4, 4, 3, 3)
    assert meta["config"]["epochs"] == 1

    monkeypatch.setattr("sfumato.attacks.LearnedAttack.fit", lambda *_, **__: pytest.fail("fitted again"))
    second = attack_run(run, sets, ATTACKS[name])
    assert second.result == json.loads(json.dumps(first.result))
    for ours, theirs in ((first.train, second.train), (first.test, second.test)):
        assert all(torch.equal(value, vars(theirs)[name]) for name, value in vars(ours).items())
    assert torch.equal(first.originals, second.originals)
    assert second.test.images.shape == second.originals.shape == (16, 1, 8, 8)


def test_the_attacks_lie_beside_each_other(run, sets):
    results = {name: attack_run(run, sets, config).result for name, config in ATTACKS.items()}
    assert {path.name for path in (run.folder / "attacks").iterdir()} == {"decoder", "gan"}
    assert "critic_gap" in results["gan"]["history"][0]
    assert "critic_gap" not in results["decoder"]["history"][0]
    assert results["gan"]["mean_image_mse"] == results["decoder"]["mean_image_mse"]


def test_as_many_training_images_as_test_images_are_measured(run, sets, monkeypatch):
    from sfumato.training import inversion

    counted = []
    original = inversion.invert
    monkeypatch.setattr(
        inversion,
        "invert",
        lambda attack, model, images, **o: counted.append(len(images)) or original(attack, model, images, **o),
    )
    attack_run(run, sets, ATTACKS["decoder"])
    assert counted == [60, 60]


def test_stopped_and_called_again_it_ends_like_an_undisturbed_one(run, sets, trained, tmp_path, monkeypatch):
    calm = attack_run(load_run(shutil.copytree(trained, tmp_path / "calm")), sets, ATTACKS["gan"])
    monkeypatch.setattr("sfumato.attacks.LearnedAttack.checkpoint_seconds", 0.0)
    state = run.folder / "attacks" / "gan" / "state.safetensors"
    with pytest.raises(Interrupted):
        attack_run(run, sets, ATTACKS["gan"], should_stop=state.exists)  # after the first step
    assert state.exists()
    rough = attack_run(run, sets, ATTACKS["gan"])
    assert rough.test.means() == calm.test.means()
    assert rough.result["history"] == calm.result["history"]


def test_other_settings_or_data_are_not_mixed_in(run, sets):
    attack_run(run, sets, ATTACKS["decoder"])
    with pytest.raises(CheckpointError, match=r"another attack \(seed 0 -> 3, epochs 1 -> 2\); delete that folder to"):
        attack_run(run, sets, replace(ATTACKS["decoder"], epochs=2, seed=3))
    fewer = replace(sets, test=sets.test.subset(torch.arange(10)))
    with pytest.raises(CheckpointError, match=r"another attack \(other images\)"):
        attack_run(run, fewer, ATTACKS["decoder"])
    retrained = replace(run, result=run.result | {"config": run.result["config"] | {"seed": 9}})
    with pytest.raises(CheckpointError, match=r"another attack \(another victim\)"):
        attack_run(retrained, sets, ATTACKS["decoder"])
    foreign = replace(sets, train=sets.train.subset(torch.arange(10)))
    with pytest.raises(CheckpointError, match="not those that .* was trained on; check --data-dir"):
        attack_run(run, foreign, ATTACKS["decoder"])


@pytest.mark.parametrize("text", ["{", "[]", '{"train": {}}'])
def test_a_damaged_result_is_not_trusted(run, sets, text):
    attack_run(run, sets, ATTACKS["decoder"])
    (run.folder / "attacks" / "decoder" / "result.json").write_text(text)
    with pytest.raises(CheckpointError, match="is damaged .*; delete it and run the command again"):
        attack_run(run, sets, ATTACKS["decoder"])


def test_without_its_pictures_it_is_made_again(run, sets):
    first = attack_run(run, sets, ATTACKS["decoder"])
    (run.folder / "attacks" / "decoder" / "pictures.safetensors").unlink()
    assert torch.equal(attack_run(run, sets, ATTACKS["decoder"]).test.pixels, first.test.pixels)


def test_settings_of_no_attack(run, sets):
    with pytest.raises(ConfigError, match="TrainConfig holds the settings of no attack"):
        attack_run(run, sets, CONFIG)  # type: ignore[arg-type]


@pytest.mark.parametrize(("noise_std", "cem", "clip_norm"), [(0.1, False, None), (0.5, True, None), (0.3, False, 1.0)])
def test_the_law_holds_on_small_trained_models(noise_std, cem, clip_norm, sets, tmp_path):
    """No certificate lies below what an attacker names, and both say something."""
    train_run(replace(CONFIG, noise_std=noise_std, cem=cem), tmp_path, sets=sets)
    model = load_run(tmp_path).model
    model.channel.clip_norm = clip_norm
    found = measure_leakage(model, sets.test, seed=0)
    assert found.holds, found
    assert found.identified > 1 / 60
    assert (found.clipped_at_most is None) == (clip_norm is None)
