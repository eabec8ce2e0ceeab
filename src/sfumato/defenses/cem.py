"""Conditional entropy maximization as a defence: a thin adapter around `sfumato.CEM`."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from sfumato.cem import CEM
from sfumato.defenses.base import Batch, Defense, Epoch
from sfumato.errors import ConfigError
from sfumato.schedules import schedule

__all__ = ["CEMDefense"]


class CEMDefense(Defense):
    """Adds `lambda x factor(progress, lr) x CEM(z_hat, y)` to the loss and refreshes the mixture between epochs.

    Args:
        cem: the plug-in.
        lam: lambda of Eq. 8, in the units of the plug-in's scaling.
        lam_schedule: name of the schedule that multiplies lambda (`sfumato.schedules`).
        refresh_every: epochs between two refreshes.
    """

    name: ClassVar[str] = "cem"
    weight: Tensor

    def __init__(self, cem: CEM, *, lam: float, lam_schedule: str = "ramp", refresh_every: int = 1) -> None:
        super().__init__()
        if lam < 0:
            raise ConfigError(f"lambda is {lam}, which would reward leaking; give 0 or more")
        if refresh_every < 1:
            raise ConfigError(f"refresh_every is {refresh_every}; give at least 1 epoch")
        self.cem = cem
        self.lam = lam
        self.refresh_every = refresh_every
        self.factor = schedule(lam_schedule)
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))

    @property
    def replayable(self) -> bool:  # type: ignore[override]
        """Not with the running update, which factorises every covariance in every step and waits for the results."""
        return self.cem.update == "epoch"

    @property
    def layout(self) -> int:
        """See `Defense.layout`."""
        return self.cem.mixture.layout

    def before_step(self, progress: float, lr: float) -> None:
        """Set lambda times the factor of its schedule."""
        self.weight.fill_(self.lam * self.factor(progress, lr))

    def penalty(self, batch: Batch) -> Tensor | None:
        """The weighed loss of Eq. 7 for this batch."""
        value: Tensor = self.weight.float() * self.cem(batch.features, batch.labels)
        return value

    def on_epoch(self, epoch: Epoch) -> None:
        """Refresh the mixture from the features of the whole training set."""
        if epoch.index % self.refresh_every == 0:
            self.cem.refresh(*epoch.collect())

    def report(self) -> dict[str, Any]:
        """Information, Eq. 4 and the conditions of section 3.4, as of the last refresh."""
        return {"lam": float(self.weight), **self.cem.diagnostics().as_dict()}
