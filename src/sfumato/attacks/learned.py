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
from sfumato.attacks.base import Attack, AttackConfig, Job, Observer, TooSlow, hold_out, judge_outcome
from sfumato.attacks.network import Inverter, Sketch
from sfumato.compute import Precision, arranged, autocast
from sfumato.errors import CheckpointError, Interrupted, SfumatoError
from sfumato.metrics import mse
from sfumato.seeds import derive_seed, generator
from sfumato.torch_utils import evaluating

__all__ = ["AdamConfig", "LearnedAttack", "LearnedConfig", "Learner", "Turn"]

Random = Callable[[str], torch.Generator]
"""A generator for a purpose, at its beginning."""

_WORTH_BEGINNING_WITH = 0.4
"""Of the images' variance: what the linear attack may leave open. Digits: without noise it leaves .24, and beginning
there gives .0167 instead of .0175; at noise .4 it leaves .54, and 50 epochs from there end at .039 instead of .036."""

_NOTHING = 0.1  # of the fewest epochs: said to fit where not even the networks can be begun, of which nothing is known

_PACED = 5
"""Steps after which a training with a deadline tells how many epochs fit; the first also pays for memory and kernels,
and is not counted."""


@dataclass(frozen=True, kw_only=True)
class LearnedConfig(AttackConfig):
    """Settings that every attack with a network has.

    Attributes:
        epochs: Passes over the attacker's images.
        batch_size: Images per step.
        width: Channels of every layer.
        blocks: Residual blocks before upsampling.
        precision: Floating-point format of the networks. `auto` and `fp32` compute in float32 on every machine; `bf16`
            does not.

    >>> LearnedConfig(epochs=20).batch_size
    256
    """

    epochs: int = 50
    batch_size: int = 256
    width: int = 64
    blocks: int = 8
    precision: Precision = "auto"


@dataclass(frozen=True, kw_only=True)
class AdamConfig(LearnedConfig):
    """Settings of attacks with one network and one Adam.

    Attributes:
        lr: Learning rate of Adam. Annealed to 0 along a cosine.
        weight_decay: Weight decay of Adam.
    """

    lr: float = 1e-3
    weight_decay: float = 1e-4


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
        self.history, self.seconds = meta["history"], meta["seconds"]
        self.best = checkpoint.unflatten_state("best", tensors)
        self.best_error = meta["best_error"] if self.history else float("inf")


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

    >>> from sfumato.attacks import DecoderAttack
    >>> issubclass(DecoderAttack, LearnedAttack), DecoderAttack().planned
    (True, 50)
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
            Interrupted: the observer's `should_stop` said so; the same call resumes from `job.state`.
            TooSlow: fewer than `fewest` epochs fit until the deadline.
            SfumatoError: the error became NaN or infinite.
        """
        cfg, state = self.config, job.state
        judge, learn = hold_out(len(observer), cfg.hold_out, cfg.seed)
        fresh = state is None or not checkpoint.resumable(state)
        should_stop = observer.should_stop

        def in_time() -> bool:
            # A resumed training has to begin with the same closed forms, so that time cannot cut them short.
            if fresh and self.late():
                raise TooSlow(_NOTHING)
            return should_stop is not None and should_stop()

        with observer.asking(should_stop if self.deadline is None else in_time):
            learner = self._learner(observer)
        identity = {"attack": asdict(cfg), "images": observer.images.fingerprint(), "features": "arranged"}
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

        def plan() -> None:
            """As many epochs as fit until the deadline at the pace since the last plan."""
            nonlocal paced
            if self.deadline is None:
                return
            now, done = time.monotonic(), learner.epoch + learner.step / per_epoch
            epoch = max(1e-9, (now - paced[1]) / (steps - paced[0]) * per_epoch)
            fits = done + max(0.0, self.deadline - now) / epoch
            if fresh and steps == _PACED and fits < self.fewest:
                raise TooSlow(fits / self.fewest)
            learner.planned = min(cfg.epochs, max(int(fits), math.ceil(done)))
            paced = steps, now

        def stepped() -> None:
            nonlocal steps, paced
            steps += 1
            if time.monotonic() - saved > self.checkpoint_seconds:
                save()
            if steps == 1:
                paced = 1, time.monotonic()
            elif steps == _PACED:
                plan()

        try:
            while learner.epoch < learner.planned:
                self._epoch(learner, observer, learn, stepped)
                # An epoch that the deadline cut short is judged like any other: it may be the best one.
                learned = min(len(learn), learner.step * cfg.batch_size)
                self._close_epoch(learner, self._judge(learner.net, observer, judge, cfg.precision == "bf16"), learned)
                if steps > _PACED:
                    plan()  # other programs came or went
                save()
                job.tell(learner.epoch, learner.planned, **self.history[-1])
                if self.late():
                    break
        except Interrupted:
            save()
            raise
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
                # The order of memory that suits what a network takes: features where it says so, else images.
                name: arranged(network, device, getattr(network, "feature_shape", observer.image_shape))
                for name, network in self._networks(observer).items()
            }
        sums = torch.zeros(len(self.figures), dtype=torch.float64, device=device)
        return Learner(networks, self._optimizers(networks), sums, self.config.epochs)

    def _epoch(self, learner: Learner, observer: Observer, learn: Tensor, stepped: Callable[[], None]) -> None:
        """The steps of the learner's epoch, from its step on, until the deadline."""
        cfg, epoch = self.config, learner.epoch
        order = learn[torch.randperm(len(learn), generator=generator(cfg.seed, "order", epoch))]
        batches = order.split(cfg.batch_size)
        for step in range(learner.step, len(batches)):

            def random(purpose: str, step: int = step) -> torch.Generator:
                return generator(cfg.seed, purpose, epoch, step, device=observer.device)

            factor = 0.5 * (1.0 + math.cos(math.pi * (epoch + step / len(batches)) / learner.planned))
            for optimizer in learner.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = factor * optimizer.defaults["lr"]
            x, z = self._batch(observer, batches[step], random)
            means = self._step(learner, Turn(epoch * len(batches) + step, x, z, cfg.precision == "bf16", random))
            # Weighted by images, because the last batch is smaller.
            learner.sums += means * len(x)
            learner.step = step + 1
            stepped()
            if self.late():
                return

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
        """Note an epoch's figures, keep the best weights of `net`, and go to the next epoch."""
        if not math.isfinite(held_out):
            raise SfumatoError(
                f"the attack's error became {held_out} in epoch {learner.epoch}; lower its learning rate and start anew"
            )
        if held_out < learner.best_error:
            learner.best_error = held_out
            learner.best = {name: value.clone() for name, value in learner.net.state_dict().items()}
        means = (learner.sums / learned).tolist()
        line = {"epoch": learner.epoch, **dict(zip(self.figures, means, strict=True)), "held_out_mse": held_out}
        learner.history.append(line)
        learner.sums.zero_()
        learner.epoch, learner.step = learner.epoch + 1, 0

    def _judge(self, net: nn.Module, observer: Observer, judge: Tensor, bf16: bool) -> float:
        noise = generator(self.config.seed, "judge", device=observer.device)  # the same noise in every epoch
        total = 0.0
        for indices in judge.split(256):
            x, z = observer.pairs(indices, noise)
            with evaluating(net), autocast(observer.device, bf16):
                x_hat = net(z)
            total += float(mse(x, x_hat.float()).sum())
        return total / len(judge)
