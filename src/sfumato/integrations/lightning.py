"""CEM as a callback of Lightning: `Trainer(callbacks=[CEMCallback(cem)])`, nothing changes in the module.

Works with the package `lightning` and with `pytorch-lightning`; the extra `lightning` brings the latter.
"""

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.cem import CEM
from sfumato.defenses import LAMBDA
from sfumato.errors import ConfigError
from sfumato.integrations.protection import Protection
from sfumato.integrations.tap import inputs_of

__all__ = ["CEMCallback"]


def _lightning() -> Any:
    """Whichever of the two packages is installed; both hold the same."""
    for name in ("pytorch_lightning", "lightning.pytorch"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ConfigError("CEMCallback needs Lightning, which is not installed: pip install 'sfumato[lightning]'")


pl: Any = _lightning()


class CEMCallback(pl.Callback):
    """Adds `lambda x factor(progress) x CEM(z_hat, y)` to what `training_step` returns, and refreshes the mixture.

    A plug-in that follows the steps (`CEM(update="steps")`) needs no refresh. For another the refresh takes one pass of
    the encoder over the training batches before each epoch, as training steps see them, without gradients, on each rank
    over its own part. At the end of each epoch some batches make the statistics of batch norm exact, so that the
    validation measures the weights of now. Lightning divides by `accumulate_grad_batches` and scales for half precision
    afterwards, so both work. The mixture is part of Lightning's checkpoints. Logged: `cem_information` (nats),
    `cem_information_per_dimension`, `cem_lam`, `cem_fit`, `cem_competence`.

    Args:
        cem: the plug-in.
        lam: lambda of Eq. 8, in the units of the plug-in's scaling.
        lam_schedule: `ramp`, `lr_coupled` or `constant`.
        features: where z_hat arises: the `SplitModel`, the module whose output it is, or a dotted name of either; None
            looks for the one SplitModel in the LightningModule.
        labels: batch -> labels; its second part, or its entry `labels`, by default.
        inputs: batch -> what the module's forward takes; its first part, or its other entries by name, by default.
        refresh_every: epochs between two refreshes, for a plug-in that does not follow the steps.
        competence: let the loss of the step, a mean cross-entropy, weigh the penalty, see `sfumato.CEM`.
        data: batches for the refresh, augmented as in training; the training batches, if not said.

    Raises:
        ConfigError: a setting without meaning, or, when the fit begins, a module without such features.
    """

    def __init__(
        self,
        cem: CEM,
        *,
        lam: float = LAMBDA,
        lam_schedule: str = "constant",
        features: str | nn.Module | None = None,
        labels: Callable[[Any], Any] | None = None,
        inputs: Callable[[Any], Any] | None = None,
        refresh_every: int = 1,
        competence: bool = True,
        data: Iterable[Any] | None = None,
    ) -> None:
        super().__init__()
        self.protection = Protection(
            cem, lam=lam, lam_schedule=lam_schedule, features=features, refresh_every=refresh_every,
            competence=competence, labels=labels,
        )  # fmt: skip
        self._inputs = inputs
        self._data = data
        self._wrapped: Any = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Listen to the features, and add the penalty to what the module's `training_step` returns."""
        self.protection.attach(pl_module)
        self.protection.defense.to(pl_module.device)
        inner = pl_module.training_step

        @functools.wraps(inner)
        def training_step(batch: Any, *rest: Any, **named: Any) -> Any:
            made = inner(batch, *rest, **named)
            if made is None:  # Lightning skips this step
                return None
            loss = made["loss"] if isinstance(made, Mapping) else made
            penalty = self.protection.penalty(self.protection.labels(batch), _progress(trainer), _rate(trainer), loss)
            return {**made, "loss": loss + penalty} if isinstance(made, Mapping) else loss + penalty

        pl_module.training_step = training_step
        self._wrapped = pl_module

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Refresh the mixture."""
        batches = trainer.train_dataloader if self._data is None else self._data
        self.protection.begin_epoch(trainer.current_epoch, pl_module, *self._runnable(pl_module, batches))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """After the last batch, before the validation: exact statistics, and the epoch's figures."""
        if not trainer.is_last_batch:
            return
        self.protection.end_epoch(pl_module, *self._runnable(pl_module, trainer.train_dataloader))
        for name, value in self.protection.figures().items():
            pl_module.log(name, value)

    def _runnable(self, pl_module: Any, batches: Iterable[Any]) -> tuple[Iterable[Any], Callable[[Any], Any]]:
        """Batches on the module's device, and what runs one."""

        def run(batch: Any) -> Any:
            arguments, named = inputs_of(batch) if self._inputs is None else ((self._inputs(batch),), {})
            return self._forward(pl_module)(*arguments, **named)

        return (pl_module.transfer_batch_to_device(batch, pl_module.device, 0) for batch in batches), run

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        if self._wrapped is not None:
            del self._wrapped.training_step  # the class's own appears again
            self._wrapped = None
        self.protection.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """The mixture, as tensors."""
        return dict(self.protection.cem.state_dict())

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Put back what `state_dict` gave."""
        self.protection.cem.load_state_dict(state_dict)

    def _forward(self, pl_module: Any) -> Any:
        """The module itself, or, where it has no forward of its own, its SplitModel."""
        tap = self.protection.attach(pl_module)
        if type(pl_module).forward is pl.LightningModule.forward and tap.split is not None:
            return tap.split
        return pl_module


def _progress(trainer: Any) -> float:
    """Share of the training that is done, in [0, 1]; 0 where nobody says how long it takes."""
    total = trainer.estimated_stepping_batches
    return min(1.0, trainer.global_step / total) if 0 < total < float("inf") else 0.0


def _rate(trainer: Any) -> float:
    rate = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else 0.0
    return float(rate.item() if isinstance(rate, torch.Tensor) else rate)
