"""Noise for a frozen model: the way from target to saved split."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from sfumato import Channel, SplitModel, load_split, save_split
from sfumato.audit import Subject
from sfumato.cli.main import main
from sfumato.data import DataSets, ImageSet
from sfumato.defenses.shapes import propose
from sfumato.errors import CheckpointError, ConfigError
from sfumato.protect import ProtectConfig, protect, run

SIDE, D = 4, 6
FAST = ProtectConfig(lose_at_most=2, decoder_epochs=0)


class Edge(nn.Module):
    """Six numbers of an image, of which the cloud needs two."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.randn(SIDE * SIDE, D, generator=torch.Generator().manual_seed(0))
        self.weight = nn.Parameter(torch.linalg.qr(drawn)[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(2 * (x.flatten(1) - 0.5) @ self.weight)


class Cloud(nn.Module):
    """The class is the larger of the first two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.eye(D)[:2] * 20)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z @ self.gain.T


def made(count: int, seed: int) -> ImageSet:
    pixels = torch.randint(0, 256, (count, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(seed)).byte()
    with torch.no_grad():
        labels = Cloud()(Edge()(pixels.float() / 255)).argmax(1)
    return ImageSet(pixels, labels, ("left", "right"))


@cache
def sets() -> DataSets:
    return DataSets("made", made(240, 1), made(160, 2), "")


def subject(cloud: nn.Module | None = None, digest: str = "") -> Subject:
    model = SplitModel(Edge(), Channel(), cloud or Cloud()).eval()
    return Subject("frozen", model, classes=("left", "right"), digest=digest)


@pytest.fixture(scope="module")
def protected(tmp_path_factory):
    out = tmp_path_factory.mktemp("protected") / "out"
    return protect(subject(), sets(), out, FAST), out


class TestProtect:
    def test_the_floor_holds_and_shaped_noise_hides_more(self, protected):
        result, _ = protected
        lines = {line["name"]: line for line in result["shapes"]}
        assert result["chosen"] not in ("white", "null")
        for line in lines.values():
            assert line["accuracy_validation"] >= result["floor"]
        best, white = lines[result["chosen"]], lines["white"]
        assert best["error"] > 1.05 * white["error"]
        assert best["identified"] < white["identified"]
        assert best["identified"] - 3 * best["identified_error"] <= best["identified_at_most"]
        assert all(set(line["attacks"]) == {"ridge", "nearest"} for line in lines.values())

    def test_the_null_space_is_shown_as_void_and_never_chosen(self, protected):
        null = {line["name"]: line for line in protected[0]["shapes"]}["null"]
        assert null["singular"]
        assert null["identified_at_most"] == 1
        assert null["information"] is None

    def test_the_folder_is_a_saved_split_with_that_noise(self, protected):
        result, out = protected
        model = load_split(out)
        (line,) = [line for line in result["shapes"] if line["name"] == result["chosen"]]
        assert model.channel.noise.rms == pytest.approx(line["noise_std"])
        drawn = model.encode(torch.full((20_000, 1, SIDE, SIDE), 0.5), torch.Generator().manual_seed(0))
        wanted = model.channel.noise.covariance(D)
        assert np.allclose(np.cov(drawn.detach().numpy().T), wanted, atol=0.05 * float(wanted.max()))
        assert json.loads((out / "protect.json").read_text()) == json.loads(json.dumps(result))

    def test_interrupted_it_resumes_after_the_last_trial(self, protected, tmp_path, monkeypatch):
        asked: list[str] = []

        def watched(name):
            whole = getattr(run._Search, name)
            monkeypatch.setattr(run._Search, name, lambda *given: asked.append(name) or whole(*given))

        def stop(words):
            if words == "attacks on full noise":
                raise KeyboardInterrupt

        for name in ("_strongest", "_measured"):
            watched(name)
        with pytest.raises(KeyboardInterrupt):
            protect(subject(digest="1"), sets(), tmp_path, FAST, tell=stop)
        assert asked.count("_measured") == 2
        seen, asked[:] = len(protected[0]["shapes"]), []
        result = protect(subject(digest="1"), sets(), tmp_path, FAST)
        assert asked == ["_measured"] * (seen - 2)
        changing = ("seconds", "evidence")
        same, once = ({name: one[name] for name in one if name not in changing} for one in (result, protected[0]))
        assert json.loads(json.dumps(same)) == json.loads(json.dumps(once))
        assert not (tmp_path / "trials.json").exists()

    def test_trials_of_other_settings_are_measured_anew(self, tmp_path):
        path = tmp_path / "trials.json"
        assert run._Trials(path, {"seed": 0})("one", lambda: 1) == 1
        assert run._Trials(path, {"seed": 0})("one", lambda: 2) == 1
        assert run._Trials(path, {"seed": 1})("one", lambda: 2) == 2

    def test_damaged_numbers_are_found(self, protected, tmp_path):
        shutil.copytree(protected[1], tmp_path / "copy")
        (tmp_path / "copy" / "noise.f32").write_bytes(b"\0" * 8)
        with pytest.raises(CheckpointError, match="noise.f32 is missing or not the file"):
            load_split(tmp_path / "copy")

    def test_a_retuned_cloud_bears_at_least_as_much(self, tmp_path, monkeypatch):
        monkeypatch.setattr("sfumato.protect.run.propose", lambda *given: propose(*given)[2:3])
        few = DataSets("made", sets().train.subset(range(200)), sets().test, "")
        plain, tuned = (
            protect(subject(), few, tmp_path / str(retune), ProtectConfig(2, retune_cloud=retune, decoder_epochs=0))
            for retune in (False, True)
        )
        for before, after in zip(plain["shapes"], tuned["shapes"], strict=True):
            assert after["strength"] >= before["strength"]

    def test_no_labels_are_needed(self, tmp_path, monkeypatch):
        monkeypatch.setattr("sfumato.protect.run.propose", lambda *given: propose(*given)[2:3])
        bare = DataSets(
            "made",
            *(ImageSet(one.images, one.labels * 0, one.classes) for one in (sets().train, sets().test)),
            "",
            labelled=False,
        )
        result = protect(subject(), bare, tmp_path, FAST)
        assert result["clean_accuracy"] == 1
        assert result["chosen"] != "white"


class Hair(Cloud):
    """A cloud that any noise turns over."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return super().forward(z) if float(z.std()) == 0 else torch.stack([(z * 1e8).sum(1).sin(), z[:, 0] * 0], 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "digits"], "the following arguments are required: --out"),
        (["--data", "digits", "--out", "{}/out", "--lose-at-most", "-1"], "lose_at_most"),
    ],
)
def test_mistakes_end_with_a_sentence_and_2(words, message, tmp_path, capsys):
    model = SplitModel(Edge(), Channel(), Cloud()).eval()
    folder = save_split(model, tmp_path / "frozen", example_input=torch.rand(2, 1, SIDE, SIDE))
    assert main(["protect", str(folder), *(word.format(tmp_path) for word in words)]) == 2
    assert message in capsys.readouterr().err


def test_a_floor_that_no_strength_meets(tmp_path):
    with pytest.raises(ConfigError, match="no noise keeps an accuracy.*allow to lose more with --lose-at-most"):
        protect(subject(Hair()), DataSets("made", sets().train, sets().test, "", labelled=False), tmp_path, FAST)


def test_a_target_without_a_cloud(tmp_path):
    bare = Subject("encoder", SplitModel(Edge(), Channel(), nn.Identity()), classifies=False)
    with pytest.raises(ConfigError, match="no cloud that answers with classes"):
        protect(bare, sets(), tmp_path)


@pytest.mark.parametrize(("second", "chosen"), [(0.60, 1), (0.52, 2)], ids=["clearly the least", "within one error"])
def test_the_least_identified_is_chosen_and_never_one_with_a_bare_direction(second, chosen):
    rows = [(True, 0.0, 0.9), (False, 0.5, 0.1), (False, second, 0.2)]  # bare or not, identified, error
    lines = [
        {"singular": singular, "identified": identified, "identified_error": 0.03, "error": error}
        for singular, identified, error in rows
    ]
    assert run._chosen(lines) == chosen
