"""Models of texts under `sfumato audit`, from the saved split to the exit code."""

import json
import re

import numpy as np
import pytest
import torch
from torch import nn

import sfumato
from sfumato.audit import TEXT_METRICS, read_audit
from sfumato.cli.main import main

VOCABULARY, LENGTH = 12, 5


def ids(count, seed, top=VOCABULARY):
    return torch.randint(top, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with `clear` (no noise), `noisy` (drowned), texts, and where this user's key lies."""
    folder = tmp_path_factory.mktemp("texts")
    torch.manual_seed(0)
    table = nn.Embedding(VOCABULARY, 6)
    cloud = nn.Sequential(nn.Flatten(), nn.Linear(6 * LENGTH, 2))
    for name, std in (("clear", 0.0), ("noisy", 1e3)):
        model = sfumato.SplitModel(table, sfumato.Channel(noise_std=std), cloud)
        sfumato.save_split(model, folder / name, example_input=ids(2, 0))
    write(folder / "texts.npz")
    return folder


def write(path, **changed):
    arrays = {"train": ids(150, 1).numpy(), "test": ids(120, 2).numpy(), "labels": np.zeros(120, np.int64)} | changed
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def audit(home, target, data, out, *conditions):
    words = ["audit", str(home / target), "--data", str(data), "--out", str(out), "--device", "cpu"]
    return main([*words, *(["--fail-if", *conditions] if conditions else [])])


def test_without_noise_every_token_is_read(home, tmp_path, capsys):
    assert audit(home, "clear", home / "texts.npz", tmp_path, "tokens > 0.5") == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "Nothing is lost on the way" in shown
    assert shown.index("Nothing is lost") < shown.index("100.0% ± 0.0% are recovered")
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["tokens"]["recovered"] == found["tokens"]["worst5"] == 1
    assert found["tokens"]["by_position"] == [1.0] * LENGTH
    assert set(found["metrics"]) == set(found["pessimistic"]) == set(TEXT_METRICS)
    page = (tmp_path / "report.html").read_text()
    assert "tokens &gt; 0.5" in page
    assert "Tokens recovered at each position" in page
    assert audit(home, "clear", home / "texts.npz", tmp_path) == 0  # nobody asked for a pass


@pytest.mark.usefixtures("quick")
def test_a_condition_that_does_not_hold_is_no_pass_where_nothing_is_lost(home, tmp_path, capsys):
    write(tmp_path / "rare.npz", train=ids(150, 1, 3).numpy())  # of the other tokens none is ever named
    assert audit(home, "clear", tmp_path / "rare.npz", tmp_path, "tokens > 0.5") == 3
    assert "nothing is lost on the way" in capsys.readouterr().err
    assert audit(home, "noisy", tmp_path / "rare.npz", tmp_path, "tokens > 0.5") == 3
    assert "a token that is not in them is never named" in capsys.readouterr().err


def test_drowned_in_noise_chance_is_left(home, tmp_path):
    assert audit(home, "noisy", home / "texts.npz", tmp_path, "tokens > 0.3", "information > 5") == 0
    found = read_audit(tmp_path)
    tokens, chance = found["tokens"], 1 / VOCABULARY
    assert tokens["recovered"] == pytest.approx(chance, abs=4 * (chance * (1 - chance) / (120 * LENGTH)) ** 0.5)
    assert found["pessimistic"]["tokens"] == pytest.approx(tokens["recovered"] + 1.96 * tokens["error"], abs=1e-4)
    between = (tokens["recovered"] + found["pessimistic"]["tokens"]) / 2
    assert main(["audit", str(tmp_path), "--fail-if", f"tokens > {between}"]) == 1  # judged at the pessimistic end
    assert main(["audit", str(tmp_path), "--fail-if", "psnr_worst5 > 20"]) == 3  # never measured


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("short", ["train", "test"])
def test_too_few_texts_are_not_judged(home, tmp_path, capsys, short):
    data = write(tmp_path / "few.npz", **{short: ids(99, 1).numpy(), "labels": None})
    assert audit(home, "noisy", data, tmp_path, "tokens > 0.5") == 3
    assert "are too few" in capsys.readouterr().err
    assert audit(home, "clear", data, tmp_path, "tokens > 0.5") == 1  # what holds holds


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train": None}, "holds test, labels; give an .npz file"),
        ({"test": ids(120, 2).float().numpy()}, "test in .* is float32"),
        ({"test": ids(120, 2).numpy() + 8}, "the model knows 0 to 11"),
        ({"test": ids(120, 2)[:, 1:].numpy()}, "4 tokens, the model takes 5"),
        ({"labels": np.full(120, 2)}, "labels in .* runs from 2 to 2"),
        ({"labels": np.zeros(7, np.int64)}, "7 labels for 120 test texts"),
        ({"padding": np.array(12)}, "padding in .* runs from 12"),
        ({"train": np.array([[{}]])}, "cannot read texts"),
    ],
)
def test_bad_texts_are_one_sentence(home, tmp_path, capsys, changed, words):
    assert audit(home, "noisy", write(tmp_path / "bad.npz", **changed), tmp_path / "out") == 2
    assert re.search(words, " ".join(capsys.readouterr().err.split()))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--size", "8"], "--size is for images"),
        (["--fail-if", "psnr_worst5 > 20"], "psnr_worst5 is measured on images"),
        (["--data", "nowhere.npz"], "cannot read texts from nowhere.npz"),
        ([], "give them with --data texts.npz"),
    ],
)
def test_what_is_for_images_is_refused(home, capsys, words, says):
    data = [] if not words or "--data" in words else ["--data", str(home / "texts.npz")]
    assert main(["audit", str(home / "noisy"), *data, *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("quick")
def test_texts_are_not_compared_with_others(home, tmp_path, capsys):
    for name in ("clear", "noisy"):
        assert audit(home, name, home / "texts.npz", tmp_path / name) == 0
    assert main(["audit", str(tmp_path / "clear"), str(tmp_path / "noisy"), "--out", str(tmp_path / "both")]) == 2
    assert "audit it alone" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_padding_is_neither_learned_nor_counted(home, tmp_path):
    test = ids(120, 2)
    test[:, 3:] = 0
    data = write(tmp_path / "padded.npz", test=test.numpy(), padding=np.array(0))
    assert audit(home, "clear", data, tmp_path) == 0
    assert read_audit(tmp_path)["tokens"]["by_position"][3:] == [None, None]
