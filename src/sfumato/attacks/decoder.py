"""The decoding attack: a network trained to redraw the image from what leaves the device."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sfumato import checkpoint
from sfumato.attacks.base import Attack, Fit, Observer, Progress
from sfumato.compute import Precision, autocast, channels_last, use_bf16
from sfumato.errors import CheckpointError, ConfigError, NotFittedError
from sfumato.metrics import mse
from sfumato.models import ReconstructionNet
from sfumato.seeds import derive_seed, generator

__all__ = ["DecoderAttack", "DecoderConfig"]


@dataclass(frozen=True)
class DecoderConfig:
    """Settings of the decoding attack; the defaults are those of the authors' code.

    Attributes:
        epochs: passes over the attacker's images.
        batch_size: images per step.
        lr: of Adam, annealed to 0 along a cosine. (The paper's text says 0.005, its code 0.001.)
        weight_decay: of Adam.
        width: channels of every layer.
        blocks: residual blocks before upsampling.
        hold_out: fraction of the attacker's images that only judge: they choose the epoch and show convergence.
        precision: `auto`, `fp32` or `bf16`.
        seed: of initial weights, order and noise.
    """

    epochs: int = 50
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    width: int = 64
    blocks: int = 8
    hold_out: float = 0.1
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.width) < 1 or self.blocks < 0:
            raise ConfigError("epochs, batch_size and width of an attack must be at least 1, blocks at least 0")
        if not 0 < self.hold_out < 1:
            raise ConfigError(f"hold_out is {self.hold_out}; give a fraction between 0 and 1, such as 0.1")


class DecoderAttack(Attack):
    """Minimises the MSE of `net(encode(x))` against x over the attacker's images, with fresh noise in every batch.

    The epoch with the smallest error on held-out images of the attacker's own set is kept, so that a small set is not
    simply memorised; nothing is chosen on test images.
    """

    name: ClassVar[str] = "decoder"

    def __init__(self, config: DecoderConfig | None = None) -> None:
        self.config = config or DecoderConfig()
        self.net: nn.Module | None = None
        self.history: list[dict[str, float]] = []

    def fit(
        self,
        observer: Observer,
        *,
        progress: Progress | None = None,
        state: Path | None = None,
        **_: Any,
    ) -> Self:
        """Train the network.

        Args:
            observer: what the attacker may see.
            progress: called after every epoch.
            state: checkpoint file; where it exists the training goes on from there and ends with the same weights as
                an undisturbed one.

        Raises:
            CheckpointError: `state` belongs to another attack.
            ConfigError: the attacker has too few images to hold any out.
        """
        cfg = self.config
        order = torch.randperm(len(observer), generator=generator(cfg.seed, "hold-out"))
        held = max(1, round(cfg.hold_out * len(observer)))
        if held >= len(observer):
            raise ConfigError(f"an attack needs at least 2 images, got {len(observer)}")
        judge, learn = order[:held], order[held:]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(cfg.seed, "attack"))
            net: nn.Module = ReconstructionNet(
                observer.feature_shape, observer.image_shape, width=cfg.width, blocks=cfg.blocks
            ).to(observer.device)
        net = channels_last(net)
        bf16 = use_bf16(cfg.precision, observer.device, net, observer.feature_shape)
        optimizer = torch.optim.Adam(net.parameters(), cfg.lr, weight_decay=cfg.weight_decay, fused=True)
        best = {name: value.clone() for name, value in net.state_dict().items()}
        first, best_error = 0, float("inf")
        identity = {"attack": asdict(cfg), "images": observer.images.fingerprint()}
        if state is not None and state.exists():
            first, best_error, best = self._resume(state, identity, net, optimizer)
        for epoch in range(first, cfg.epochs):
            net.train()
            error = self._epoch(net, optimizer, observer, learn, epoch, bf16)
            held_out = self._judge(net, observer, judge, bf16)
            if held_out < best_error:
                best_error = held_out
                best = {name: value.clone() for name, value in net.state_dict().items()}
            self.history.append({"epoch": epoch, "mse": error, "held_out_mse": held_out})
            if state is not None:
                self._save(state, identity, net, optimizer, best, best_error)
            if progress is not None:
                progress(epoch + 1, cfg.epochs, self.history[-1])
        net.load_state_dict(best)
        self.net = net.eval()
        pixels = observer.pixels(judge)
        trivial = float(mse(pixels, observer.pixels(learn).mean(0, keepdim=True).expand_as(pixels)).mean())
        self.outcome = _outcome([line["held_out_mse"] for line in self.history], trivial)
        return self

    @torch.no_grad()
    def reconstruct(self, z: Tensor) -> Tensor:
        """(N, ...) released features -> (N, C, H, W) in [0, 1]."""
        if self.net is None:
            raise NotFittedError("the attack has not been fitted; call fit(observer) first")
        parts = [self.net(part.float()) for part in z.split(1024)]
        return torch.cat(parts).float()

    def _epoch(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        observer: Observer,
        learn: Tensor,
        epoch: int,
        bf16: bool,
    ) -> float:
        cfg = self.config
        order = learn[torch.randperm(len(learn), generator=generator(cfg.seed, "order", epoch))]
        batches = order.split(cfg.batch_size)
        total = torch.zeros((), dtype=torch.float64, device=observer.device)
        for step, indices in enumerate(batches):
            done = (epoch + step / len(batches)) / cfg.epochs
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr * 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * done))))
            x = observer.pixels(indices)
            noise = generator(cfg.seed, "noise", epoch, step, device=observer.device)
            z = observer.encode(x, noise)
            with autocast(observer.device, bf16):
                x_hat = net(z)
            loss = (x_hat.float() - x).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(indices)
        return float(total) / len(learn)

    @torch.no_grad()
    def _judge(self, net: nn.Module, observer: Observer, judge: Tensor, bf16: bool) -> float:
        net.eval()
        noise = generator(self.config.seed, "judge", device=observer.device)  # the same noise in every epoch
        total = 0.0
        for indices in judge.split(1024):
            x = observer.pixels(indices)
            with autocast(observer.device, bf16):
                x_hat = net(observer.encode(x, noise))
            total += float(mse(x, x_hat.float()).sum())
        return total / len(judge)

    def _save(
        self,
        path: Path,
        identity: dict[str, Any],
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        best: dict[str, Tensor],
        best_error: float,
    ) -> None:
        slots = checkpoint.optimizer_state(optimizer)
        tensors = {
            **checkpoint.flatten_state("net", net.state_dict()),
            **checkpoint.flatten_state("best", best),
            **checkpoint.flatten_state("optimizer", slots),
        }
        meta = {"identity": identity, "history": self.history, "best_error": best_error}
        checkpoint.save(path, tensors, meta)

    def _resume(
        self, path: Path, identity: dict[str, Any], net: nn.Module, optimizer: torch.optim.Optimizer
    ) -> tuple[int, float, dict[str, Tensor]]:
        tensors, meta = checkpoint.load(path)
        if meta["identity"] != identity:
            raise CheckpointError(f"{path} belongs to an attack with other settings or images; delete it to start anew")
        net.load_state_dict(checkpoint.unflatten_state("net", tensors))
        checkpoint.load_optimizer_state(optimizer, checkpoint.unflatten_state("optimizer", tensors))
        self.history = meta["history"]
        return len(self.history), meta["best_error"], checkpoint.unflatten_state("best", tensors)


def _outcome(errors: list[float], trivial: float) -> Fit:
    """Judge convergence on the held-out errors: did the last tenth of the epochs still gain?"""
    best = min(errors)
    tail = max(1, len(errors) // 10)
    before = min(errors[:-tail], default=float("inf"))
    gain = (before - best) / before if before < float("inf") else 1.0
    if gain > 0.02:
        return Fit(False, f"the last {tail} epochs still gained {gain:.0%}; attack for more epochs", best)
    if best > 0.98 * trivial:
        return Fit(
            False,
            f"no better than predicting the mean image ({trivial:.4f}): either nothing leaks or the attack failed",
            best,
        )
    return Fit(True, f"the last {tail} epochs gained {max(gain, 0.0):.1%}", best)
