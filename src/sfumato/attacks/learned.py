"""What all attacks that train a network share: the template; a leaf says its networks, its optimizers and one step."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from sfumato import checkpoint
from sfumato.attacks.base import Attack, Job, Observer, hold_out
from sfumato.attacks.network import Inverter, Sketch
from sfumato.attacks.outcome import judge_outcome
from sfumato.attacks.settings import LearnedConfig
from sfumato.compute import arranged, autocast
from sfumato.errors import CheckpointError, Interrupted, SfumatoError
from sfumato.metrics import mse
from sfumato.seeds import derive_seed, generator
from sfumato.torch_utils import evaluating

__all__ = ["LearnedAttack", "Learner", "Turn"]

Random = Callable[[str], torch.Generator]
"""A generator for a purpose, at its beginning."""

_WORTH_BEGINNING_WITH = 0.4
"""Of the images' variance: what the linear attack may leave open. Digits: without noise it leaves .24, and beginning
there gives .0167 instead of .0175; at noise .4 it leaves .54, and 50 epochs from there end at .039 instead of .036."""

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

    Networks and optimizers by name, sums of the running epoch's figures, the next step to make, the weights of `net` in
    its best epoch, a line of figures per finished epoch, seconds spent.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    sums: Tensor
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
            "history": self.history,
            "best_error": self.best_error if self.history else None,
            "seconds": self.seconds,
        }
        checkpoint.save_next(path, tensors, meta)

    def load(self, path: Path, identity: dict[str, Any]) -> None:
        """Take up what `save` wrote last; where that is damaged, with a warning, what it wrote before.

        Raises:
            CheckpointError: it belongs to another attack, or to an older version that noted no place; or both files
                are damaged.
        """
        tensors, meta = checkpoint.load_newest(path)
        if meta["identity"] != identity or "place" not in meta:
            raise CheckpointError(f"{path} belongs to an attack with other settings or images; delete it to start anew")
        for name, network in self.networks.items():
            network.load_state_dict(checkpoint.unflatten_state(name, tensors))
        for name, optimizer in self.optimizers.items():
            checkpoint.load_optimizer_state(optimizer, checkpoint.unflatten_state(name, tensors))
        self.sums.copy_(tensors["sums"])
        self.epoch, self.step = meta["place"]
        self.history = meta["history"]
        self.best = checkpoint.unflatten_state("best", tensors)
        self.best_error = meta["best_error"] if self.history else float("inf")
        self.seconds = meta["seconds"]


class LearnedAttack(Attack, Generic[Config]):
    """Trains a network to reconstruct x from `encode(x)` over the attacker's images, with fresh noise in every batch.

    A part of the attacker's own images is held out. The epoch with the smallest error on them is kept, so that a small
    set is not simply memorised, and they show whether the training has come to rest; nothing is chosen on test images.

    Every learning rate is annealed to 0 along a cosine, step by step. Every random number depends on (seed, purpose,
    epoch, step), so that a resumed training ends with the same weights, bit for bit on the CPU, as an undisturbed one.

    Attributes:
        figures: names of what `_step` gives; `mse` is among them. `history` has their means over every epoch.
        net: the network that reconstructs, once fitted.
        checkpoint_seconds: how often to save within an epoch; its end is always saved.
    """

    figures: ClassVar[tuple[str, ...]] = ("mse",)
    checkpoint_seconds = 30.0

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.net: nn.Module | None = None

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
            SfumatoError: the error became NaN or infinite.
        """
        cfg = self.config
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        learner = self._learner(observer)
        identity = {"attack": asdict(cfg), "images": observer.images.fingerprint(), "features": "arranged"}
        state = job.state
        if state is not None and checkpoint.resumable(state):
            learner.load(state, identity)
        self.history = learner.history
        spent, began = learner.seconds, time.monotonic()
        saved = began

        def save() -> None:
            nonlocal saved
            learner.seconds = spent + time.monotonic() - began
            if state is not None:
                learner.save(state, identity)
            saved = time.monotonic()

        def time_is_over() -> bool:
            stop = job.stopped()
            if stop or time.monotonic() - saved > self.checkpoint_seconds:
                save()
            if stop:
                raise Interrupted("the attack was stopped; the same command resumes there")
            return self.deadline is not None and time.monotonic() > self.deadline

        bf16 = cfg.precision == "bf16"
        late = False
        while learner.epoch < cfg.epochs and not late:
            late = self._epoch(learner, observer, learn, bf16, time_is_over)
            # An epoch that the deadline cut short is judged like any other: it may be the best one.
            seen = min(len(learn), learner.step * cfg.batch_size)
            self._close_epoch(learner, self._judge(learner.net, observer, judge, bf16), seen)
            save()
            job.tell(learner.epoch, cfg.epochs, **self.history[-1])
        self.seconds = learner.seconds
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
        return Learner(networks, self._optimizers(networks), sums)

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

            learner.slow_down(0.5 * (1.0 + math.cos(math.pi * (epoch + step / len(batches)) / cfg.epochs)))
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
