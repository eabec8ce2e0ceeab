"""An attack's steps as a GPU likes them: what changes from step to step in tensors that stay, the rest replayed."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.attacks.learner import Learner
from sfumato.modes import free_to_look
from sfumato.replay import Replay
from sfumato.seeds import derive_seed

__all__ = ["Randomness", "Steps", "Turn", "hand_over_rates"]


@dataclass(frozen=True)
class Turn:
    """What one step of an attack gets.

    Attributes:
        number: steps made before, over all epochs. A replayed step sees the number of the step that was captured.
        x: (n, C, H, W) the attacker's images, in [0, 1].
        z: (n, ...) what leaves the device for them, with fresh noise.
        bf16: whether to autocast.
        random: a generator for a purpose, that depends on (seed, purpose, epoch, step) alone.
    """

    number: int
    x: Tensor
    z: Tensor
    bf16: bool
    random: Callable[[str], torch.Generator]


class Randomness:
    """One generator per purpose, seeded anew for every step; each may be asked for once in a step."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._place = (0, 0)
        self.generators: dict[str, torch.Generator] = {}

    def at(self, epoch: int, step: int) -> None:
        """Seed all for a step."""
        self._place = (epoch, step)
        for purpose in self.generators:
            self(purpose)

    def __call__(self, purpose: str) -> torch.Generator:
        """The generator of a purpose, at its beginning."""
        if purpose not in self.generators:
            self.generators[purpose] = torch.Generator(self._device)
        return self.generators[purpose].manual_seed(derive_seed(self._seed, purpose, *self._place))


class Steps:
    """Makes one step after the other.

    Args:
        step: of the attack: `(learner, turn)` -> means of its figures.
        form: which form the step with this number has, as a key: all steps of one form launch the same kernels with
            the same Python numbers. None for a step that has to be computed.
        learner: networks, optimizers, sums.
        random: of the training.
        batch_size: of a whole batch; others are computed.
        bf16: whether to autocast.
    """

    def __init__(
        self,
        step: Callable[[Learner, Turn], Tensor],
        form: Callable[[int], Hashable | None],
        learner: Learner,
        random: Randomness,
        batch_size: int,
        bf16: bool,
    ) -> None:
        self._step, self._form, self._learner, self._random = step, form, learner, random
        self._batch_size, self._bf16 = batch_size, bf16
        self._stays: tuple[Tensor, Tensor] | None = None
        self._replays: dict[Hashable, Replay] = {}
        self._number = 0

    def __call__(self, number: int, x: Tensor, z: Tensor) -> None:
        """One step on images x and what left the device for them."""
        form = self._form(number)
        if form is None or len(x) != self._batch_size or free_to_look(x):
            self._compute(number, x, z)
            return
        if self._stays is None:
            self._stays = torch.empty_like(x), torch.empty_like(z)
        for stays, fresh in zip(self._stays, (x, z), strict=True):
            stays.copy_(fresh)
        self._number = number
        if form not in self._replays:
            self._replays[form] = Replay(self._on_what_stays, x.device, tuple(self._random.generators.values()))
        self._replays[form]()

    def _on_what_stays(self) -> None:
        assert self._stays is not None
        self._compute(self._number, *self._stays)

    def _compute(self, number: int, x: Tensor, z: Tensor) -> None:
        means = self._step(self._learner, Turn(number, x, z, self._bf16, self._random))
        self._learner.sums += means * len(x)


def hand_over_rates(learner: Learner, device: torch.device) -> None:
    """Keep every learning rate in a tensor on the device, where a replayed step reads it, and the first one aside."""
    for name, optimizer in learner.optimizers.items():
        learner.rates[name] = float(optimizer.defaults["lr"])
        for group in optimizer.param_groups:
            kind = torch.float64 if device.type == "cpu" else torch.float32  # what the fused kernels read
            group["lr"] = torch.tensor(learner.rates[name], dtype=kind, device=device)
            group["capturable"] = device.type == "cuda"
