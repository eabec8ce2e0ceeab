"""Every attack is one row of a table and passes the same suite."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from attack_cases import LEARNED, fitted, images, observer, weights

from sfumato import attacks, checkpoint
from sfumato.attacks import DecoderConfig, GanConfig, build, invert
from sfumato.attacks.learned import Learner
from sfumato.errors import CheckpointError, ConfigError, Interrupted, NotFittedError, SfumatoError

STEPS = 6  # batches of an epoch: 180 images to learn from, 32 each


@pytest.fixture(params=LEARNED)
def config(request):
    return LEARNED[request.param]


@cache
def whole(config):
    """What nobody disturbed, and its victim."""
    return fitted(config)


def counting(config, made: list[int]):
    """The attack, noting every step that it makes."""

    class Counting(type(build(config))):
        def _step(self, learner, turn):
            made.append(turn.number)
            return super()._step(learner, turn)

    return Counting(config)


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_more_noise_leaves_more_error_and_little_noise_far_less_than_the_mean_image(config):
    unseen, errors = images(100, seed=1), []
    for noise in (0.02, 0.2, 2.0):
        attack, model = fitted(replace(config, epochs=4), noise)
        errors.append(float(invert(attack, model, unseen).mse.mean()))
    assert errors[0] < 0.25 * float((unseen.float() - images(200).float().mean(0)).square().mean())
    assert errors[0] < 0.98 * errors[1]
    assert errors[1] < 1.02 * errors[2]  # where the noise hides all, all attacks end near the mean image


def test_killed_after_any_epoch_it_ends_with_the_same_network(config, tmp_path):
    class Killed(Exception):
        pass

    def kill(done: int, _total: int, _figures: dict) -> None:
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        build(config).fit(observer(), state=tmp_path / "state", progress=kill)
    resumed = build(config).fit(observer(), state=tmp_path / "state")
    undisturbed = whole(config)[0]
    assert same(weights(undisturbed), weights(resumed))
    assert undisturbed.history == resumed.history
    assert undisturbed.outcome == resumed.outcome


@pytest.mark.parametrize("stop_after", [1, STEPS + 3, 2 * STEPS, 4 * STEPS])
def test_stopped_in_the_middle_of_an_epoch_it_ends_with_the_same_network(config, tmp_path, stop_after):
    made: list[int] = []
    with pytest.raises(Interrupted, match="the attack was stopped; the same command resumes there"):
        counting(config, made).fit(observer(), state=tmp_path / "state", should_stop=lambda: len(made) == stop_after)
    (tmp_path / "state").rename(tmp_path / "state.previous")  # as a crash between the two renames of a save leaves it
    resumed = counting(config, made).fit(observer(), state=tmp_path / "state")
    assert made == list(range(4 * STEPS))  # no step was made twice
    undisturbed = whole(config)[0]
    assert same(weights(undisturbed), weights(resumed))
    assert undisturbed.history == resumed.history


def test_it_saves_within_an_epoch_so_that_a_kill_costs_little(config, tmp_path):
    places = []

    def look() -> bool:
        if (tmp_path / "state").exists():
            places.append(tuple(checkpoint.load(tmp_path / "state")[1]["place"]))
        return False

    attack = build(replace(config, epochs=2))
    attack.checkpoint_seconds = 0.0
    attack.fit(observer(), state=tmp_path / "state", should_stop=look)
    expected = [(epoch, step) for epoch in range(2) for step in range(STEPS + 1)]
    assert list(dict.fromkeys(places)) == [*expected[1:], (2, 0)]


def test_with_time_left_it_saves_at_the_ends_of_epochs_only(config, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Learner, "save", lambda learner, *_: saved.append((learner.epoch, learner.step)))
    build(replace(config, epochs=2)).fit(observer(), state=tmp_path / "state")
    assert saved == [(1, 0), (2, 0)]


def test_the_time_counts_over_all_calls(config, tmp_path, monkeypatch):
    made: list[int] = []
    monkeypatch.setattr("sfumato.attacks.learned.time.monotonic", lambda: float(len(made)))  # a second for each step
    with pytest.raises(Interrupted):
        counting(replace(config, epochs=1), made).fit(
            observer(), state=tmp_path / "state", should_stop=lambda: len(made) == 3
        )
    made += range(1000)
    attack = counting(replace(config, epochs=1), made).fit(observer(), state=tmp_path / "state")
    assert attack.seconds == STEPS


@pytest.mark.parametrize("stop_after", [None, 2 * STEPS + 1, 3 * STEPS + 1])
def test_the_epoch_with_the_smallest_held_out_error_is_kept(config, tmp_path, monkeypatch, stop_after):
    errors = iter([0.5, 0.2, 0.3, 0.4])
    seen = []

    def judge(_attack, net, *_):
        seen.append({name: value.clone() for name, value in net.state_dict().items()})
        return next(errors)

    monkeypatch.setattr("sfumato.attacks.learned.LearnedAttack._judge", judge)
    if stop_after is not None:
        made: list[int] = []
        with pytest.raises(Interrupted):
            counting(config, made).fit(
                observer(), state=tmp_path / "state", should_stop=lambda: len(made) == stop_after
            )
    attack, _ = fitted(config, state=tmp_path / "state")
    assert same(weights(attack), seen[1])
    assert not same(weights(attack), seen[2])
    assert attack.outcome is not None
    assert attack.outcome.held_out_mse == 0.2


def test_figures_are_means_over_the_images_of_an_epoch_and_noise_is_fresh_in_every_step(config):
    kind = type(build(config))
    steps, seeds = [], set()

    class Watching(kind):
        def _step(self, learner, turn):
            means = super()._step(learner, turn)
            steps.append((len(turn.x), float(means[0])))
            seeds.add(turn.random("noise").initial_seed())
            return means

    attack = Watching(replace(config, epochs=2)).fit(observer())
    assert len(seeds) == 2 * STEPS
    for epoch, line in enumerate(attack.history):
        mine = steps[epoch * STEPS : (epoch + 1) * STEPS]
        assert [count for count, _ in mine] == [32] * 5 + [20]
        assert line["mse"] == pytest.approx(sum(count * error for count, error in mine) / 180, rel=1e-6)


def test_held_out_images_are_never_learned_from(config, monkeypatch):
    watched = observer()
    asked: list[torch.Tensor] = []
    pairs = watched.pairs
    attack = build(replace(config, epochs=1))
    epoch = attack._epoch

    def begin(*arguments):  # what is asked before the first epoch fits the strong attack's linear start
        monkeypatch.setattr(watched, "pairs", lambda indices, g: asked.append(indices) or pairs(indices, g))
        epoch(*arguments)

    monkeypatch.setattr(attack, "_epoch", begin)
    attack.fit(watched)
    learned, judged = torch.cat(asked[:STEPS]), asked[STEPS]
    assert len(learned) == 180
    assert sorted(torch.cat([learned, judged]).tolist()) == list(range(200))


def test_a_single_epoch_is_flagged(config):
    attack, _ = fitted(replace(config, epochs=1))
    assert attack.outcome is not None
    assert not attack.outcome.converged


def test_the_history_names_the_figures(config):
    attack, _ = whole(config)
    assert [line["epoch"] for line in attack.history] == [0, 1, 2, 3]
    for line in attack.history:
        assert line.keys() == {"epoch", *attack.figures, "held_out_mse"}
        assert line["mse"] > 0
    assert "mse" in attack.figures


def test_bfloat16_learns_too(config):
    exact, _ = whole(config)  # float32 on every machine
    rounded, model = fitted(replace(config, precision="bf16"))
    assert not same(weights(exact), weights(rounded))
    last = rounded.history[-1]["held_out_mse"]
    assert last == pytest.approx(exact.history[-1]["held_out_mse"], rel=0.3)
    assert all(value.dtype != torch.bfloat16 for value in weights(rounded).values())
    assert rounded.reconstruct(model.encode(images(10).float())).dtype == torch.float32


def test_the_global_generator_is_left_alone(config):
    torch.manual_seed(5)
    expected = torch.rand(3)
    watched = observer()
    torch.manual_seed(5)
    build(replace(config, epochs=1)).fit(watched)
    assert torch.equal(torch.rand(3), expected)


def test_a_state_of_another_attack_is_refused(config, tmp_path):
    state = tmp_path / "state"
    build(replace(config, epochs=1)).fit(observer(), state=state)
    for other in (
        replace(config, epochs=1, seed=1),
        *(one for one in LEARNED.values() if type(one) is not type(config)),
    ):
        with pytest.raises(CheckpointError, match="other settings or images; delete it to start anew"):
            build(other).fit(observer(), state=state)
    with pytest.raises(CheckpointError, match="other settings or images"):
        build(replace(config, epochs=1)).fit(observer(count=201), state=state)


def test_an_error_that_is_no_number_ends_the_attack(config, monkeypatch):
    monkeypatch.setattr("sfumato.attacks.learned.LearnedAttack._judge", lambda *_: float("nan"))
    with pytest.raises(SfumatoError, match="error became nan in epoch 0; lower its learning rate and start anew"):
        build(config).fit(observer())


def test_mistakes(config):
    with pytest.raises(NotFittedError, match=r"call fit\(observer\) first"):
        build(config).reconstruct(torch.zeros(1, 4, 4, 4))
    with pytest.raises(ConfigError, match="at least 2 images"):
        build(config).fit(observer(count=1))
    with pytest.raises(ConfigError, match="hold_out is 0"):
        replace(config, hold_out=0.0)
    for setting in ("epochs", "batch_size", "width"):
        with pytest.raises(ConfigError, match="is (0|-1); give at least"):
            replace(config, **{setting: 0})


def test_the_registry_finds_an_attack_by_its_settings(config):
    attack = build(config)
    name = attacks.name_of(config)
    assert attack.name == name
    assert attack.config is config
    assert attacks.ATTACKS[name] == (type(attack), type(config))


def test_settings_from_values():
    assert attacks.config_from_dict("gan", {"epochs": 3}) == GanConfig(epochs=3)
    assert attacks.config_from_dict("decoder", {}) == DecoderConfig()
    with pytest.raises(ConfigError, match="unknown attack 'banana'; choose one of decoder, gan, ridge"):
        attacks.config_from_dict("banana", {})
    with pytest.raises(
        ConfigError, match="the gan attack has no setting 'lr'; its settings are hold_out, seed, epochs"
    ):
        attacks.config_from_dict("gan", {"lr": 0.1})
    with pytest.raises(ConfigError, match="str holds the settings of no attack; give one of DecoderConfig, GanConfig"):
        attacks.build("decoder")  # type: ignore[arg-type]
