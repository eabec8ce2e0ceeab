"""A defence in one line: one text for one value, and one sentence for every mistake."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sfumato
from sfumato import defenses
from sfumato.defenses import CEMDefense, Defense, DefenseLine, Dropout, expand
from sfumato.errors import ConfigError
from sfumato.training import TrainConfig

POSITIVE = st.floats(1e-9, 1e9, allow_nan=False, exclude_max=True)
SHARE = st.floats(0, 0.999)
MECHANISMS = {
    "noise": st.builds(
        "noise({!r}, shape={})".format,
        st.floats(1e-9, 1e6, exclude_max=True),
        st.sampled_from(["white", "fisher", "low"]),
    ),
    "clip": st.builds("clip(radius={!r})".format, POSITIVE),
    "levels": st.builds("levels({})".format, st.integers(1, 16)),
    "cem": st.builds(
        "cem({!r}, schedule={}, covariance={}, clusters={}, refresh={})".format,
        POSITIVE,
        st.sampled_from(["ramp", "lr_coupled", "'constant'"]),
        st.sampled_from(["full", "tied", "diagonal", "none"]),
        st.sampled_from(["none", "1", "3"]),
        st.integers(1, 9),
    ),
}
OTHERS = st.one_of(
    st.builds("ressfl(alpha={!r}, threshold={!r}, width={})".format, POSITIVE, SHARE, st.integers(1, 64)),
    st.builds("dropout({!r})".format, SHARE),
    st.builds("distcorr({!r})".format, POSITIVE),
    st.builds("label_smoothing(smoothing=-{!r})".format, SHARE),
    st.builds("patrol(16, budget={})".format, st.sampled_from(["none", "1000"])),
    st.sampled_from(["ressfl", "patrol", "none"]),
)


@st.composite
def lines(draw):
    parts = [draw(OTHERS), draw(MECHANISMS["noise"])]
    parts += [draw(MECHANISMS[name]) for name in draw(st.sets(st.sampled_from(["clip", "levels", "cem"])))]
    return draw(st.sampled_from([" + ", "+", "  +\n"])).join(draw(st.permutations(parts)))


@settings(max_examples=80, deadline=None)
@given(lines())
def test_what_is_printed_reads_back_to_the_same_value(text):
    line = sfumato.defense(text)
    assert sfumato.defense(str(line)) == line
    assert str(sfumato.defense(str(line))) == str(line)
    assert sfumato.defense(line.compact) == line
    assert sfumato.defense(line) is line


@settings(max_examples=40, deadline=None)
@given(lines())
def test_a_training_keeps_the_line_and_its_identity(text):
    config = TrainConfig(defense=text)
    again = TrainConfig(defense=str(config.line))
    assert again == config
    assert again.identity() == config.identity()
    assert TrainConfig.from_dict(config.as_dict()) == config


def test_one_form_is_printed():
    assert str(sfumato.defense("noise(.15) + clip(1) + cem(0.1) + ressfl")) == (
        "ressfl(0.3) + cem(0.1) + noise(0.15) + clip(1)"
    )
    assert str(sfumato.defense(" none ")) == "none"
    assert str(sfumato.defense("cem(0.3, clusters=none) + noise(1e-5)")) == "cem(0.3) + noise(1e-05)"
    assert sfumato.defense("cem(1) + noise(2)") == sfumato.defense("noise(2.0) + cem(lam=1.0)")


def test_short_forms_are_the_same_settings():
    short = TrainConfig(defense="ressfl", cem=True, lam=0.1, noise_std=0.15, clip_norm=1.0)
    assert TrainConfig(defense="ressfl + cem(0.1) + noise(0.15) + clip(1)") == short
    assert short.digest() == "408e50b1"  # the names of stored results stay
    assert TrainConfig().digest() == "25628f7e"
    assert TrainConfig(cem=True).digest() == "f8729a0b"
    assert TrainConfig(defense=sfumato.defense("cem + noise(0.2)")) == TrainConfig(cem=True, noise_std=0.2)
    assert replace(short, noise_std=0.2).line == sfumato.defense("ressfl + cem(0.1) + noise(0.2) + clip(1)")


def test_what_contradicts_the_line_is_refused():
    with pytest.raises(ConfigError, match=r"noise_std is 0.1, but the defence 'noise\(0.15\)' means 0.15; give one"):
        expand({"defense": "noise(0.15)", "noise_std": 0.1})
    with pytest.raises(ConfigError, match="cem is False, but"):
        expand({"defense": "cem(0.1)", "cem": False})
    with pytest.raises(ConfigError, match="lam is 0.2, but"):
        TrainConfig(defense="cem(0.1)", lam=0.2)
    assert expand({"defense": "cem(0.1)", "lam": 0.1})["lam"] == 0.1
    assert expand({"epochs": 3}) == {"epochs": 3}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "resfl",
            r"unknown mechanism 'resfl' \(did you mean ressfl\?\); known are .*dropout\(rate\).*cem\(lam, schedule,",
        ),
        ("ressfl(alhpa=1)", r"ressfl has no setting 'alhpa' \(did you mean alpha\?\); write ressfl\(alpha, threshold"),
        ("noise", r"noise needs its std; write noise\(std, shape\)"),
        ("noise(1, white, 3)", r"noise takes 2 values, not 3; write noise\(std, shape\)"),
        ("cem(0.1, lam=2)", "a setting of cem is given twice"),
        ("noise(nan)", "std of noise is 'nan'; give a finite number"),
        ("noise(1e999)", "cannot be read"),
        ("noise(-1)", "noise_std is -1.0; give a finite standard deviation"),
        ("levels(2.5)", "bits of levels is 2.5; give a whole number"),
        ("levels(17)", "give a whole number from 1 to 16"),
        ("cem(-1) + noise(1)", "lam of cem is -1.0, which would reward leaking"),
        ("cem(1, schedule=rump)", "schedule of cem is 'rump'; give one of ramp, lr_coupled, constant"),
        ("ressfl(alpha=-1)", "which would reward leaking"),
        ("noise(1) + noise(2)", "names noise twice; name it once"),
        ("", "cannot be read"),
        ("cem(0.1", r"cannot be read \('\(' was never closed\); write mechanisms joined by \+"),
        ("os.system('x')", "is no mechanism"),
        ("ressfl - cem", "is no mechanism"),
        ("(" * 300, "cannot be read"),
        ("noise(1)" + " " * 2000 + "+ clip(1)", "more than 1000 characters"),
    ],
)
def test_mistakes_get_one_sentence(text, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        sfumato.defense(text)
    assert "\n" not in str(caught.value)


def test_a_training_takes_one_defence_beside_cem_and_the_channel():
    line = sfumato.defense("ressfl + dropout + noise(0.1)")
    with pytest.raises(ConfigError, match="give dropout or ressfl"):
        line.settings()
    with pytest.raises(ConfigError, match="a training takes one defence"):
        TrainConfig(defense=str(line))


def test_a_line_builds_what_it_names():
    line = sfumato.defense("dropout(0.25) + cem(0.5, clusters=2, update=epoch) + noise(0.2) + clip(3) + levels(8)")
    drop, cem = line.build(num_classes=4, seed=3)
    assert isinstance(drop, Dropout)
    assert isinstance(cem, CEMDefense)
    assert (cem.lam, cem.cem.num_classes, cem.cem.update) == (0.5, 4, "epoch")
    channel = line.channel()
    assert (channel.noise_std, channel.clip_norm, channel.quantize_bits) == (0.2, 3.0, 8)
    with pytest.raises(ConfigError, match="without noise the information in a feature is infinite"):
        sfumato.defense("cem(0.1)").build(num_classes=4)


def test_a_defence_of_ones_own_takes_part_by_itself(monkeypatch):
    monkeypatch.setattr(defenses.registry, "_CLASSES", dict(defenses.registry._CLASSES))

    @defenses.register
    class Mine(Defense):
        name = "mine"

        def __init__(self, weight: float = 1.0, word: str = "a b", hard: bool = False) -> None:
            super().__init__()

    line = sfumato.defense("mine(2, word='none', hard=true) + noise(0.1)")
    assert str(line) == "mine(2, word='none', hard=true) + noise(0.1)"
    assert sfumato.defense(str(line)) == line
    assert TrainConfig(defense=line).defense_options == {"weight": 2.0, "word": "none", "hard": True}
    with pytest.raises(ConfigError, match=r"mine\(weight, word, hard\)"):
        sfumato.defense("nothing_like_it")
    assert str(DefenseLine.of(TrainConfig(defense="mine"))) == "mine(1) + noise(0.1)"
