"""Devices by name. There is no Mac behind these tests: that MPS is left alone is tested, MPS itself never was."""

import pytest
import torch

from sfumato.cli.main import main
from sfumato.compute import device_of
from sfumato.errors import ConfigError, SfumatoWarning


@pytest.mark.parametrize(("there", "why"), [(True, "it has no float64"), (False, "this machine has none")])
def test_mps_becomes_the_cpu_with_one_sentence(monkeypatch, there, why):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: there)
    with pytest.warns(SfumatoWarning) as caught:
        assert device_of("mps") == device_of("mps:0") == torch.device("cpu")
    sentences = {str(one.message) for one in caught}
    assert len(sentences) == 1
    (sentence,) = sentences
    assert why in sentence
    assert sentence.endswith("on the CPU instead")


def test_auto_takes_no_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == torch.device("cpu")


@pytest.mark.filterwarnings("default::sfumato.errors.SfumatoWarning")
def test_a_training_on_mps_is_one_on_the_cpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    words = ["--limit", "60", "--test-limit", "20", "--epochs", "1", "--batch-size", "30", "--run", str(tmp_path)]
    assert main(["train", "--data", "digits", "--device", "mps", *words]) == 0
    told = capsys.readouterr().err
    assert told.count("device mps is not used") == 1
    assert "Traceback" not in told
    assert (tmp_path / "result.json").exists()


@pytest.mark.parametrize("name", ["meta", "xpu", "mpz"])
def test_others_are_refused_with_a_remedy(name):
    with pytest.raises(ConfigError, match="give auto, cpu or cuda"):
        device_of(name)
