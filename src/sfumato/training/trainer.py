"""The training loop: a pure function of its settings, killed and resumed at any step without a trace."""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import checkpoint
from sfumato.compute import arranged, device_of, kernels, use_bf16
from sfumato.cuda_graph import Replay
from sfumato.data import ImageSet
from sfumato.defenses import Batch, Defense, Epoch
from sfumato.distributed import Part, Ranks, accumulating, averaging_steps, backward, data_parallel, share_batch_norm
from sfumato.errors import CheckpointError, ConfigError, DivergedError, Interrupted, SfumatoError, first_line
from sfumato.models.layers import Dropout
from sfumato.models.widths import fit_to_state
from sfumato.seeds import derive_seed, generator
from sfumato.split import SplitModel
from sfumato.torch_utils import wake
from sfumato.training.build import learning_rate
from sfumato.training.config import TrainConfig
from sfumato.training.evaluate import accuracy, check_learning, epoch_figures
from sfumato.training.passes import Objective, Passes

__all__ = ["Trainer", "check_ranks"]

OnStep = Callable[[int, int], None]
OnEpoch = Callable[[dict[str, Any]], None]
Stop = Callable[[], bool]


class Trainer:
    """Trains a split model with its defences.

    Every random number depends on (seed, purpose, epoch, step), never on what was drawn before; with the state that a
    checkpoint holds, a resumed training ends with the same weights, bit for bit on the CPU, as an undisturbed one.

    Where torch.distributed is initialised, every rank makes such an object and each works on its part of every batch,
    without replaying steps. They are those of one process but for the random numbers of the other ranks' rows and for
    rounding. Rank 0 alone measures the held-out images and touches the checkpoint, which any number of ranks resumes.

    Args:
        model: the split model; trained in place.
        defenses: in the order in which they act.
        train: images to learn from.
        held_out: images of the training set that only measure; may be None.
        config: settings.
    """

    def __init__(
        self,
        model: SplitModel,
        defenses: list[Defense],
        train: ImageSet,
        held_out: ImageSet | None,
        config: TrainConfig,
    ) -> None:
        self.device = device_of(config.device)
        self.config = config
        self.train = train
        self.held_out = held_out
        self.model = model.to(self.device)
        arranged(model.edge, self.device, train.image_shape)
        arranged(model.cloud, self.device, model.feature_shape(train.image_shape))
        self.defenses = defenses
        self._modules = nn.ModuleList(defenses).to(self.device)
        self.bf16 = use_bf16(config.precision, self.device, model.edge, train.image_shape) or use_bf16(
            config.precision, self.device, model.cloud, model.feature_shape(train.image_shape)
        )
        self.optimizer = self._optimizer()
        self.steps = math.ceil(len(train) / config.batch_size)
        self.history: list[dict[str, Any]] = []
        self.ranks = Ranks.current()
        self._objective: nn.Module = Objective(model, self._modules, self.device, self.bf16)
        self._shared: nn.Module = self._objective
        self._passes = Passes(model, train, config, self.device, self.ranks, self.bf16)
        self._epoch = self._step = 0  # the next step to make
        self._sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        self._seconds = 0.0
        self._indices = torch.zeros(config.batch_size, dtype=torch.int64, device=self.device)
        self._random = {name: torch.Generator(self.device) for name in ("augment", "step")}
        self._own_random(self._random["step"])
        if config.engine == "compiled":
            model.edge.compile()
            model.cloud.compile()
        self._whole_step = Replay(
            lambda: self._compute(self._indices),
            self.device,
            tuple(self._random.values()),
            enabled=self.ranks.alone
            and config.engine in ("auto", "compiled")
            and all(defense.replayable for defense in defenses),
        )
        self._layout: tuple[int, ...] = ()
        self._watcher = epoch_figures(self.model, self.defenses, train, held_out, config)

    def run(
        self,
        state: Path | None = None,
        *,
        on_step: OnStep | None = None,
        on_epoch: OnEpoch | None = None,
        should_stop: Stop | None = None,
    ) -> list[dict[str, Any]]:
        """Train to the end, from `state` where it exists; give one line of figures per epoch.

        Args:
            state: checkpoint file, or None to keep none.
            on_step: called as `(steps done, steps in all)`.
            on_epoch: called with the epoch's line.
            should_stop: asked after every step; True, on any rank, saves and leaves, on all.

        Raises:
            CheckpointError: `state` belongs to another training.
            ConfigError: the ranks differ in settings or images, or are more than the images of a batch.
            Interrupted: `should_stop` said so.
            RankLost: another rank ended or does not answer.
            DivergedError: the loss became NaN or infinite.
        """
        self._meet()
        if state is not None and self.ranks.first(lambda: checkpoint.resumable(state)):
            self._resume(state)
        self._shared = data_parallel(self._objective, self.ranks)
        try:
            with (
                averaging_steps(self._own_optimizers().values(), self.ranks),
                torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []),
                kernels(self.device, self.config.engine),
            ):
                self._run(state, on_step, on_epoch, should_stop)
        except torch.OutOfMemoryError as error:
            part = max(1, (self.config.micro_batch or self.config.batch_size) // 2)
            raise SfumatoError(
                f"the device ran out of memory in epoch {self._epoch}; run fewer trainings on it at once, or "
                f"give --micro-batch {part}: the same command with it resumes from the checkpoint"
            ) from error
        except DivergedError:
            self._drop_previous(state)
            raise
        self._drop_previous(state)
        self._shared = self._objective
        self._own_random(None)
        self.model.eval()
        return self.history

    def _meet(self) -> None:
        """Check that the ranks do the same training, and let batch norm see the whole batch."""
        if self.ranks.alone:
            return
        check_ranks(self.ranks, self.train, self.config)
        told = {"precision": "bf16" if self.bf16 else "fp32", "kind of device": self.device.type}
        self.ranks.check_same(told, "give all ranks the same kind of machine, or name --precision and --device")
        for module in (self.model, self._modules):
            share_batch_norm(module)

    def _run(self, state: Path | None, on_step: OnStep | None, on_epoch: OnEpoch | None, asked: Stop | None) -> None:
        saved = time.monotonic()
        while (epoch := self._epoch) < self.config.epochs:
            began = time.monotonic()
            if self._step == 0:
                self.begin_epoch(epoch)
            order = torch.randperm(len(self.train), generator=generator(self.config.seed, "order", epoch))
            batches = order.to(self.device).split(self.config.batch_size)
            while self._step < self.steps:
                self.step(epoch, self._step, batches[self._step])
                self._step += 1
                if on_step is not None:
                    on_step(epoch * self.steps + self._step, self.config.epochs * self.steps)
                late = time.monotonic() - saved > self.config.checkpoint_seconds
                stop, due = self.ranks.any(asked is not None and asked(), late)
                if state is not None and (stop or due):
                    self._seconds += time.monotonic() - began
                    self._save(state)
                    began = saved = time.monotonic()
                if stop:
                    raise Interrupted("the training was stopped; the same command resumes there")
            self._seconds += time.monotonic() - began
            self._end(epoch)
            if state is not None:
                self._save(state)
                saved = time.monotonic()
            if on_epoch is not None:
                on_epoch(self.history[-1])

    def _own_random(self, random: torch.Generator | None) -> None:
        for module in self.model.modules():
            if isinstance(module, Dropout):
                module.generator = random

    def _optimizer(self) -> torch.optim.Optimizer:
        cfg = self.config
        # A tensor, so that a replayed step can read it; the fused kernel on a GPU reads float32.
        rate = torch.tensor(cfg.lr, dtype=torch.float64 if self.device.type == "cpu" else None, device=self.device)
        return torch.optim.SGD(
            self.model.parameters(), lr=rate, momentum=cfg.momentum, weight_decay=cfg.weight_decay, fused=True
        )

    def _own_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The defences' optimizers by a name for checkpoints."""
        return {
            f"inner.{number}.{index}": optimizer
            for number, defense in enumerate(self.defenses)
            for index, optimizer in enumerate(defense.optimizers())
        }

    def begin_epoch(self, epoch: int) -> None:
        """Let the defences act before the first step of an epoch, and start its sums."""
        self._wake()
        self._sums.zero_()
        self._seconds = 0.0
        replaced: list[bool] = []
        collect, mark = partial(self._passes.collect, epoch), partial(replaced.append, True)
        for defense in self.defenses:
            defense.on_epoch(Epoch(epoch, self.config.epochs, collect, self.model, mark))
        if replaced:
            self.optimizer = self._optimizer()
            self._shared = self._objective  # the one before lets go of the parameters that stay
            self._shared = data_parallel(self._objective, self.ranks)
        layout = tuple(defense.layout for defense in self.defenses)
        if replaced or layout != self._layout:
            self._layout = layout
            self._whole_step.forget()
        self._wake()

    def _wake(self) -> None:
        wake(self.model)
        wake(self._modules)

    def step(self, epoch: int, step: int, indices: Tensor) -> None:
        """One step on the images at `indices`; a pure function of the state, the seed, the epoch and the step."""
        seed = self.config.seed
        part = self.ranks.split(len(indices))
        lr = self._rate(epoch, step)
        for group in self.optimizer.param_groups:
            group["lr"].fill_(lr)
        for defense in self.defenses:
            defense.before_step((epoch + step / self.steps) / self.config.epochs, lr)
        for name, random in self._random.items():
            random.manual_seed(derive_seed(seed, name, epoch, step, *part.stream))
        # Layers and defences without a generator of ours:
        torch.manual_seed(derive_seed(seed, "step", epoch, step, *part.stream))
        if self.ranks.alone and len(indices) == len(self._indices):
            self._indices.copy_(indices)
            self._whole_step()
        else:
            with part.working():
                self._compute(indices[part.rows], part)

    def _compute(self, indices: Tensor, part: Part | None = None) -> None:
        """What happens on the device in a step, with this rank's images, and may be captured; see `Replay`."""
        part = part or Part(slice(0, len(indices)))
        images = self._passes.augmented(indices, self._random["augment"])
        sizes = part.sizes(self.config.micro_batch)
        self.optimizer.zero_grad(set_to_none=True)
        left = len(sizes)
        for x, labels in zip(images.split(sizes), self._passes.labels[indices].split(sizes), strict=True):
            left -= 1
            batch = self._backward(x, labels, part.weight * len(x) / len(indices), part.counted, last=left == 0)
        self.optimizer.step()
        for defense in self.defenses:
            defense.on_step(batch)

    def _backward(self, x: Tensor, labels: Tensor, share: float, counted: bool, *, last: bool) -> Batch:
        """Forward and backward of images that have this share in the step's gradient, the average over the ranks."""
        with accumulating(self._shared, last=last):
            loss, task, batch = self._shared(x, labels, self._random["step"])
            backward(loss if share == 1 else share * loss, self.ranks)
        if counted:
            right = (batch.logits.detach().argmax(1) == labels).sum()
            self._sums += torch.stack([loss.detach() * len(x), task.detach() * len(x), right]).double()
        found: Batch = batch
        return found

    def _rate(self, epoch: int, step: int) -> float:
        return learning_rate(self.config.lr_schedule, self.config.lr, (epoch + step / self.steps) / self.config.epochs)

    def _end(self, epoch: int) -> None:
        loss, task, right = (self.ranks.sum(self._sums) / len(self.train)).tolist()
        if not math.isfinite(loss):
            raise DivergedError(f"the loss became {loss} in epoch {epoch}; lower --lr or --lam and start a new run")
        for defense in self.defenses:
            defense.end_epoch()
        if self.defenses:
            check_learning(epoch + 1, self.config.epochs, self.steps, right, self._passes.labels)
        self._passes.make_statistics_exact(epoch, self._random["step"])
        self.history.append(self.ranks.first(lambda: self._line(epoch, loss, task, right)))
        self._epoch, self._step = epoch + 1, 0

    def _line(self, epoch: int, loss: float, task: float, right: float) -> dict[str, Any]:
        line: dict[str, Any] = {
            "epoch": epoch,
            "lr": self._rate(epoch, self.steps - 1),
            "loss": loss,
            "task_loss": task,
            "accuracy_train": right,
            "seconds": round(self._seconds, 3),
        }
        if self.held_out is not None:
            line["accuracy_held_out"] = accuracy(
                self.model, self.held_out, seed=derive_seed(self.config.seed, "held-out"), bf16=self.bf16
            )
        if self._watcher is not None:
            line |= {name: value for name, value in self._watcher.measure().items() if name != "accuracy"}
        for defense in self.defenses:
            line |= {f"{defense.name}_{name}": value for name, value in defense.report().items()}
        return line

    def _identity(self) -> dict[str, Any]:
        return {"config": self.config.identity(), "data": self.train.fingerprint(), "bf16": self.bf16}

    def _save(self, path: Path) -> None:
        tensors = {
            **checkpoint.flatten_state("model", self.model.state_dict()),
            **checkpoint.flatten_state("defenses", self._modules.state_dict()),
            **checkpoint.flatten_state("optimizer", checkpoint.optimizer_state(self.optimizer)),
            "sums": self.ranks.sum(self._sums),
        }
        for name, optimizer in self._own_optimizers().items():
            tensors |= checkpoint.flatten_state(name, checkpoint.optimizer_state(optimizer))
        meta: dict[str, Any] = {"identity": self._identity(), "place": (self._epoch, self._step)}
        meta |= {"history": self.history, "seconds": self._seconds}
        self.ranks.first(lambda: checkpoint.save_next(path, tensors, meta))

    def _drop_previous(self, path: Path | None) -> None:
        if path is not None and self.ranks.is_first:
            checkpoint.drop_previous(path)

    def _resume(self, path: Path) -> None:
        tensors, meta = self.ranks.first(lambda: checkpoint.load_newest(path))
        if meta.get("identity") != self._identity():
            raise CheckpointError(
                f"{path} belongs to a training with other settings, data or precision; choose another --run folder"
            )
        try:
            self._put_back(tensors, meta)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not fit this training ({first_line(error)}); choose another --run folder"
            ) from error

    def _put_back(self, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        (epoch, step), history = meta["place"], meta["history"]
        numbers = type(epoch) is type(step) is int and 0 <= epoch <= self.config.epochs and 0 <= step <= self.steps
        if not numbers or not isinstance(history, list) or len(history) != epoch:
            raise ValueError(f"it stands at epoch {epoch}, step {step}")
        weights = checkpoint.unflatten_state("model", tensors)
        if fit_to_state(self.model, weights):  # pruned before the checkpoint
            self.optimizer = self._optimizer()
        self.model.load_state_dict(weights)
        self._modules.load_state_dict(checkpoint.unflatten_state("defenses", tensors))
        checkpoint.load_optimizer_state(self.optimizer, checkpoint.unflatten_state("optimizer", tensors))
        for name, optimizer in self._own_optimizers().items():
            checkpoint.load_optimizer_state(optimizer, checkpoint.unflatten_state(name, tensors))
        self._sums.copy_(tensors["sums"] * self.ranks.is_first)
        self._epoch, self._step = epoch, step
        self.history = history
        self._seconds = float(meta["seconds"])
        self._wake()


def check_ranks(ranks: Ranks, train: ImageSet, config: TrainConfig) -> None:
    """Refuse ranks that do not do the same training, more of them than a batch has images, and one-process engines."""
    settings = {f"setting {name}": value for name, value in config.identity().items()}
    ranks.check_same(settings | {"setting micro_batch": config.micro_batch}, "start all ranks with the same command")
    ranks.check_same({"data fingerprint": train.fingerprint()}, "give all ranks the same images with --data-dir")
    for count, what in ((config.batch_size, "a batch has"), (len(train), "the training set has")):
        if count < ranks.size:
            raise ConfigError(f"{what} {count} images, fewer than the {ranks.size} ranks; start fewer processes")
    if config.engine == "compiled" and not ranks.alone:
        raise ConfigError("engine compiled works in one process; give --engine eager")
