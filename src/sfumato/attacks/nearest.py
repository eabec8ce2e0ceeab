"""Nearest neighbours: answer with the attacker's own images whose features come nearest to the one seen."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, AttackConfig, Fit, Job, Observer, hold_out
from sfumato.attacks.linear import Linear, best_linear, part_of
from sfumato.metrics import mse
from sfumato.seeds import generator

__all__ = ["NearestAttack", "NearestConfig"]

_NEIGHBOURS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class NearestConfig(AttackConfig):
    """Settings of the nearest-neighbour attack.

    Attributes:
        draws: Releases that are averaged for the feature of each of the attacker's images.
        values: Most feature values to keep in memory. Images times dimensions; of more images a random part is
            taken, and the outcome says so.

    >>> NearestConfig(draws=2).values
    134217728
    """

    draws: int = 8
    values: int = 2**27


class NearestAttack(Attack):
    """The mean of the images of the k nearest features, by Euclidean distance.

    Nearest in the whitened feature, or in what the linear attack reads from it, which weighs every direction by what
    it says about the pixels. Held-out images choose between both, and k among 1, 2, 4, .. 128; afterwards they are
    candidates like all others. On images that the attacker has, it shows them as they are; on others it says how far a
    data set alone gets an attacker who only recognises.

    >>> import sfumato
    >>> digits = sfumato.data.load("digits", None, seed=0).train
    >>> model = sfumato.SplitModel(torch.nn.Flatten(), sfumato.Channel(noise_std=0.1), torch.nn.Linear(64, 10))
    >>> NearestAttack().fit(Observer(model, digits)).neighbours
    4
    """

    name: ClassVar[str] = "nearest"
    settings: ClassVar[type[Any]] = NearestConfig
    neighbours = 0
    _linear: Linear | None = None
    _features: Tensor
    _pixels: Tensor

    def learn(self, observer: Observer, job: Job) -> None:
        """Encode the attacker's images and choose; there is no state to resume from."""
        cfg: NearestConfig = self.config
        # In random order, so that a part of them is a sample.
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        # A deadline's first half is the linear map's, the next quarter the encoding's.
        half, most = self.until(0.5), self.until(0.75)
        linear = best_linear(observer, learn, judge, draws=min(2, cfg.draws), seed=cfg.seed, deadline=half).linear
        kept = max(2, cfg.values // math.prod(observer.feature_shape))
        judge = judge[: max(1, round(cfg.hold_out * kept))]
        learn = learn[: kept - len(judge)]
        noise = generator(cfg.seed, "nearest", device=observer.device)
        everything = torch.cat([judge, learn])
        found: list[Tensor] = []
        for part in observer.parts(everything):
            if most is not None and time.monotonic() > most and sum(map(len, found)) > len(judge):
                break
            found.append(self._mean_feature(observer, part, noise))
        means = torch.cat(found)
        everything = everything[: len(means)]
        pixels = observer.images.images[everything].to(observer.device)
        x, z = observer.pairs(judge, generator(cfg.seed, "judge", device=observer.device))
        errors: dict[tuple[bool, int], float] = {}
        places: dict[bool, Tensor] = {}
        # While they choose, the judging images are no candidates: each would find itself.
        self._pixels = pixels[len(judge) :]
        counts = [count for count in _NEIGHBOURS if count <= len(self._pixels)]
        for way in (None, linear):
            self._linear, read = way, way is not None
            places[read] = torch.cat([self._placed(part, observer) for part in means.split(512)])
            self._features = places[read][len(judge) :]
            totals = [0.0] * len(counts)
            for shown, seen in zip(x.split(128), z.split(128), strict=True):
                observer.ask()
                for number, x_hat in enumerate(self._answers(seen, counts)):
                    totals[number] += float(mse(shown, x_hat).double().sum())
            errors |= {(read, count): total / len(x) for count, total in zip(counts, totals, strict=True)}
        read, self.neighbours = best = min(errors, key=lambda one: errors[one])
        self._linear = linear if read else None
        self._features, self._pixels = places[read], pixels
        where = "what the linear attack reads" if read else "the whitened feature"
        reason = f"{self.neighbours} neighbours in {where}, chosen on {len(judge)} images"
        self.outcome = Fit(True, reason + part_of(len(everything), observer), errors[best])
        job.tell(1, 1, mse=errors[best], held_out_mse=errors[best])

    def _mean_feature(self, observer: Observer, indices: Tensor, noise: torch.Generator) -> Tensor:
        draws = 1 if observer.repeats else self.config.draws
        total = torch.zeros(())
        for _ in range(draws):
            total = total + observer.pairs(indices, noise)[1].flatten(1)
        return total / draws

    def _placed(self, seen: Tensor, observer: Observer | None = None) -> Tensor:
        """Where features (N, ...) lie, in the coordinates in which distances are taken."""
        if observer is not None:
            observer.ask()
        return seen.flatten(1) if self._linear is None else self._linear(seen)

    def _answers(self, seen: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """The mean image of each number of neighbours, in rising order: one search gives them all."""
        found = torch.cdist(self._placed(seen), self._features).topk(counts[-1], largest=False).indices
        total, answers = torch.zeros(len(seen), *self._pixels.shape[1:], device=seen.device), []
        # Neighbour after neighbour: k images for each row need not fit into memory.
        for number, one in enumerate(found.unbind(1), 1):
            total += self._pixels[one]
            if number in counts:
                answers.append(total / (255 * number))
        return answers

    def answer(self, seen: Tensor) -> Tensor:
        """(N, ...) -> (N, C, H, W) in [0, 1]."""
        return torch.cat([self._answers(part, [self.neighbours])[0] for part in seen.split(128)])

    def tensors(self) -> dict[str, Tensor]:
        """Places and pixels of the candidates, the number of neighbours, and the linear map where it is used."""
        linear = {} if self._linear is None else self._linear._asdict()
        found = {"features": self._features, "pixels": self._pixels, "neighbours": torch.tensor(self.neighbours)}
        return found | linear
