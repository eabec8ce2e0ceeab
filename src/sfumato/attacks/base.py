"""What all attacks share: settings, and the template of which a leaf gives `learn`, `answer` and `tensors`."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from sfumato.attacks.observer import Observer
from sfumato.errors import ConfigError, NotFittedError, SfumatoError
from sfumato.seeds import generator
from sfumato.settings import check_settings

__all__ = ["Attack", "AttackConfig", "Fit", "Job", "Observer", "Progress", "TooSlow", "hold_out", "judge_outcome"]

Progress = Callable[[int, int, dict[str, float]], None]
"""`(done, total, figures)`, called after every epoch of an attack."""

_ONE = "epochs batch_size width critic_steps draws size values images iterations restarts samples flow_steps choose_on"
_NONE = "blocks mse_weight gradient_penalty tv prior average weight_decay"
_AT_LEAST = 10.0  # seconds

_RANGES = {
    "least": dict.fromkeys(_ONE.split(), 1) | dict.fromkeys(_NONE.split(), 0),
    "above": dict.fromkeys(("lr", "generator_lr", "critic_lr", "hold_out"), 0),
    "below": {"hold_out": 1, "average": 1},
}


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """Settings that every attack has; a leaf adds its own. All are checked: of the annotated type, finite, in range.

    Attributes:
        hold_out: Fraction of the attacker's images that only judge. They choose and show convergence.
        seed: Random seed of initial weights, order, noise and of what is held out.

    Raises:
        ConfigError: a setting is of another type or out of its range.

    >>> AttackConfig(hold_out=0.2).hold_out
    0.2
    """

    hold_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        own = {field.name for field in fields(self)}
        check_settings(
            self,
            **{kind: {name: table[name] for name in table.keys() & own} for kind, table in _RANGES.items()},
        )


@dataclass(frozen=True)
class Fit:
    """How an attack's training went.

    Attributes:
        converged: whether more training would probably not have helped; where False the error is no evidence.
        reason: one sentence, for a reader.
        held_out_mse: error on images of the attacker's set that it did not learn from.
        trivial_mse: error of answering with the mean image on the same images; None where nothing was judged by it.

    >>> Fit(True, "closed form", 0.021).held_out_mse
    0.021
    """

    converged: bool
    reason: str
    held_out_mse: float
    trivial_mse: float | None = None


@dataclass(frozen=True)
class Job:
    """How a fit is watched and resumed: what `Attack.fit` hands to `learn`.

    >>> Job(lambda done, total, figures: print(f"{done}/{total}", figures)).tell(1, 2, mse=0.25)
    1/2 {'mse': 0.25}
    """

    progress: Progress | None = None
    state: Path | None = None

    def tell(self, done: int, total: int, **figures: float) -> None:
        """Call `progress` if there is one."""
        if self.progress is not None:
            self.progress(done, total, figures)


class TooSlow(SfumatoError):
    """A training of which too little fits until its deadline.

    Attributes:
        share: of its fewest epochs, how much would fit.
    """

    def __init__(self, share: float) -> None:
        super().__init__(f"until its deadline only {share:.2g} of its fewest epochs fit; give it more time")
        self.share = share


class Attack(ABC):
    """Base of every attack: `fit(observer)`, then `reconstruct(z)`. A leaf gives `learn`, `answer` and `tensors`.

    Attributes:
        config: settings, a frozen dataclass.
        outcome: how the training went, once fitted.
        history: one line of figures per epoch, for attacks that train; else empty.
        seconds: the training took, over all calls.
        most_images: how many images `reconstruct` can afford: the setting `images`; None where it takes no time to
            speak of.
        deadline: `time.monotonic()` at which a training ends with what it has; None trains to the end.
        fewest: epochs below which a training with a deadline is not begun.
        weaker: whether it makes do with less than the paper's attacker has, and is never the figure of a suite.

    >>> class Grey(Attack):
    ...     name, settings = "grey", AttackConfig
    ...     def learn(self, observer, job):
    ...         self.outcome = Fit(True, "nothing to learn", 0.25)
    ...     def answer(self, seen):
    ...         return torch.full((len(seen), 1, 2, 2), 0.5)
    ...     def tensors(self):
    ...         return {}
    >>> print(Grey().config.hold_out, Grey().outcome)
    0.1 None
    """

    name: ClassVar[str]
    settings: ClassVar[type[Any]]
    weaker: ClassVar[bool] = False
    config: Any
    outcome: Fit | None = None
    seconds: float = 0.0
    most_images: int | None
    deadline: float | None = None
    fewest: int = 1

    def __init__(self, config: Any = None) -> None:
        self.config = self.settings() if config is None else config
        self.most_images = getattr(self.config, "images", None)
        self.history: list[dict[str, float]] = []
        self._observer: Observer | None = None

    def fit(
        self,
        observer: Observer,
        *,
        progress: Progress | None = None,
        state: Path | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Self:
        """Learn to invert from what the observer hands out.

        Args:
            observer: what the attacker may see.
            progress: called after every epoch.
            state: checkpoint file of attacks that train for longer than seconds.
            should_stop: asked at every look at an image, and while matrices are decomposed; True saves and leaves.

        Raises:
            ConfigError: the observer hands out less than this attack needs.
            Interrupted: `should_stop` said so; the same call resumes from `state`.
        """
        began = time.monotonic()
        with observer.asking(should_stop):
            self.learn(observer, Job(progress, state))
        self.deadline = None  # of the training alone
        self.seconds = self.seconds or time.monotonic() - began
        self._observer = observer
        return self

    @torch.no_grad()
    def reconstruct(self, z: Tensor, *, should_stop: Callable[[], bool] | None = None) -> Tensor:
        """(N, ...) features as they left the device -> (N, C, H, W) images in [0, 1].

        Raises:
            Interrupted: `should_stop`, which attacks that work on every image anew ask often, said so.
            NotFittedError: `fit` has not been called.
        """
        observer = self._fitted()
        with observer.asking(should_stop):
            return self.answer(observer.seen(z))

    def weights(self) -> dict[str, Tensor]:
        """What the fitted attack consists of: its tensors, and how it whitens a release.

        Raises:
            NotFittedError: `fit` has not been called.
        """
        return {**self._fitted().whitening.tensors(), **self.tensors()}

    @abstractmethod
    def learn(self, observer: Observer, job: Job) -> None:
        """`fit` of this attack; sets `outcome`."""

    @abstractmethod
    def answer(self, seen: Tensor) -> Tensor:
        """`reconstruct` from what the observer makes of releases (`Observer.seen`), (N, *feature_shape)."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What was learned."""

    def until(self, share: float) -> float | None:
        """The moment after this share of the time until the deadline, or of ten seconds if that is nearer: attacks in
        closed form are what all others are compared with, and have those in any case.
        """
        now = time.monotonic()
        return None if self.deadline is None else now + share * max(_AT_LEAST, self.deadline - now)

    def late(self) -> bool:
        """Whether the deadline is over."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def _fitted(self) -> Observer:
        if self._observer is None:
            raise NotFittedError("the attack has not been fitted; call fit(observer) first")
        return self._observer


def hold_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the attacker's images that only judge, and of those to learn from.

    Raises:
        ConfigError: fewer than 2 images.

    >>> judge, learn = hold_out(100, 0.1, seed=0)
    >>> len(judge), len(learn)
    (10, 90)
    """
    order = torch.randperm(count, generator=generator(seed, "hold-out"))
    held = max(1, round(share * count))
    if held >= count:
        raise ConfigError(f"an attack needs at least 2 images, got {count}")
    return order[:held], order[held:]


_WORTH_GOING_ON = 0.02
_STILL_FALLING = 0.1  # gained by the second quarter: where the learning rate is annealed, the end looks calm anyway
_QUARTERS = 8  # epochs from which on a quarter says something


def judge_outcome(errors: Sequence[float], trivial: float) -> Fit:
    """Judge convergence on the held-out errors: did the last tenth of the epochs still gain, or the second quarter?

    A learning rate that is annealed to 0 brings every training to rest, also one that is far too short. While the rate
    is still high, in the first half, that cannot be: an error that the second quarter of the epochs still lowered by a
    tenth would have gone on falling in a longer training.

    Args:
        errors: held-out error after every epoch, at least one.
        trivial: held-out error of answering with the mean image.

    >>> judge_outcome([0.08] + 15 * [0.03], trivial=0.07).converged
    True
    >>> judge_outcome([0.08, 0.05, 0.03, 0.02], trivial=0.07).reason
    'the last 1 epochs still gained 33%; attack for more epochs'
    """
    best = min(errors)
    tail = max(1, len(errors) // 10)
    before = min(errors[:-tail], default=float("inf"))
    gain = (before - best) / before if before < float("inf") else 1.0
    if gain > _WORTH_GOING_ON:
        reason = f"the last {tail} epochs still gained {gain:.0%}; attack for more epochs"
        return Fit(False, reason, best, trivial)
    if len(errors) < _QUARTERS:  # an attack that begins with what a linear one reads may stand still at first
        return Fit(False, f"{len(errors)} epochs show nothing; attack for more epochs", best, trivial)
    half, quarter = len(errors) // 2, len(errors) // 4
    early = 1.0 - min(errors[:half]) / min(errors[:quarter])
    if early > _STILL_FALLING:
        reason = (
            f"the second quarter of the {len(errors)} epochs still gained {early:.0%}, and only the falling learning "
            "rate ended that; attack for more epochs"
        )
        return Fit(False, reason, best, trivial)
    if best > (1 - _WORTH_GOING_ON) * trivial:
        reason = f"no better than predicting the mean image ({trivial:.4f}): either nothing leaks or the attack failed"
        return Fit(False, reason, best, trivial)
    return Fit(True, f"the last {tail} epochs gained {max(gain, 0.0):.1%}", best, trivial)
