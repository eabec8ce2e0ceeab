"""One real experiment, small: what it leaves, where it resumes, and what decides its name."""

import shutil
from dataclasses import replace

import pytest

from sfumato.attacks import DecoderConfig
from sfumato.errors import DataError, Interrupted
from sfumato.studies import Store, Workspace, run_trials
from sfumato.studies.executor import Here
from sfumato.studies.experiment import FOLDS, Experiment, located, read_strip
from sfumato.training import TrainConfig, load_run

TRAIN = TrainConfig(data="digits", model="digits", epochs=1, batch_size=256, noise_std=0.1, device="cpu")
SMALL = replace(TRAIN, limit=200, test_limit=40)
ONE = Experiment("demo", "digits", "noise", SMALL, (DecoderConfig(epochs=1, width=4, blocks=0),), shown=3)


def test_a_run_that_should_lie_there_is_left_and_made_again(tmp_path):
    one = replace(ONE, folder=str(tmp_path / "models" / "noise-s0"))
    store = Store(tmp_path / "store")
    run_trials([one], Here(), store, tmp_path / "work")
    result = store.read(one.key)
    assert set(result["attacks"]) == {"decoder", "ridge", "nearest"}
    assert load_run(tmp_path / "models" / "noise-s0").result["accuracy"] == result["accuracy"]
    strip = read_strip(tmp_path / "models" / "noise-s0" / "reconstructed.png")
    assert list(strip) == ["original", *result["attacks"]]
    assert strip["original"].shape == (3, 1, 8, 8)
    shutil.rmtree(tmp_path / "models")
    assert not one.complete
    run_trials([one], Here(), store, tmp_path / "work")
    assert one.complete
    again = store.read(one.key)
    assert again["accuracy"] == result["accuracy"]
    assert again["leakage"] == result["leakage"]


def test_interrupted_it_resumes_and_leaves_nothing_behind(tmp_path):
    workspace = Workspace(tmp_path / "work", tmp_path / "picture.png")
    with pytest.raises(Interrupted):
        ONE.measure(replace(workspace, should_stop=lambda: True))
    assert list((tmp_path / "work").glob("*.safetensors"))
    shares = []
    ONE.measure(replace(workspace, tell=lambda what, share: shares.append(share)))
    assert shares == sorted(shares)
    assert not (tmp_path / "work").exists()
    assert (tmp_path / "picture.png").exists()


def test_folds_deal_all_digits_and_no_image_twice():
    sets = [replace(ONE, train=TRAIN, fold=fold)._sets() for fold in range(FOLDS)]
    assert sum(len(one.test) for one in sets) == 1797
    assert {len(one.train) + len(one.test) for one in sets} == {1797}
    assert len({one.test.fingerprint() for one in sets}) == FOLDS


def test_the_key_changes_with_every_setting_and_not_with_the_place():
    others = [
        replace(ONE, train=replace(SMALL, lam=0.7, cem=True)),
        replace(ONE, attacks=(replace(ONE.attacks[0], lr=1e-2),)),
        replace(ONE, fold=0),
        replace(ONE, fold=1),
        replace(ONE, budget="other"),
    ]
    assert len({ONE.key, *(one.key for one in others)}) == 6
    elsewhere = replace(ONE, folder="there", keep=True, shown=5, train=replace(SMALL, data_dir="/x", device="auto"))
    assert elsewhere.key == ONE.key


def test_results_of_other_images_are_refused(tmp_path):
    store = Store(tmp_path)
    store.write(ONE.key, {"data": "of something else"})
    other = replace(ONE, row="other")
    assert located([ONE], store, data_dir=None, device="cpu") == [ONE]  # nothing is missing, nothing is read
    with pytest.raises(DataError, match="was measured on other images than the ones loaded here; choose another"):
        located([ONE, other], store, data_dir=None, device="cpu")
