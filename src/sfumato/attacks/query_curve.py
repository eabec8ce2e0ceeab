"""What asking more than once gains an attacker: an attack's error over the number of queries."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.attacks.base import Attack, Observer
from sfumato.attacks.knowledge import Narrowed
from sfumato.attacks.queries import Duplicates, Noise, Queries, aggregate, encode_repeated
from sfumato.attacks.reconstruction import Reconstruction, Release, invert
from sfumato.data import ImageSet
from sfumato.split import SplitModel

__all__ = ["QueryObserver", "QueryPoint", "query_curve", "release_of"]


class QueryObserver(Narrowed):
    """What an attacker sees who has every image sent K times with fresh noise, and averages the answers.

    Near-duplicates are not simulated: the attack learns from exact repeats at the noise that their mean has.
    """

    def __init__(self, observer: Observer, plan: Queries) -> None:
        super().__init__(observer)
        self.plan = plan
        self._repeats = round(plan.noise_factor**-2)

    @property
    def noise_std(self) -> float:
        """The noise of the mean."""
        return self.inner.noise_std * self.plan.noise_factor

    @torch.no_grad()
    def encode(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The mean of the answers to K queries, in float32."""
        return aggregate(self.inner.encode_repeated(x, queries=self._repeats, generator=generator))


@dataclass(frozen=True)
class QueryPoint:
    """One point of a curve: the plan, the noise in the mean that the attack was fitted at, and what it reached."""

    plan: Queries
    noise_std: float
    reconstruction: Reconstruction


def release_of(model: SplitModel, plan: Queries, *, key: bytes = b"device") -> Release:
    """What an attacker has of a victim's image under this plan: the mean over its queries, for `invert`."""

    def release(x: Tensor, generator: torch.Generator) -> Tensor:
        return aggregate(
            encode_repeated(
                model,
                x,
                queries=plan.queries,
                noise=plan.noise,
                duplicates=plan.duplicates,
                generator=generator,
                key=key,
            )
        )

    return release


def query_curve(
    fitted: Callable[[Observer], Attack],
    observer: Observer,
    model: SplitModel,
    images: ImageSet,
    *,
    queries: Sequence[int] = (1, 4, 16, 64),
    noise: Noise = "fresh",
    duplicates: Duplicates = "exact",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[QueryPoint]:
    """An attack's error on the mean of K queries, for several K.

    Args:
        fitted: gives an attack fitted on an observer, such as `lambda seen: RidgeAttack().fit(seen)`; asked once for
            every noise level that occurs.
        observer: what the attacker sees with one query.
        model: the victim.
        images: to be reconstructed.
        queries: values of K.
        noise: see `Queries`.
        duplicates: see `Queries`.
        seed: of noise and duplicates.
        progress: called with (done, total) points.
    """
    attacks: dict[float, Attack] = {}
    points: list[QueryPoint] = []
    for number, count in enumerate(queries, 1):
        plan = Queries(count, noise, duplicates)
        seen = QueryObserver(observer, plan)
        if plan.noise_factor not in attacks:
            attacks[plan.noise_factor] = fitted(seen)
        release = release_of(model, plan)
        found = invert(attacks[plan.noise_factor], model, images, seed=seed, release=release)
        points.append(QueryPoint(plan, seen.noise_std, found))
        if progress is not None:
            progress(number, len(queries))
    return points
