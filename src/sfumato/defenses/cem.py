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
    last_factor: Tensor

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
        self.register_buffer("last_factor", torch.zeros((), dtype=torch.float64))

    def penalty(self, batch: Batch) -> Tensor | None:
        """The weighed loss of Eq. 7 for this batch."""
        factor = self.factor(batch.progress, batch.lr)
        self.last_factor.fill_(factor)
        return self.lam * factor * self.cem(batch.features, batch.labels)

    def on_epoch(self, epoch: Epoch) -> None:
        """Refresh the mixture from the features of the whole training set."""
        if epoch.index % self.refresh_every == 0:
            self.cem.refresh(*epoch.collect())

    def report(self) -> dict[str, Any]:
        """Information, Eq. 4 and the conditions of section 3.4, as of the last refresh."""
        return {"lam": self.lam * float(self.last_factor), **self.cem.diagnostics().as_dict()}
