"""What every integration does: refresh the mixture now and then, and weigh the loss of each batch by a schedule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.cem import CEM
from sfumato.defenses import CEMDefense
from sfumato.defenses.cem import LAMBDA
from sfumato.errors import ConfigError
from sfumato.integrations.tap import Tap, labels_of
from sfumato.modes import ENOUGH_FOR_STATISTICS, exact_batch_norm, has_batch_norm

__all__ = ["Protection"]


class Protection:
    """CEM on the features that a tap reads.

    Args:
        cem: the plug-in.
        lam: lambda of Eq. 8, in the units of the plug-in's scaling.
        lam_schedule: name of the schedule that multiplies lambda.
        features: see `Tap`.
        refresh_every: epochs between two refreshes, for a plug-in that does not follow the steps.
        competence: take the loss of the step for a mean cross-entropy and let it weigh the penalty, see `sfumato.CEM`;
            without classes it does not.
        labels: batch -> labels; a batch's second part or its entry `labels` by default.

    Raises:
        ConfigError: a setting without meaning.
    """

    def __init__(
        self,
        cem: CEM,
        *,
        lam: float = LAMBDA,
        lam_schedule: str = "constant",
        features: str | nn.Module | None = None,
        refresh_every: int = 1,
        competence: bool = True,
        labels: Callable[[Any], Any] | None = None,
    ) -> None:
        if not isinstance(cem, CEM):
            raise ConfigError(f"cem is a {type(cem).__name__}; give a sfumato.CEM(...)")
        self.defense = CEMDefense(
            cem, lam=lam, lam_schedule=lam_schedule, refresh_every=refresh_every, competence=competence
        )
        self.features = features
        self.labels = labels or labels_of
        self.tap: Tap | None = None

    @property
    def cem(self) -> CEM:
        """The plug-in."""
        return self.defense.cem

    def attach(self, network: nn.Module) -> Tap:
        """Listen to a network, once."""
        if self.tap is None:
            self.tap = Tap(network, self.features)
        return self.tap

    def detach(self) -> None:
        """Leave the network as it was."""
        if self.tap is not None:
            self.tap.close()
            self.tap = None

    def begin_epoch(self, epoch: int, network: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> None:
        """Refresh the mixture with the features of all batches, if it is due and does not follow the steps."""
        cem = self.cem
        if cem.update == "steps":
            self.defense.to(next(network.parameters()).device)
            cem.begin_period()
        elif epoch % self.defense.refresh_every == 0 or not cem.mixture.refreshes:
            features, labels = self.attach(network).collect(network, batches, run, self.labels)
            self.defense.to(features.device)
            cem.refresh(features, labels)

    def end_epoch(self, network: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> None:
        """Make the statistics of batch norm exact for the weights of now, before anybody measures."""
        if not has_batch_norm(network):
            return
        seen = 0
        with exact_batch_norm(network), torch.random.fork_rng(devices=[]):
            for batch in batches:
                run(batch)
                seen += len(self.attach(network).take())
                if seen >= ENOUGH_FOR_STATISTICS:
                    break

    def figures(self) -> dict[str, float]:
        """What a log shows of the epoch."""
        names = ("information", "information_per_dimension", "lam", "fit", "competence")
        report = self.defense.report()
        return {f"cem_{name}": report[name] for name in names if report.get(name) is not None}

    def penalty(self, labels: Tensor | None, progress: float, lr: float, loss: Tensor) -> Tensor:
        """lambda x factor(progress, lr) x CEM of the last forward, a scalar; `loss` is that of the step."""
        assert self.tap is not None
        z_hat = self.tap.take()
        self.defense.before_step(progress, lr)
        task_loss = loss if self.defense.competence else None
        value: Tensor = self.defense.weight.float() * self.cem(z_hat, labels, task_loss)
        return value
