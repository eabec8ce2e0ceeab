"""The search in worlds whose truth is known."""

import math

import pytest
from tune_worlds import World

from sfumato.errors import ConfigError
from sfumato.studies import Floor, Setting, Space
from sfumato.studies.search import Decision

SPACE = Space()
FLOOR = Floor(lose_at_most=1.0)


def rung(setting: Setting) -> int:
    return SPACE.ladder.index(setting.lam)


def gentle(knee):
    """Loses 1 point at rung `knee`, twice as much with every rung; the noise itself costs a little."""
    return lambda setting: 0.01 * 2.0 ** (rung(setting) - knee) + 0.002 * setting.noise_std


def protecting(setting):
    """More with lambda, slower and slower, and with noise."""
    return 0.02 + 0.01 * setting.noise_std + 0.02 * (1 - math.exp(-rung(setting) / 3))


def test_the_floor_is_met_in_truth_and_most_of_the_error_is_kept():
    met, kept, trainings = 0, [], []
    for seed in range(12):
        loss = gentle(3 + seed % 4)
        world = World(SPACE, loss, protecting, seed=seed, images=2400)
        decision, book = world.walk(FLOOR)
        trainings.append(len(world.asked))
        best = max(protecting(one) for one in SPACE.settings if loss(one) <= 0.01)
        if decision.chosen is not None:
            met += loss(decision.chosen) <= 0.01
            assert book.passes(decision.chosen)
            assert book.confirmed(decision.chosen)
            assert decision.asked[-1] == decision.chosen
        kept.append(0.0 if decision.chosen is None else min(1.0, protecting(decision.chosen) / best))
    assert met >= 10
    assert sum(kept) / len(kept) >= 0.8
    assert sum(trainings) / len(trainings) < 0.55 * (len(SPACE.settings) * SPACE.folds)


def test_a_floor_that_nothing_meets_is_said_to_be_met_by_nothing():
    world = World(SPACE, lambda setting: 0.05, protecting)
    decision, _ = world.walk(FLOOR)
    assert decision.chosen is None
    assert len(world.asked) < 30


def test_settings_that_cost_nothing_lead_to_the_top():
    decision, _ = World(SPACE, lambda setting: -0.005, protecting).walk(FLOOR)
    assert decision.chosen == Setting(0.4, 4.0)


def test_noise_alone_is_chosen_where_cem_costs_too_much():
    world = World(SPACE, lambda setting: 0.2 if setting.lam else -0.01, protecting)
    decision, _ = world.walk(FLOOR)
    assert decision.chosen == Setting(0.4, 0.0)


@pytest.mark.parametrize("cost", [0.0, 0.2])
def test_of_several_defences_the_one_that_protects_most_is_chosen_if_it_meets_the_floor(cost):
    space = Space(noise_stds=(0.1, 0.4), defenses=("none", "ressfl"))
    world = World(
        space,
        lambda setting: -0.005 + cost * (setting.defense == "ressfl"),
        lambda setting: protecting(setting) + 0.02 * (setting.defense == "ressfl"),
    )
    decision, _ = world.walk(FLOOR)
    assert decision.chosen is not None
    assert decision.chosen.defense == ("none" if cost else "ressfl")
    for foot in space.feet:  # each ladder is bisected
        assert len({trial.setting.lam for trial in world.asked if trial.setting.at(0.0) == foot}) >= 3


def test_the_walk_depends_on_what_is_measured_alone():
    first, second = (World(SPACE, gentle(4), protecting, seed=5) for _ in range(2))
    assert first.walk(FLOOR)[0] == second.walk(FLOOR)[0]
    assert first.asked == second.asked


def test_a_baseline_at_chance_has_no_accuracy_to_keep():
    with pytest.raises(
        ConfigError, match=r"recognises 97\..% of the held-out images and always giving the most frequent"
    ):
        World(SPACE, gentle(4), protecting).walk(FLOOR, chance=0.97)


def test_an_accuracy_that_the_baseline_does_not_reach_is_not_searched_for():
    world = World(SPACE, gentle(4), protecting)
    decision, _ = world.walk(Floor(accuracy_at_least=0.995))
    assert decision == Decision(None, ())
    assert len(world.asked) == len(SPACE.baseline_trainings) + len(SPACE.noise_stds)


def test_an_absolute_floor_is_met_in_truth():
    loss = gentle(4)
    decision, _ = World(SPACE, loss, protecting, images=6000).walk(Floor(accuracy_at_least=0.95))
    assert decision.chosen is not None
    assert 0.97 - loss(decision.chosen) >= 0.95


def test_rungs_whose_trainings_diverge_do_not_end_their_ladders():
    """A training whose loss became NaN recognises nothing and has no attacker's error."""

    def error(setting):
        return 0.0 if setting.lam >= 1 else protecting(setting)

    world = World(SPACE, lambda setting: 0.97 if setting.lam >= 1 else -0.01, error)
    assert world.walk(FLOOR)[0].chosen == Setting(0.4, 0.5)
