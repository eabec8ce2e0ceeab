"""What all attacks that train a network share: the template; a leaf says its networks, its optimizers and one step."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from sfumato import checkpoint
from sfumato.attacks.base import Attack, Fit, Job, Observer, TooSlow, hold_out
from sfumato.attacks.network import Inverter, Sketch
from sfumato.attacks.settings import LearnedConfig
from sfumato.compute import arranged, autocast
from sfumato.errors import CheckpointError, Interrupted, SfumatoError
from sfumato.metrics import mse
from sfumato.seeds import derive_seed, generator
from sfumato.torch_utils import evaluating

__all__ = ["LearnedAttack", "Learner", "Turn", "judge_outcome"]

Random = Callable[[str], torch.Generator]
"""A generator for a purpose, at its beginning."""

_WORTH_BEGINNING_WITH = 0.4
"""Of the images' variance: what the linear attack may leave open. Digits: without noise it leaves .24, and beginning
there gives .0167 instead of .0175; at noise .4 it leaves .54, and 50 epochs from there end at .039 instead of .036."""

_PACED = 5
"""Steps after which a training with a deadline tells how many epochs fit; the first also pays for memory and kernels,
and is not counted."""

Config = TypeVar("Config", bound=LearnedConfig)


@dataclass(frozen=True)
class Turn:
    """What a step gets: how many came before, images x in [0, 1], what the attacker makes of what leaves the device for
    them, whether to autocast, and generators that depend on (seed, purpose, epoch, step) alone.
    """

    number: int
    x: Tensor
    z: Tensor
    bf16: bool
    random: Random


@dataclass
class Learner:
    """What a learned attack has at any moment of its training; nothing else has to be saved.

    Networks and optimizers by name, sums of the running epoch's figures, epochs in all, the next step to make, the
    weights of `net` in its best epoch, a line of figures per finished epoch, seconds spent.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    sums: Tensor
    planned: int
    epoch: int = 0
    step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_error: float = float("inf")
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def net(self) -> nn.Module:
        """The network that reconstructs."""
        return self.networks["net"]

    def remember(self, error: float) -> None:
        """Keep the weights of `net` if `error` is the smallest so far."""
        if error < self.best_error:
            self.best_error = error
            self.best = {name: value.clone() for name, value in self.net.state_dict().items()}

    def slow_down(self, factor: float) -> None:
        """Set every learning rate to `factor` times what its optimizer began with."""
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = factor * optimizer.defaults["lr"]

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write everything to `path`, under the settings and data it belongs to."""
        tensors = {**checkpoint.flatten_state("best", self.best), "sums": self.sums}
        for name, network in self.networks.items():
            tensors |= checkpoint.flatten_state(name, network.state_dict())
        for name, optimizer in self.optimizers.items():
            tensors |= checkpoint.flatten_state(name, checkpoint.optimizer_state(optimizer))
        meta = {
            "identity": identity,
            "place": (self.epoch, self.step),
            "planned": self.planned,
            "history": self.history,
            "best_error": self.best_error if self.history else None,
            "seconds": self.seconds,
        }
        checkpoint.save_next(path, tensors, meta)

    def load(self, path: Path, identity: dict[str, Any]) -> None:
        """Take up what `save` wrote last; where that is damaged, with a warning, what it wrote before.

        Raises:
            CheckpointError: it belongs to another attack, or to an older version; or both files are damaged.
        """
        tensors, meta = checkpoint.load_newest(path)
        if meta["identity"] != identity or "planned" not in meta:
            raise CheckpointError(f"{path} belongs to an attack with other settings or images; delete it to start anew")
        for name, network in self.networks.items():
            network.load_state_dict(checkpoint.unflatten_state(name, tensors))
        for name, optimizer in self.optimizers.items():
            checkpoint.load_optimizer_state(optimizer, checkpoint.unflatten_state(name, tensors))
        self.sums.copy_(tensors["sums"])
        (self.epoch, self.step), self.planned = meta["place"], meta["planned"]
        self.history = meta["history"]
        self.best = checkpoint.unflatten_state("best", tensors)
        self.best_error = meta["best_error"] if self.history else float("inf")
        self.seconds = meta["seconds"]


class LearnedAttack(Attack, Generic[Config]):
    """Trains a network to reconstruct x from `encode(x)` over the attacker's images, with fresh noise in every batch.

    A part of the attacker's own images is held out. The epoch with the smallest error on them is kept, so that a small
    set is not simply memorised, and they show whether the training has come to rest; nothing is chosen on test images.

    Every learning rate is annealed to 0 along a cosine, step by step, over the epochs of the settings or, with a
    deadline, over as many as fit at the pace of the last one. Every random number depends on (seed, purpose,
    epoch, step), so that a resumed training ends with the same weights, bit for bit on the CPU, as an undisturbed one.

    Attributes:
        figures: names of what `_step` gives; `mse` is among them. `history` has their means over every epoch.
        planned: epochs that the training was to have, once fitted.
        net: the network that reconstructs, once fitted.
        checkpoint_seconds: how often to save within an epoch; its end is always saved.
    """

    figures: ClassVar[tuple[str, ...]] = ("mse",)
    checkpoint_seconds = 30.0

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.net: nn.Module | None = None
        self.planned = self.config.epochs

    def _networks(self, observer: Observer) -> dict[str, nn.Module]:
        """Fresh networks by name, initialised from the global generator; `net` reconstructs."""
        return {"net": self._inverter(observer)}

    def _input_shape(self, name: str, observer: Observer) -> tuple[int, ...]:
        """Shape of one input of the network called `name`; a feature, unless a leaf says that it takes images."""
        return observer.feature_shape

    def _optimizers(self, networks: dict[str, nn.Module]) -> dict[str, torch.optim.Optimizer]:
        """Optimizers by the name they have in checkpoints, no name being one of a network; one Adam for all that learn,
        unless a leaf says otherwise.
        """
        learning = [value for network in networks.values() for value in network.parameters() if value.requires_grad]
        cfg: Any = self.config  # an AdamConfig
        return {"optimizer": torch.optim.Adam(learning, cfg.lr, weight_decay=cfg.weight_decay, fused=True)}

    def _descend(self, learner: Learner, loss: Tensor, name: str = "optimizer", **options: Any) -> None:
        """One step of an optimizer down this loss."""
        learner.optimizers[name].zero_grad(set_to_none=True)
        loss.backward(**options)
        learner.optimizers[name].step()

    def _step(self, learner: Learner, turn: Turn) -> Tensor:
        """One step in training mode; gives the means of `figures` over the batch, (figures,).

        Here: down the MSE of the network called `student`, or of `net` where there is none.
        """
        with autocast(turn.x.device, turn.bf16):
            x_hat = learner.networks.get("student", learner.net)(turn.z)
        loss = (x_hat.float() - turn.x).square().mean()
        self._descend(learner, loss)
        return loss.detach()[None]

    def learn(self, observer: Observer, job: Job) -> None:
        """Train the network; where `job.state` exists the training resumes from there.

        Raises:
            CheckpointError: `job.state` belongs to another attack.
            ConfigError: the attacker has too few images.
            Interrupted: `job.should_stop`, which is asked every step, said so; the same call resumes from `job.state`.
            TooSlow: fewer than `fewest` epochs fit until the deadline.
            SfumatoError: the error became NaN or infinite.
        """
        cfg = self.config
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        learner = self._learner(observer)
        identity = {"attack": asdict(cfg), "images": observer.images.fingerprint(), "features": "arranged"}
        state = job.state
        fresh = state is None or not checkpoint.resumable(state)
        if state is not None and not fresh:
            learner.load(state, identity)
        self.history = learner.history
        spent, began = learner.seconds, time.monotonic()
        saved, paced, steps, per_epoch = began, (0, began), 0, -(-len(learn) // cfg.batch_size)

        def save() -> None:
            nonlocal saved
            learner.seconds = spent + time.monotonic() - began
            if state is not None:
                learner.save(state, identity)
            saved = time.monotonic()

        def plan(deadline: float) -> None:
            nonlocal paced
            now, done = time.monotonic(), learner.epoch + learner.step / per_epoch
            epoch = max(1e-9, (now - paced[1]) / (steps - paced[0]) * per_epoch)
            fits = done + max(0.0, deadline - now) / epoch
            if fresh and steps == _PACED and fits < self.fewest:
                raise TooSlow(fits / self.fewest)
            learner.planned = min(cfg.epochs, max(int(fits), math.ceil(done)))
            paced = steps, now

        def time_is_over() -> bool:
            nonlocal steps, paced
            steps += 1
            stop = job.stopped()
            if stop or time.monotonic() - saved > self.checkpoint_seconds:
                save()
            if stop:
                raise Interrupted("the attack was stopped; the same command resumes there")
            if self.deadline is None:
                return False
            if steps == 1:
                paced = 1, time.monotonic()
            elif steps == _PACED:
                plan(self.deadline)
            return time.monotonic() > self.deadline

        bf16 = cfg.precision == "bf16"
        late = False
        while learner.epoch < learner.planned and not late:
            late = self._epoch(learner, observer, learn, bf16, time_is_over)
            # An epoch that the deadline cut short is judged like any other: it may be the best one.
            seen = min(len(learn), learner.step * cfg.batch_size)
            self._close_epoch(learner, self._judge(learner.net, observer, judge, bf16), seen)
            if self.deadline is not None and steps > _PACED:
                plan(self.deadline)  # other programs came or went
            save()
            job.tell(learner.epoch, learner.planned, **self.history[-1])
        self.seconds, self.planned = learner.seconds, learner.planned
        learner.net.load_state_dict(learner.best)
        self.net = learner.net
        # What an attacker who learned nothing answers, on the same images.
        pixels = observer.pixels(judge)
        trivial = float(mse(pixels, observer.pixels(learn).mean(0, keepdim=True).expand_as(pixels)).mean())
        self.outcome = judge_outcome([line["held_out_mse"] for line in self.history], trivial)

    def answer(self, seen: Tensor) -> Tensor:
        """(N, ...) -> (N, C, H, W) in [0, 1]."""
        assert self.net is not None
        with evaluating(self.net):
            return torch.cat([self.net(part) for part in seen.split(1024)]).float()

    def tensors(self) -> dict[str, Tensor]:
        """The weights of the network that reconstructs, and what it knows in closed form."""
        assert self.net is not None
        return self.net.state_dict() | dict(self.net.named_buffers())

    def _learner(self, observer: Observer) -> Learner:
        device = observer.device
        # Initial weights come from the global generator, which the caller gets back as it was.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.config.seed, "attack"))
            networks = {
                name: arranged(network, device, self._input_shape(name, observer))
                for name, network in self._networks(observer).items()
            }
        sums = torch.zeros(len(self.figures), dtype=torch.float64, device=device)
        return Learner(networks, self._optimizers(networks), sums, self.config.epochs)

    def _epoch(
        self, learner: Learner, observer: Observer, learn: Tensor, bf16: bool, time_is_over: Callable[[], bool]
    ) -> bool:
        """The steps of the learner's epoch, from its step on; whether the deadline ended them."""
        cfg, epoch = self.config, learner.epoch
        order = learn[torch.randperm(len(learn), generator=generator(cfg.seed, "order", epoch))]
        batches = order.split(cfg.batch_size)
        for step in range(learner.step, len(batches)):

            def random(purpose: str, step: int = step) -> torch.Generator:
                return generator(cfg.seed, purpose, epoch, step, device=observer.device)

            learner.slow_down(0.5 * (1.0 + math.cos(math.pi * (epoch + step / len(batches)) / learner.planned)))
            x, z = self._batch(observer, batches[step], random)
            means = self._step(learner, Turn(epoch * len(batches) + step, x, z, bf16, random))
            # Weighted by images, because the last batch is smaller.
            learner.sums += means * len(x)
            learner.step = step + 1
            if time_is_over():
                return True
        return False

    def _batch(self, observer: Observer, indices: Tensor, random: Random) -> tuple[Tensor, Tensor]:
        """What a step learns from: images and what left the device for them."""
        return observer.pairs(indices, random("noise"))

    def _inverter(self, observer: Observer) -> Inverter:
        """The network of the decoding attack, which begins with the linear attack's answer where that says much."""
        cfg = self.config
        sketch = Sketch(observer, cfg.hold_out, cfg.seed)
        variance = float(observer.pixels(torch.arange(len(observer))[:2048]).var(0, correction=0).mean())
        begin = sketch if sketch.error < _WORTH_BEGINNING_WITH * variance else None
        return Inverter(observer, begin, width=cfg.width, blocks=cfg.blocks)

    def _close_epoch(self, learner: Learner, held_out: float, learned: int) -> None:
        """Note an epoch's figures and go to the next one."""
        if not math.isfinite(held_out):
            raise SfumatoError(
                f"the attack's error became {held_out} in epoch {learner.epoch}; lower its learning rate and start anew"
            )
        learner.remember(held_out)
        means = (learner.sums / learned).tolist()
        line = {"epoch": learner.epoch, **dict(zip(self.figures, means, strict=True)), "held_out_mse": held_out}
        learner.history.append(line)
        learner.sums.zero_()
        learner.epoch, learner.step = learner.epoch + 1, 0

    def _judge(self, net: nn.Module, observer: Observer, judge: Tensor, bf16: bool) -> float:
        noise = generator(self.config.seed, "judge", device=observer.device)  # the same noise in every epoch
        total = 0.0
        for indices in judge.split(1024):
            x, z = observer.pairs(indices, noise)
            with evaluating(net), autocast(observer.device, bf16):
                x_hat = net(z)
            total += float(mse(x, x_hat.float()).sum())
        return total / len(judge)


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
