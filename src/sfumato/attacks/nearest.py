"""Nearest neighbours: answer with the attacker's own images whose features come nearest to the one seen."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, Fit, Observer, Progress, hold_out
from sfumato.attacks.linear import part_of
from sfumato.attacks.settings import check_attack
from sfumato.errors import NotFittedError
from sfumato.metrics import mse
from sfumato.seeds import generator

__all__ = ["NearestAttack", "NearestConfig"]

_NEIGHBOURS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class NearestConfig:
    """Settings of the nearest-neighbour attack.

    Attributes:
        draws: Releases that are averaged for the feature of each of the attacker's images.
        values: Most feature values to keep in memory. Images times dimensions; of more images a random part is
            taken, and the outcome says so.
        hold_out: Fraction of the attacker's images that only choose the number of neighbours.
        seed: Random seed of the noise and of what is held out.
    """

    draws: int = 8
    values: int = 2**27
    hold_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_attack(self)


class NearestAttack(Attack):
    """The mean of the images of the k nearest features, by Euclidean distance.

    Held-out images choose k among 1, 2, 4, .. 128; afterwards they are candidates like all others. On images that the
    attacker has, it shows them as they are; on others it says how far a data set alone gets an attacker who only
    recognises.
    """

    name: ClassVar[str] = "nearest"

    def __init__(self, config: NearestConfig | None = None) -> None:
        super().__init__(config or NearestConfig())
        self.neighbours = 0
        self._features: Tensor | None = None
        self._pixels = torch.empty(0)

    def fit(
        self,
        observer: Observer,
        *,
        progress: Progress | None = None,
        state: Path | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Self:
        """Encode the attacker's images and choose k. Takes seconds, so there is no state to resume from."""
        cfg: NearestConfig = self.config
        began = time.monotonic()
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)  # in random order, so that a part is a sample
        most = max(2, cfg.values // math.prod(observer.feature_shape))
        judge = judge[: max(1, round(cfg.hold_out * most))]
        learn = learn[: most - len(judge)]
        noise = generator(cfg.seed, "nearest", device=observer.device)
        everything = torch.cat([judge, learn])
        features = torch.cat([self._mean_feature(observer, part, noise) for part in everything.split(512)])
        pixels = observer.images.images[everything].to(observer.device)
        self._features, self._pixels = features[len(judge) :], pixels[len(judge) :]
        x, z = observer.pairs(judge, generator(cfg.seed, "judge", device=observer.device))
        errors = {}
        for count in _NEIGHBOURS:
            if count <= len(learn):
                self.neighbours = count
                errors[count] = float(mse(x, self.reconstruct(z)).double().mean())
        self.neighbours = min(errors, key=lambda count: errors[count])
        self._features, self._pixels = features, pixels
        best = errors[self.neighbours]
        reason = f"{self.neighbours} neighbours, chosen on {len(judge)} images" + part_of(len(everything), observer)
        self.outcome = Fit(True, reason, best)
        self.seconds = time.monotonic() - began
        if progress is not None:
            progress(1, 1, {"mse": best, "held_out_mse": best})
        return self

    def _mean_feature(self, observer: Observer, indices: Tensor, noise: torch.Generator) -> Tensor:
        total = torch.zeros(())
        for _ in range(self.config.draws):
            total = total + observer.pairs(indices, noise)[1].flatten(1)
        return total / self.config.draws

    @torch.no_grad()
    def reconstruct(self, z: Tensor) -> Tensor:
        """(N, ...) released features -> (N, C, H, W) in [0, 1]."""
        if self._features is None:
            raise NotFittedError("the attack has not been fitted; call fit(observer) first")
        shape = self._pixels.shape[1:]
        parts = [z.new_zeros(0, *shape, dtype=torch.float32)]
        for part in z.float().flatten(1).split(256):
            found = torch.cdist(part, self._features).topk(self.neighbours, largest=False).indices
            total = torch.zeros(len(part), *shape, device=part.device)
            for one in found.unbind(1):
                total += self._pixels[one]
            parts.append(total / (255 * self.neighbours))
        return torch.cat(parts)

    def weights(self) -> dict[str, Tensor]:
        """Features and pixels of the candidates, and the number of neighbours."""
        if self._features is None:
            raise NotFittedError("the attack has not been fitted; call fit(observer) first")
        return {"features": self._features, "pixels": self._pixels, "neighbours": torch.tensor(self.neighbours)}
