"""What a learned attack has at any moment of its training, and nothing else has to be saved."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import checkpoint
from sfumato.errors import CheckpointError

__all__ = ["Learner"]


@dataclass
class Learner:
    """Networks and optimizers by name, sums of the running epoch's figures, the next step to make, the rates that the
    optimizers began with, the weights of `net` in its best epoch, a line of figures per finished epoch, seconds spent.
    """

    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    sums: Tensor
    epoch: int = 0
    step: int = 0
    rates: dict[str, float] = field(default_factory=dict)
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
