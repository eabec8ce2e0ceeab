"""Defences by name, and a user's own file."""

import pytest

from sfumato import defenses
from sfumato.errors import ConfigError
from sfumato.training import TrainConfig

PLUGIN = """
from sfumato.defenses import Defense, register

@register
class Quiet(Defense):
    name = "{name}"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def penalty(self, batch):
        return self.weight * batch.features.square().mean()
"""


def test_the_librarys_defences_are_known():
    assert set(defenses.names()) >= {"distcorr", "dropout", "patrol", "ressfl", "label_smoothing"}
    assert isinstance(defenses.build("dropout", rate=0.3), defenses.Dropout)
    assert defenses.version("dropout") is None


def test_mistakes_get_a_sentence():
    with pytest.raises(ConfigError, match="unknown defence 'dropuot'; known are none, .*dropout"):
        defenses.build("dropuot")
    with pytest.raises(ConfigError, match="'dropout' has no option 'p'; it takes rate"):
        defenses.build("dropout", p=0.5)
    with pytest.raises(ConfigError, match="rate of defence 'dropout' is 'much'; give a finite number"):
        defenses.build("dropout", rate="much")
    with pytest.raises(ConfigError, match="blocks of defence 'ressfl' is 1.5; give a whole number"):
        defenses.build("ressfl", blocks=1.5)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "quiet.py"
    path.write_text(PLUGIN.format(name="quiet"))
    defenses.load_plugin(path)
    defenses.load_plugin(path)  # once more does nothing
    assert defenses.build("quiet", weight=2.0).weight == 2.0
    first = TrainConfig(defense="quiet").digest()
    path.write_text(PLUGIN.format(name="quiet") + "# another version\n")
    defenses.load_plugin(path)
    assert TrainConfig(defense="quiet").digest() != first  # results of two versions are never mixed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "registers no defence"),
        ("1 / 0\n", "cannot be run: ZeroDivisionError"),
        (PLUGIN.format(name="none"), "'none' is taken"),
        (PLUGIN.format(name="ressfl"), "'ressfl' is taken"),
        (PLUGIN.format(name="two words"), "give it a class attribute"),
    ],
)
def test_bad_plugins(tmp_path, text, message):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        defenses.load_plugin(path)
    with pytest.raises(ConfigError, match="cannot read the plugin"):
        defenses.load_plugin(tmp_path / "missing.py")
