"""Whole searches on a few digits, in this process and in workers, interrupted and resumed."""

import json
import shlex
from dataclasses import replace

import pytest
import torch
from torch import nn

import sfumato
from sfumato import data
from sfumato.attacks import invert
from sfumato.cli.commands import parser_of
from sfumato.cli.main import main
from sfumato.cli.parser import given
from sfumato.errors import CheckpointError, ConfigError, DataError
from sfumato.report.tune import tune_curves, write_tune_report
from sfumato.studies import Floor, Setting, Space, Workspace, tune_with
from sfumato.studies.judge import Measured
from sfumato.studies.space import BASELINE, Training
from sfumato.studies.tune_trials import (
    ConfiguredTrial,
    OwnTrial,
    config_of,
    fitted,
    measured,
    parts,
    train_yaml,
)
from sfumato.training import TrainConfig

SPACE = Space(noise_stds=(0.1, 0.3), lams=(0.1, 1.0), folds=2, baselines=1, draws=2)
FLOOR = Floor(lose_at_most=20.0)
CONFIG = TrainConfig(
    data="digits", width=4, limit=200, epochs=3, batch_size=32, lr=0.1, augment=False, clusters_per_class=1,
    precision="fp32", device="cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def images():
    return data.limit(data.load("digits").train, 200, 0)


class Nearest(nn.Module):
    """Class means of what it saw: a cloud half that needs no training loop."""

    def __init__(self, means):
        super().__init__()
        self.register_buffer("means", means)

    def forward(self, z):
        return -torch.cdist(z.flatten(1), self.means)


def nearest(images, lam, noise_std, seed):
    """Pixels shrunk towards their mean by lam, under noise: the more of both, the less is left."""
    x = images.float().flatten(1)
    centre = x.mean(0)
    edge = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
    with torch.no_grad():
        edge[1].weight.copy_(torch.eye(64) / (1 + lam))
        edge[1].bias.copy_(centre * lam / (1 + lam))
        z = edge(images.float())
        means = torch.stack([z[images.labels == label].mean(0) for label in range(10)])
    return sfumato.SplitModel(edge, sfumato.Channel(noise_std=noise_std), Nearest(means))


def test_a_training_of_your_own(images, tmp_path):
    result = tune_with(nearest, images, FLOOR, tmp_path, name="nearest", space=SPACE)
    assert result["status"] == "found"
    row = result["chosen"]
    meeting = [one["error"] for one in result["curve"] if one["verdict"] in ("chosen", "meets it")]
    assert row["error"] == max(meeting) > result["baseline"]["error"]
    assert row["loss"] <= 0.2
    assert json.loads((tmp_path / "tune.json").read_text()) == json.loads(json.dumps(result))
    assert result["trainings"] == len(list((tmp_path / "trials").glob("*.json"))) <= result["grid_trainings"]


def test_interrupted_it_resumes_with_nothing_lost_and_ends_the_same(images, tmp_path):
    calls = []

    def breaks(images, lam, noise_std, seed):
        calls.append((lam, noise_std, seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return nearest(images, lam, noise_std, seed)

    with pytest.raises(KeyboardInterrupt):
        tune_with(breaks, images, FLOOR, tmp_path / "a", name="nearest", space=SPACE)
    resumed = tune_with(breaks, images, FLOOR, tmp_path / "a", name="nearest", space=SPACE)
    whole = tune_with(nearest, images, FLOOR, tmp_path / "b", name="nearest", space=SPACE)
    assert calls.count(calls[3]) == 2  # the interrupted one, and no other, ran twice
    assert len(calls) == whole["trainings"] + 1
    assert resumed["curve"] == whole["curve"]
    again = tune_with(breaks, images, FLOOR, tmp_path / "a", name="nearest", space=SPACE)
    assert again["chosen"] == whole["chosen"]
    assert len(calls) == whole["trainings"] + 1  # a finished search trains nothing


def test_a_bound_on_trainings_stops_and_a_larger_one_resumes(images, tmp_path):
    few = tune_with(nearest, images, FLOOR, tmp_path, name="nearest", space=SPACE, trainings=3)
    assert (few["status"], few["trainings"], few["chosen"]) == ("unfinished", 3, None)
    assert "--trainings ended the search, the same command resumes it" in few["headline"]
    more = tune_with(nearest, images, FLOOR, tmp_path, name="nearest", space=SPACE, trainings=99)
    assert more["status"] == "found"


def test_no_time_left_is_unfinished(images, tmp_path):
    result = tune_with(nearest, images, FLOOR, tmp_path, name="nearest", space=SPACE, minutes=1e-9)
    assert (result["status"], result["trainings"]) == ("unfinished", 0)


def test_the_folder_of_another_search_is_refused(images, tmp_path):
    tune_with(nearest, images, FLOOR, tmp_path, name="nearest", space=SPACE, trainings=1)
    with pytest.raises(CheckpointError, match=r"holds another search \(lose_at_most 20.0 -> 5\); choose another --run"):
        tune_with(nearest, images, Floor(lose_at_most=5), tmp_path, name="nearest", space=SPACE)
    with pytest.raises(CheckpointError, match="name nearest -> other"):
        tune_with(nearest, images, FLOOR, tmp_path, name="other", space=SPACE)
    with pytest.raises(CheckpointError, match="data_fingerprint"):
        tune_with(nearest, images.subset(range(150)), FLOOR, tmp_path, name="nearest", space=SPACE)
    (tmp_path / "search.json").write_text("{ half")
    with pytest.raises(CheckpointError, match=r"search.json is damaged .*; delete it and run the command again"):
        tune_with(nearest, images, FLOOR, tmp_path, name="nearest", space=SPACE)


def test_mistakes_of_a_library_user_get_a_sentence(images, tmp_path):
    with pytest.raises(ConfigError, match="train gave a Sequential; return a trained sfumato.SplitModel"):
        tune_with(lambda *_: nn.Sequential(), images, FLOOR, tmp_path / "a", name="x", space=SPACE)
    with pytest.raises(DataError, match="60 images are too few to tune on"):
        tune_with(nearest, images.subset(range(60)), FLOOR, tmp_path / "b", name="x", space=SPACE)
    with pytest.raises(
        DataError, match=r"too few to see a loss of 0.5 points: in a half of 100 one image is 1.0 points"
    ):
        tune_with(nearest, images, Floor(lose_at_most=0.5), tmp_path / "c", name="x", space=SPACE)
    one_class = replace(images, labels=torch.where(images.labels == 3, 3, 5))
    with pytest.raises(ConfigError, match="so there is no accuracy to keep; train longer"):
        tune_with(lambda part, *rest: nearest(images, *rest), replace(one_class), FLOOR, tmp_path / "d", name="x",
                  space=SPACE)  # fmt: skip
    with pytest.raises(ConfigError, match="a training of your own is one defence"):
        tune_with(nearest, images, FLOOR, tmp_path / "e", name="x", space=replace(SPACE, defenses=("none", "dropout")))
    with pytest.raises(ConfigError, match="minutes is 0; give a positive number"):
        tune_with(nearest, images, FLOOR, tmp_path / "f", name="x", space=SPACE, minutes=0)
    with pytest.raises(ConfigError, match="trainings is 0; give at least 1"):
        tune_with(nearest, images, FLOOR, tmp_path / "f", name="x", space=SPACE, trainings=0)


def key_of(training, config, space):
    return ConfiguredTrial(training, space, config).key


def test_older_folders_keep_the_names_of_their_results():
    """As they were before trainings were trials of the common engine."""
    training = Training(Setting(0.1, 0.5), 0)
    assert key_of(training, CONFIG, SPACE) == "noise0.1-lam0.5-f0-r0-5a263b283ee6"
    assert OwnTrial(Training(BASELINE, 1, 1), SPACE, nearest, None).key == "noise0-lam0-f1-r1-ridge-nearest"


def test_keys_change_with_what_decides_a_result_and_with_nothing_else():
    trial = Training(Setting(0.1, 0.5), 0)
    key = key_of(trial, CONFIG, SPACE)
    others = {
        key_of(Training(Setting(0.1, 1.0), 0), CONFIG, SPACE),
        key_of(Training(Setting(0.1, 0.5), 1), CONFIG, SPACE),
        key_of(Training(Setting(0.1, 0.5), 0, 1), CONFIG, SPACE),
        key_of(trial, replace(CONFIG, epochs=4), SPACE),
        key_of(trial, CONFIG, replace(SPACE, draws=3)),
        key_of(trial, CONFIG, replace(SPACE, seed=1)),
        key_of(trial, CONFIG, replace(SPACE, attack="decoder")),
    }
    assert len(others | {key}) == 8
    assert key_of(trial, replace(CONFIG, device="auto"), replace(SPACE, confidence=0.5)) == key


def test_the_error_is_that_of_the_strongest_attack_and_identification_stands_beside_it(images):
    learn, held = parts(images, 2, 0, 0)
    model = nearest(learn, 0.0, 0.1, 0)
    attackers = fitted(model, learn, attack="ridge", seed=0)
    assert set(attackers) == {"ridge", "nearest"}
    found = Measured.of(measured(model, attackers, held, draws=2, seed=0, halves=0))
    errors = {name: invert(one, model, held, seed=0).mse for name, one in attackers.items()}
    best = min(errors, key=lambda name: float(errors[name].mean()))
    assert found.strongest == best
    assert found.errors[0] == pytest.approx(float(errors[best][found.selecting].mean()))
    assert found.converged is True
    assert found.leakage["candidates"] == len(held)
    assert 0 < found.leakage["identified"] <= 1


def test_the_baseline_has_nothing_of_the_defence_and_the_rest_in_common():
    own = replace(CONFIG, defense="dropout", cem=True, noise_std=0.2, bottleneck=4)
    baseline = config_of(BASELINE, own)
    assert (baseline.noise_std, baseline.cem, baseline.defense, baseline.bottleneck) == (0.0, False, "none", 4)
    alone = config_of(Setting(0.3), own)
    assert (alone.noise_std, alone.cem, alone.defense) == (0.3, False, "dropout")
    assert config_of(Setting(0.3, 0.7), own) == replace(own, noise_std=0.3, lam=0.7)


def test_a_defence_of_the_space_takes_the_place_of_that_of_the_settings():
    own = replace(CONFIG, defense="dropout", defense_options={"rate": 0.3}, noise_std=0.2)
    other = config_of(Setting(0.3, 0.0, "distcorr"), own)
    assert (other.defense, other.defense_options, other.noise_std) == ("distcorr", {}, 0.3)
    assert config_of(Setting(0.3, 0.0, "dropout"), own) == config_of(Setting(0.3), own)
    assert config_of(Setting(0.3, 0.0, "none"), own).defense == "none"
    names = [key_of(Training(Setting(0.3, 0.0, name), 0), own, SPACE) for name in ("", "none", "distcorr")]
    assert [name.partition("noise")[0] for name in names] == ["", "none-", "distcorr-"]
    assert "defenses" not in SPACE.as_dict()  # older folders of one defence are still the same search
    assert replace(SPACE, defenses=("none", "none", "patrol")).as_dict()["defenses"] == ["none", "patrol"]


def test_a_training_in_parts_is_the_training_in_one(images, tmp_path):
    """Stopped by its deadline before the first step, it resumes at the checkpoint and measures the same."""
    trial = ConfiguredTrial(Training(Setting(0.1, 0.1), 1), SPACE, CONFIG, images)
    whole = trial.measure(Workspace(tmp_path / "a" / trial.key, tmp_path / "none.png"))
    workspace = Workspace(tmp_path / "b" / trial.key, tmp_path / "none.png")
    for _ in range(2):
        with pytest.raises(sfumato.errors.Interrupted):
            trial.measure(replace(workspace, should_stop=lambda: True))
    assert list((tmp_path / "b").glob("*.safetensors"))
    resumed = trial.measure(workspace)
    assert resumed["right"] == whole["right"]
    assert resumed["error_selecting"] == whole["error_selecting"]
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_loss_that_becomes_nan_is_a_setting_that_recognises_nothing(images, tmp_path):
    trial = ConfiguredTrial(Training(Setting(0.1), 0), SPACE, replace(CONFIG, lr=1e30), images)
    record = trial.measure(Workspace(tmp_path, tmp_path / "none.png"))
    assert record["diverged"]
    assert set(record["right"]) == {"0"}


def test_the_yaml_file_trains_what_was_found(tmp_path):
    config = replace(
        CONFIG, cem=True, lam=0.25, noise_std=0.15, defense="distcorr", defense_options={"alpha": 0.3}, data_dir="/a b"
    )
    (tmp_path / "train.yaml").write_text(train_yaml(config))
    parsed = parser_of("train").read(["--config", str(tmp_path / "train.yaml")])
    assert TrainConfig(**given(parsed, TrainConfig)) == config


WORDS = [
    "tune", "--data", "digits", "--limit", "200", "--width", "8", "--epochs", "8", "--batch-size", "16", "--lr", "0.1",
    "--no-augment", "--clusters-per-class", "1", "--device", "cpu", "--folds", "2", "--baselines", "1", "--draws", "2",
    "--noise-stds", "0.1", "--lams", "0.1",
]  # fmt: skip


def test_the_command_finds_shows_writes_and_resumes(tmp_path, capsys, in_this_process):
    folder = tmp_path / "tune"
    words = [*WORDS, "--lose-at-most", "60", "--confidence", "0.5", "--run", str(folder), "--workers", "1"]
    assert main([*words, "--json", str(tmp_path / "out.json")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    result = json.loads((folder / "tune.json").read_text())
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert result["status"] == "found"
    assert result["command"] in out
    assert result["settings"]["noise_std"] == 0.1
    assert 'defense: "cem(' in (folder / "train.yaml").read_text()
    assert 2 < result["trainings"] <= result["grid_trainings"] == 6
    page = (folder / "report.html").read_text()
    assert result["headline"].split(":")[0] in page
    assert "<svg" in page
    assert main(words) == 0  # nothing left to train
    assert json.loads((folder / "tune.json").read_text())["curve"] == result["curve"]
    assert main([*words, "--trainings", "2"]) == 1  # the baseline alone
    assert "the same command resumes it" in " ".join(capsys.readouterr().out.split())
    assert not (folder / "train.yaml").exists()
    assert main([*words, "--seed", "1"]) == 2
    assert "holds another search (seed 0 -> 1" in capsys.readouterr().err


def test_the_command_chooses_among_defences(tmp_path, capsys, in_this_process):
    folder = tmp_path / "tune"
    words = [*WORDS, "--lose-at-most", "60", "--confidence", "0.5", "--run", str(folder), "--workers", "1"]
    assert main([*words, "--defenses", "none", "label_smoothing", "--lams", "1"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    result = json.loads((folder / "tune.json").read_text())
    assert {row["defense"] for row in result["curve"]} == {"none", "label_smoothing"}
    assert result["command"] in out
    assert result["settings"]["defense"] == result["chosen"]["defense"]
    parsed = parser_of("train").read(shlex.split(result["command"])[2:])
    assert TrainConfig(**given(parsed, TrainConfig)).as_dict() == result["settings"]
    assert parsed.run == str(folder / "model")
    names = [curve.name for curve in tune_curves(result)]
    assert names[1:] == ["noise σ 0.1", "label_smoothing noise σ 0.1"]
    described = [Setting(0.1, lam, name).describe() for lam in (0, 1) for name in ("none", "patrol")]
    assert described == [
        "noise 0.1 alone",
        "patrol, noise 0.1, no CEM",
        "noise 0.1, lambda 1",
        "patrol, noise 0.1, lambda 1",
    ]


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (["--defenses", "none", "magic"], "unknown defence 'magic'"),
        (["--lose-at-most", "a bit"], "'a bit' has no meaning here; give a number"),
        (["--lose-at-most", "0"], "give points of accuracy above 0"),
        (["--accuracy-at-least", "1.5"], "give a share above 0 and below 1"),
        (["--lose-at-most", "1", "--accuracy-at-least", "0.9"], "give one floor"),
        (["--defense", "magic"], "magic"),
        (["--lams", "0"], "lams holds 0; give values above 0"),
        (["--limit", "60"], "60 images are too few to tune on"),
        (["--limit", "90"], "too few to see a loss of 1 points"),
        (["--minutes", "-1"], "give a positive number"),
        (["--attack", "telepathy"], "telepathy"),
    ],
)
def test_mistakes_get_one_sentence(extra, text, tmp_path, capsys):
    assert main([*WORDS, *extra, "--run", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert "Traceback" not in said


def test_the_page_draws_one_curve_per_noise_level_and_the_floor(tmp_path):
    row = {"images": 200, "trainings": 2, "accuracy": 0.9, "loss": 0.01, "loss_se": 0.005, "converged": True,
           "strongest": "ridge", "identified": 0.5, "information": None}  # fmt: skip
    result = {
        "headline": "Noise <0.1> & more",
        "notes": [],
        "baseline": {
            "accuracy": 0.91,
            "error": 0.01,
            "trainings": 2,
            "strongest": "ridge",
            "identified": 1.0,
            "information": None,
        },
        "chosen": None,
        "curve": [
            row | {"noise_std": noise, "lam": lam, "error": 0.02 + lam / 100, "verdict": verdict}
            for noise, lam, verdict in ((0.1, 0.5, "chosen"), (0.1, 0.0, "meets it"), (0.3, 0.5, "fails"))
        ],
        "floor": {"lose_at_most": 1.0, "accuracy_at_least": None, "words": "lose at most 1 point of accuracy"},
        "space": SPACE.as_dict(),
        "trainings": 8,
        "grid_trainings": 14,
        "training_seconds": 3.0,
        "images": 400,
        "warnings": [],
        "evidence": {"torch": "2"},
    }
    curves = tune_curves(result)
    assert [curve.name for curve in curves] == ["", "noise σ 0.1", "noise σ 0.3"]
    assert [point.note for point in curves[1].points] == ["σ 0.1", "λ 0.5"]
    assert [point.emphasis for point in curves[1].points] == [False, True]
    write_tune_report(tmp_path / "page.html", result)
    page = (tmp_path / "page.html").read_text()
    assert "Noise &lt;0.1&gt; &amp; more" in page
    assert "Floor: 90.0 %." in page
    assert "Train it" not in page  # nothing was chosen
