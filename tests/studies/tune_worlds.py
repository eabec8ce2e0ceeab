"""Worlds with a known truth, so that a search can be judged: what every setting really costs and really protects."""

import torch

from sfumato.studies.judge import Book, Measured
from sfumato.studies.search import Decision, advance
from sfumato.studies.space import BASELINE, Space, Training


def measured(right, selecting, errors=(0.02, 0.02)):
    return Measured(torch.tensor(right, dtype=torch.float64), torch.tensor(selecting), errors)


class World:
    """Baseline accuracy 0.97; a setting loses `loss` and leaves the attacker `error`; every image is a coin."""

    def __init__(self, space: Space, loss, error, *, images: int = 1500, seed: int = 0) -> None:
        self.space, self.loss, self.error, self.images, self.seed = space, loss, error, images, seed
        self.asked: list[Training] = []

    def measure(self, trial: Training) -> Measured:
        self.asked.append(trial)
        lam = trial.setting.lam
        own = (self.seed, round(1000 * trial.setting.noise_std), round(1000 * lam), trial.fold, trial.repeat)
        own += (self.space.defenses.index(trial.setting.defense),) if trial.setting.defense else ()
        generator = torch.Generator().manual_seed(hash(own) % 2**31)
        count = self.images // self.space.folds
        accuracy = 0.97 - (0.0 if trial.setting == BASELINE else self.loss(trial.setting))
        right = (torch.rand(count, generator=generator) < accuracy).double()
        error = 0.01 if trial.setting == BASELINE else self.error(trial.setting)
        return Measured(right, torch.arange(count) % 2 == 0, (error, error))

    def walk(self, floor, *, chance: float = 0.1) -> tuple[Decision, Book]:
        found: dict[Training, Measured] = {}
        while True:
            book = Book(found, floor, self.space, chance=chance)
            step = advance(book)
            if isinstance(step, Decision):
                return step, book
            assert step, "a step wants something, or the walk ends"
            assert not set(step) & set(found), "nothing is trained twice"
            found |= {trial: self.measure(trial) for trial in step}
