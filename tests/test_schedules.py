import pytest

from sfumato.cem import SCHEDULES, schedule
from sfumato.errors import ConfigError


def test_names_and_values():
    assert set(SCHEDULES) == {"constant", "lr_coupled", "ramp"}
    assert [schedule("constant")(progress, 0.05) for progress in (0.0, 0.5, 1.0)] == [1.0, 1.0, 1.0]
    assert schedule("ramp")(0.0, 0.05) == 0.0
    assert schedule("ramp")(0.3, 0.05) == pytest.approx(0.5)
    assert schedule("ramp")(0.6, 0.05) == pytest.approx(1.0)
    assert schedule("ramp")(1.0, 0.05) == 1.0


def test_the_authors_coupling_keeps_the_cem_step_constant():
    coupled = schedule("lr_coupled")
    assert [lr * coupled(0.0, lr) for lr in (0.05, 0.01, 0.002)] == pytest.approx([0.001] * 3)
    assert coupled(0.0, 0.0004) == 1.0


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        ConfigError, match="unknown schedule of lambda 'later'; choose one of constant, lr_coupled, ramp"
    ):
        schedule("later")
