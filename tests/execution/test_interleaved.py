"""Work that takes turns in one process ends as it would alone."""

import contextlib
import threading
import warnings

import pytest
import torch

from sfumato import data
from sfumato.errors import DataError, Interrupted
from sfumato.execution import InterleavedExecutor, next_turn
from sfumato.training import TrainConfig, Trainer, build_defenses, build_model


def steps(item: tuple[list, str, int]) -> str:
    log, name, count = item
    for step in range(count):
        log.append(f"{name}{step}")
        next_turn()
        while not {"a0", "b0"} <= set(log):  # until both have begun
            next_turn()
    if name == "f":
        raise DataError("the set is empty")
    return name.upper()


def test_steps_alternate_and_every_item_has_an_outcome():
    log: list[str] = []
    outcomes = list(InterleavedExecutor(2).run([(log, "a", 3), (log, "b", 3), (log, "f", 2)], steps))
    assert {one.item[1]: one.value for one in outcomes} == {"a": "A", "b": "B", "f": None}
    assert {one.item[1]: type(one.error) for one in outcomes}["f"] is DataError
    both = [entry for entry in log if entry[0] in "ab"]
    assert both in (["a0", "b0", "a1", "b1", "a2", "b2"], ["b0", "a0", "b1", "a1", "b2", "a2"])
    assert log.index("f0") > log.index("a2")


def test_only_one_thread_runs_at_a_time():
    running, most = [], []

    def work(_: int) -> None:
        for _ in range(50):
            running.append(1)
            most.append(len(running))
            running.pop()
            next_turn()

    list(InterleavedExecutor(3).run([1, 2, 3], work))
    assert max(most) == 1


def test_closing_early_ends_the_threads():
    before = threading.active_count()

    def endless(item: int) -> int:
        while item:
            next_turn()
        return item

    with contextlib.closing(InterleavedExecutor(3).run([1, 0, 1], endless)) as run:
        assert next(run).value == 0
    assert threading.active_count() == before


def test_outside_a_rotation_there_is_nobody_to_pass_the_turn_to():
    next_turn()


def test_warnings_stay_with_the_thread_that_caused_them():
    def work(name: str) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                warnings.warn(name, UserWarning, stacklevel=1)
                next_turn()
        return [str(one.message) for one in caught]

    outcomes = list(InterleavedExecutor(2).run(["a", "b"], work))
    assert {one.item: one.value for one in outcomes} == {"a": ["a"] * 3, "b": ["b"] * 3}


def train(item: tuple[str, int]) -> dict[str, torch.Tensor]:
    defense, seed = item
    options = {"width": 4, "blocks": 1} if defense == "ressfl" else {}
    config = TrainConfig(
        data="digits", epochs=2, batch_size=32, cem=True, noise_std=0.1, hold_out=0.0, device="cpu", seed=seed,
        defense=defense, defense_options=options,
    )  # fmt: skip
    images = data.limit(data.load("digits", seed=0).train, 128, 0)
    defenses = build_defenses(config, images.num_classes)
    trainer = Trainer(build_model(config, images, defenses), defenses, images, None, config)

    def should_stop() -> bool:
        next_turn()
        return False

    trainer.run(should_stop=should_stop)
    return trainer.model.state_dict()


@pytest.mark.filterwarnings("ignore::sfumato.errors.SfumatoWarning")
def test_trainings_that_take_turns_equal_trainings_alone():
    items = [("none", 0), ("dropout", 1), ("ressfl", 2)]
    alone = {item: train(item) for item in items}
    for outcome in InterleavedExecutor(3).run(items, train):
        assert outcome.value is not None, outcome.error
        for name, value in alone[outcome.item].items():
            assert torch.equal(outcome.value[name], value), (outcome.item, name)


def test_an_interruption_is_an_outcome():
    def work(_: int) -> None:
        raise Interrupted("no time is left")

    (outcome,) = InterleavedExecutor(1).run([1], work)
    assert isinstance(outcome.error, Interrupted)
