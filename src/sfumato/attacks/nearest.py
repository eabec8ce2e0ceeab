"""Nearest neighbours: answer with the attacker's own images whose features come nearest to the one seen."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, Fit, Job, Observer, hold_out
from sfumato.attacks.linear import Linear, best_linear, part_of
from sfumato.attacks.settings import AttackConfig
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
    """

    draws: int = 8
    values: int = 2**27


class NearestAttack(Attack):
    """The mean of the images of the k nearest features, by Euclidean distance.

    Nearest in the whitened feature, or in what the linear attack reads from it, which weighs every direction by what
    it says about the pixels. Held-out images choose between both, and k among 1, 2, 4, .. 128; afterwards they are
    candidates like all others. On images that the attacker has, it shows them as they are; on others it says how far a
    data set alone gets an attacker who only recognises.
    """

    name: ClassVar[str] = "nearest"
    settings: ClassVar[type[Any]] = NearestConfig

    def __init__(self, config: NearestConfig | None = None) -> None:
        super().__init__(config)
        self.neighbours = 0
        self._linear: Linear | None = None
        self._features = self._pixels = torch.empty(0)

    def learn(self, observer: Observer, job: Job) -> None:
        """Encode the attacker's images and choose. Takes seconds, so there is no state to resume from."""
        cfg: NearestConfig = self.config
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)  # in random order, so that a part is a sample
        linear = best_linear(observer, learn, judge, draws=min(2, cfg.draws), seed=cfg.seed)[0]
        most = max(2, cfg.values // math.prod(observer.feature_shape))
        judge = judge[: max(1, round(cfg.hold_out * most))]
        learn = learn[: most - len(judge)]
        noise = generator(cfg.seed, "nearest", device=observer.device)
        everything = torch.cat([judge, learn])
        means = torch.cat([self._mean_feature(observer, part, noise) for part in observer.parts(everything)])
        pixels = observer.images.images[everything].to(observer.device)
        # While they choose, the judging images are no candidates: each would find itself.
        self._pixels = pixels[len(judge) :]
        x, z = observer.pairs(judge, generator(cfg.seed, "judge", device=observer.device))
        errors = {}
        for way in (None, linear):
            self._linear = way
            features = self._placed(means)
            self._features = features[len(judge) :]
            for count in _NEIGHBOURS:
                if count <= len(learn):
                    self.neighbours = count
                    errors[way is not None, count] = float(mse(x, self.answer(z)).double().mean())
        read, self.neighbours = min(errors, key=lambda one: errors[one])
        self._linear = linear if read else None
        self._features, self._pixels = self._placed(means), pixels
        best = errors[read, self.neighbours]
        where = "what the linear attack reads" if read else "the whitened feature"
        reason = f"{self.neighbours} neighbours in {where}, chosen on {len(judge)} images"
        self.outcome = Fit(True, reason + part_of(len(everything), observer), best)
        job.tell(1, 1, mse=best, held_out_mse=best)

    def _mean_feature(self, observer: Observer, indices: Tensor, noise: torch.Generator) -> Tensor:
        draws = 1 if observer.repeats else self.config.draws
        total = torch.zeros(())
        for _ in range(draws):
            total = total + observer.pairs(indices, noise)[1].flatten(1)
        return total / draws

    def _placed(self, seen: Tensor) -> Tensor:
        """Where features (N, ...) lie, in the coordinates in which distances are taken."""
        return seen.flatten(1) if self._linear is None else self._linear(seen)

    def answer(self, seen: Tensor) -> Tensor:
        """(N, ...) -> (N, C, H, W) in [0, 1]."""
        shape = self._pixels.shape[1:]
        parts = [seen.new_zeros(0, *shape)]
        for part in self._placed(seen).split(256):
            found = torch.cdist(part, self._features).topk(self.neighbours, largest=False).indices
            total = torch.zeros(len(part), *shape, device=part.device)
            # Neighbour after neighbour: k images for each of 256 rows need not fit into memory.
            for one in found.unbind(1):
                total += self._pixels[one]
            parts.append(total / (255 * self.neighbours))
        return torch.cat(parts)

    def tensors(self) -> dict[str, Tensor]:
        """Places and pixels of the candidates, the number of neighbours, and the linear map where it is used."""
        linear = {} if self._linear is None else self._linear._asdict()
        found = {"features": self._features, "pixels": self._pixels, "neighbours": torch.tensor(self.neighbours)}
        return found | linear
