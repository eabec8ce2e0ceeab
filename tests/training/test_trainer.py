import math
from dataclasses import replace

import pytest
import torch

from sfumato import data
from sfumato.data import ImageSet
from sfumato.defenses import Batch, Defense
from sfumato.errors import CheckpointError, ConfigError, DivergedError, Interrupted, SfumatoWarning
from sfumato.files import occupied
from sfumato.training import (
    TrainConfig,
    Trainer,
    build_defenses,
    build_model,
    learning_rate,
    split_training_set,
    train_run,
)

CONFIG = TrainConfig(
    data="digits", epochs=3, limit=200, batch_size=64, lr=0.1, noise_std=0.1, cem=True, lam=1.0, device="cpu",
    watch=False,
)  # fmt: skip


def trainer(config: TrainConfig = CONFIG, images: int = 200) -> Trainer:
    sets = data.load("digits", seed=0)
    fit, held_out = split_training_set(data.limit(sets.train, images, 0), config)
    defenses = build_defenses(config, fit.num_classes)
    return Trainer(build_model(config, fit, defenses), defenses, fit, held_out, config)


def weights(of: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in of.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def figures(of: Trainer) -> list[dict]:
    return [{name: value for name, value in line.items() if name != "seconds"} for line in of.history]


def calm(config: TrainConfig = CONFIG) -> Trainer:
    """An undisturbed training, shared by those that are disturbed."""
    if (name := config.digest() + str(config.watch)) not in _CALM:
        _CALM[name] = trainer(config)
        _CALM[name].run()
    return _CALM[name]


_CALM: dict[str, Trainer] = {}


class Killed(Exception):
    pass


def killed_at(step: int):
    def on_step(done: int, _total: int) -> None:
        if done == step:
            raise Killed

    return on_step


def test_statistics_of_batch_norm_are_those_of_the_last_weights_and_not_of_a_lagging_average():
    one = trainer(replace(CONFIG, epochs=1, cem=False, augment=False))
    layer = one.model.edge[2]
    assert isinstance(layer, torch.nn.BatchNorm2d)
    layer.momentum = 1e-6  # a running average that goes nowhere
    one.run()
    with torch.no_grad():
        before = one.model.edge[:2](one._passes.pixels.float() / 255)
    assert torch.allclose(layer.running_mean, before.mean((0, 2, 3)), rtol=0.05, atol=0.01)
    assert torch.allclose(layer.running_var, before.var((0, 2, 3)), rtol=0.05, atol=0.01)
    assert layer.momentum == 1e-6


@pytest.mark.parametrize("batch_size", [33, 341])  # 1,024 images would leave a last batch of one
def test_the_images_for_the_statistics_are_whole_batches(batch_size, monkeypatch):
    one = trainer(replace(CONFIG, epochs=1, cem=False, batch_size=batch_size), images=1200)
    seen = []
    real = one._passes.batches

    def batches(name, epoch, most=None):
        for indices, x, part in real(name, epoch, most):
            seen.append(len(x))
            yield indices, x, part

    monkeypatch.setattr(one._passes, "batches", batches)
    one.run()
    assert set(seen) == {batch_size}


def test_a_defended_training_at_chance_stops_after_its_first_third():
    nothing = torch.zeros(200, 1, 8, 8, dtype=torch.uint8)
    blank = ImageSet(nothing, torch.arange(200) % 4, ("a", "b", "c", "d"))
    config = replace(CONFIG, epochs=30, batch_size=20, augment=False, cem=False)
    for defense, stops in (("label_smoothing", True), ("none", False)):
        chosen = replace(config, defense=defense)
        defenses = build_defenses(chosen, 4)
        one = Trainer(build_model(chosen, blank, defenses), defenses, blank, None, chosen)
        if stops:
            with pytest.raises(DivergedError, match=r"after 10 of 30 epochs .* which is chance: the defence wins"):
                one.run()
        else:
            one.run()
            assert len(one.history) == 30


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = calm(), trainer(), trainer(replace(CONFIG, seed=1))
    for one in (again, other):
        one.run()
    assert same(weights(first), weights(again))
    assert figures(first) == figures(again)
    assert not same(weights(first), weights(other))


def test_the_users_global_random_state_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    trainer(replace(CONFIG, epochs=1)).run()
    assert torch.equal(torch.rand(3), expected)


PRINTED = TrainConfig.as_printed(
    data="digits",
    epochs=3,
    limit=200,
    batch_size=64,
    lr=0.1,
    noise_std=0.1,
    bottleneck=2,
    lam=0.1,
    clusters_per_class=1,
    device="cpu",
    watch=False,
)


def test_algorithm_1_as_printed_learns_and_holds_nothing_out():
    one = trainer(replace(PRINTED, epochs=6, batch_size=16, augment=False))
    lines = one.run()
    assert (one.held_out, len(one.train)) == (None, 200)
    assert lines[-1]["accuracy_train"] > 0.2
    assert [line["cem_lam"] for line in lines] == [0.1] * 6
    assert lines[-1]["cem_information"] < 0.9 * lines[1]["cem_information"]


def test_algorithm_1_as_printed_killed_ends_with_the_same_weights(tmp_path):
    undisturbed, state = trainer(PRINTED), tmp_path / "state"
    undisturbed.run()
    for step in (2, 5):
        with pytest.raises(Killed):
            trainer(replace(PRINTED, checkpoint_seconds=0.0)).run(state, on_step=killed_at(step))
    resumed = trainer(replace(PRINTED, checkpoint_seconds=0.0))
    resumed.run(state)
    assert same(weights(resumed), weights(undisturbed))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"scaling": "per_dimension"}, "has scaling literal, not per_dimension; leave out --scaling"),
        ({"hold_out": 0.1}, "has hold_out 0.0, not 0.1; leave out --hold-out"),
        ({"lam_schedule": "ramp"}, "has lam_schedule constant, not ramp"),
        ({"fit": "kmeans"}, "has fit em, not kmeans"),
        ({"cem": False}, "has cem True, not False"),
    ],
)
def test_what_contradicts_algorithm_1_as_printed_is_refused(given, text):
    with pytest.raises(ConfigError, match=text):
        TrainConfig.as_printed(**given)
    assert TrainConfig.as_printed(lam=2.0, hold_out=0.0).lam == 2.0


def test_a_setting_that_came_later_changes_no_name_of_an_earlier_result():
    assert "fit" not in TrainConfig().identity()
    assert TrainConfig.as_printed().identity()["fit"] == "em"


@pytest.mark.parametrize("update", ["epoch", "running"])
@pytest.mark.parametrize("kills", [(1, 4), (3, 8)])  # of 9 steps, 3 in each epoch
def test_killed_at_any_step_it_ends_with_the_same_weights_and_figures(tmp_path, kills, update):
    config = replace(CONFIG, update=update)
    undisturbed = calm(config)
    eager = replace(config, checkpoint_seconds=0.0)  # a checkpoint after every step
    state = tmp_path / "state"
    for step in kills:
        with pytest.raises(Killed):
            trainer(eager).run(state, on_step=killed_at(step))
    resumed = trainer(eager)
    steps: list[int] = []
    resumed.run(state, on_step=lambda done, _total: steps.append(done))
    assert same(weights(undisturbed), weights(resumed))
    assert figures(undisturbed) == figures(resumed)
    assert steps[0] > 1  # it did go on from the checkpoint


def test_killed_between_the_last_step_and_the_end_of_an_epoch(tmp_path, monkeypatch):
    undisturbed = calm()
    eager = replace(CONFIG, checkpoint_seconds=0.0)

    def killed(_self: Trainer, _epoch: int) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_end", killed)
        with pytest.raises(Killed):
            trainer(eager).run(tmp_path / "state")
    resumed = trainer(eager)
    resumed.run(tmp_path / "state")
    assert same(weights(undisturbed), weights(resumed))
    assert figures(undisturbed) == figures(resumed)


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    state = tmp_path / "state"
    trainer(replace(CONFIG, epochs=1)).run(state)
    with pytest.raises(CheckpointError, match="belongs to a training with other settings.*choose another --run folder"):
        trainer(replace(CONFIG, epochs=1, lam=2.0)).run(state)


def test_cem_lowers_the_information_and_the_penalty_reaches_the_encoder():
    config = replace(CONFIG, epochs=10, lam=0.3)
    with_cem, without = trainer(config, 1000), trainer(replace(config, lam=0.0), 1000)
    with_cem.run()
    without.run()
    assert with_cem.history[-1]["cem_information"] < 0.85 * without.history[-1]["cem_information"]
    assert with_cem.history[-1]["cem_lam"] == pytest.approx(0.3)
    assert with_cem.history[0]["cem_competence"] < 0.2 < 0.9 < with_cem.history[-1]["cem_competence"]


def test_held_out_images_are_not_learned_from():
    one = trainer()
    assert one.held_out is not None
    learned = {image.numpy().tobytes() for image in one.train.images}
    kept = {image.numpy().tobytes() for image in one.held_out.images}
    assert len(one.train) + len(one.held_out) == 200
    assert not learned & kept


def test_last_short_batch_and_batches_larger_than_the_set():
    for size in (179, 90, 1000):
        one = trainer(replace(CONFIG, epochs=1, batch_size=size))
        one.run()
        assert math.isfinite(one.history[-1]["loss"])


def test_learning_rates():
    assert learning_rate("one_cycle", 1.0, 0.0) == pytest.approx(0.04)
    assert learning_rate("one_cycle", 1.0, 0.25) == pytest.approx(1.0)
    assert learning_rate("one_cycle", 1.0, 1.0) == pytest.approx(0.002)
    paper = [learning_rate("paper", 0.05, epoch / 240) for epoch in (0, 59, 60, 119, 120, 180, 209, 210, 239)]
    assert paper == pytest.approx([0.05, 0.05, 0.01, 0.01, 0.002, 0.0004, 0.0004, 0.00008, 0.00008])
    with pytest.raises(ConfigError, match="choose one_cycle or paper"):
        learning_rate("banana", 1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"epochs": 0}, "epochs is 0; give at least 1"),
        ({"noise_std": 0.0}, "noise_std = 0 with CEM.*give a positive --noise-std"),
        ({"hold_out": 1.0}, "hold_out is 1.0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"limit": 0}, "limit is 0"),
    ],
)
def test_settings_without_meaning(change, text):
    with pytest.raises(ConfigError, match=text):
        replace(CONFIG, **change)


def test_an_unknown_device_names_the_remedy():
    with pytest.raises(ConfigError, match="give auto, cpu or cuda"):
        trainer(replace(CONFIG, device="toaster"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="use --device cpu"):
            trainer(replace(CONFIG, device="cuda"))


def test_a_stop_saves_at_once_and_the_next_call_goes_on(tmp_path):
    watched = replace(CONFIG, watch=True)  # whose figures are measured anew, too
    undisturbed = calm(watched)
    state = tmp_path / "state"
    for stop_at in (2, 4):  # steps within one call
        steps: list[int] = []

        def should_stop(steps: list[int] = steps, stop_at: int = stop_at) -> bool:
            steps.append(1)
            return len(steps) == stop_at

        with pytest.raises(Interrupted, match="resumes there"):
            trainer(watched).run(state, should_stop=should_stop)
    counted: list[int] = []
    last = trainer(watched)
    last.run(state, on_step=lambda done, _total: counted.append(done))
    assert counted[0] == 7  # 2 + 4 steps were saved although the checkpoint interval had not passed
    assert same(weights(last), weights(undisturbed))
    assert figures(last) == figures(undisturbed)


class Adversary(Defense):
    """A plugin that trains a network of its own, whose rate falls with every step."""

    name = "adversary"
    trains_adversary = True

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.1)

    def penalty(self, batch: Batch) -> torch.Tensor:
        return 0.01 * self.net(batch.features.flatten(1).mean(1, keepdim=True)).square().mean()

    def on_step(self, batch: Batch) -> None:
        self.optimizer.zero_grad()
        (self.net(batch.features.detach().flatten(1).mean(1, keepdim=True)) - 1).square().mean().backward()
        self.optimizer.step()
        self.optimizer.param_groups[0]["lr"] *= 0.7

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer]


def plugged(seconds: float = 30.0) -> Trainer:
    config = replace(CONFIG, cem=False, epochs=2, checkpoint_seconds=seconds)
    fit, held_out = split_training_set(data.limit(data.load("digits", seed=0).train, 200, 0), config)
    torch.manual_seed(0)
    chosen: list[Defense] = [Adversary()]
    return Trainer(build_model(config, fit, chosen), chosen, fit, held_out, config)


def test_a_plugin_whose_optimizer_has_a_schedule_of_its_own_resumes_exactly(tmp_path):
    undisturbed = plugged()
    undisturbed.run()
    with pytest.raises(Killed):
        plugged(0.0).run(tmp_path / "state", on_step=killed_at(3))
    resumed = plugged(0.0)
    resumed.run(tmp_path / "state")
    assert same(weights(undisturbed), weights(resumed))
    rates = [one.defenses[0].optimizer.param_groups[0]["lr"] for one in (undisturbed, resumed)]  # type: ignore[attr-defined]
    assert rates[0] == rates[1] < 0.1 * 0.7**5


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_resumed(tmp_path):
    undisturbed = calm()
    state = tmp_path / "state"
    with pytest.raises(Killed):
        trainer(replace(CONFIG, checkpoint_seconds=0.0)).run(state, on_step=killed_at(5))
    content = bytearray(state.read_bytes())
    content[-9] ^= 64  # an exponent: a weight of 1e30
    state.write_bytes(content)
    resumed = trainer()
    with pytest.warns(SfumatoWarning, match="is damaged .*instead the checkpoint before it is used"):
        resumed.run(state)
    assert same(weights(undisturbed), weights(resumed))


def test_a_second_process_in_the_same_folder_is_told(tmp_path):
    config = replace(CONFIG, epochs=1, limit=100, watch=False)
    with (
        occupied(tmp_path),
        pytest.raises(CheckpointError, match="another process is at work in .*choose another folder"),
    ):
        train_run(config, tmp_path)
    assert train_run(config, tmp_path)["train_images"] == 90
    assert not list(tmp_path.glob("*state*"))
