"""A stranger's network from a script of thirty lines to an audit, a bundle, a server: one command each."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from serve_support import running

import sfumato
from sfumato.audit.suite import Piece
from sfumato.cli.main import main
from sfumato.data import ImageSet
from sfumato.training import load_trained

EXAMPLE = Path(__file__).parents[2] / "docs/examples/own_model.py"
RIDGE = (Piece("ridge", "attack", "ridge", 1, 0),)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder that the script leaves, and its names."""
    folder = tmp_path_factory.mktemp("own") / "model"
    before = sys.argv
    sys.argv = [str(EXAMPLE), str(folder)]
    try:
        names = runpy.run_path(str(EXAMPLE))
    finally:
        sys.argv = before
    return folder, names


def test_the_script_is_short_and_learns(trained):
    code = [
        line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith(('"""', "import", "from"))
    ]
    assert len(code) <= 30
    _, names = trained
    assert float(names["right"].float().mean()) > 0.85


def test_audit(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("sfumato.audit.run.load_suite", lambda: RIDGE)
    folder, names = trained
    words = ["audit", str(folder), "--data", "digits", "--minutes", "0.05", "--out", str(tmp_path), "--device", "cpu"]
    assert main([*words, "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["target"]["kind"] == "saved"
    assert found["target"]["channel"]["noise_std"] == 0.1
    assert found["metrics"]["accuracy"] == pytest.approx(float(names["right"].float().mean()), abs=0.03)
    assert 0 < found["metrics"]["mse_mean"] < found["attacks"][0]["test"]["mse"]["worst5"] * 10


def test_a_folder_of_images_is_resized_and_its_classes_are_found_by_name(trained, tmp_path):
    from sfumato.audit import DataOptions, audit_sets, load_target

    subject = load_target(str(trained[0]))
    rng = np.random.default_rng(0)
    for name in ("7", "3"):
        (tmp_path / name).mkdir()
        for index in range(8):
            Image.fromarray(rng.integers(0, 255, (16, 12), dtype=np.uint8)).save(tmp_path / name / f"{index}.png")
    sets = audit_sets(subject, DataOptions(data=str(tmp_path)))
    assert sets.train.image_shape[1:] == (8, 8)
    assert sets.labelled
    assert set(sets.train.labels.tolist()) == {3, 7}
    assert sets.train.classes == tuple("0123456789")
    (tmp_path / "7").rename(tmp_path / "seven")
    unknown = audit_sets(subject, DataOptions(data=str(tmp_path)))
    assert not unknown.labelled
    assert "so no accuracy is measured" in unknown.caveat


def test_export_serve_and_query(trained, tmp_path, capsys):
    folder, names = trained
    bundle = tmp_path / "bundle"
    assert main(["export", str(folder), "--out", str(bundle), "--json", str(tmp_path / "said.json")]) == 0
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["manifest"]["classes"] == list("0123456789")
    assert said["manifest"]["training"]["saved_split"] == load_trained(folder).digest
    assert max(said["parity"]["feature"], said["parity"]["logits"]) < 1e-5
    test: ImageSet = sfumato.data.load("digits").test
    paths = []
    for index in range(20):
        pixels = test.images[index, 0].numpy()
        paths.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(pixels).save(paths[-1])
    with running(bundle) as server:
        words = ["query", str(bundle), *paths, "--url", f"http://{server.rest}", "--device-key", str(tmp_path / "key")]
        assert main([*words, "--json", str(tmp_path / "answers.json")]) == 0
    capsys.readouterr()
    answers = json.loads((tmp_path / "answers.json").read_text())["answers"]
    right = [one["class"] == str(int(test.labels[index])) for index, one in enumerate(answers)]
    assert sum(right) >= 15  # what the network knows, through noise, export and wire
    with torch.no_grad():
        assert names["model"].training is False


def test_attack_points_to_audit(trained, capsys):
    assert main(["attack", str(trained[0])]) == 2
    assert "`sfumato audit` takes a model of save_split" in capsys.readouterr().err
