"""What every integration does: refresh the mixture now and then, and weigh the loss of each batch by a schedule."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from sfumato.cem import CEM
from sfumato.defenses import CEMDefense
from sfumato.errors import ConfigError
from sfumato.integrations.tap import Tap, labels_of

__all__ = ["Protection"]


class Protection:
    """CEM on the features that a tap reads.

    Args:
        cem: the plug-in.
        lam: lambda of Eq. 8, in the units of the plug-in's scaling.
        lam_schedule: name of the schedule that multiplies lambda.
        features: see `Tap`.
        refresh_every: epochs between two refreshes.
        labels: batch -> labels; a batch's second part or its entry `labels` by default.

    Raises:
        ConfigError: a setting without meaning.
    """

    def __init__(
        self,
        cem: CEM,
        *,
        lam: float = 0.3,
        lam_schedule: str = "ramp",
        features: str | nn.Module | None = None,
        refresh_every: int = 1,
        labels: Callable[[Any], Any] | None = None,
    ) -> None:
        if not isinstance(cem, CEM):
            raise ConfigError(f"cem is a {type(cem).__name__}; give a sfumato.CEM(...)")
        self.defense = CEMDefense(cem, lam=lam, lam_schedule=lam_schedule, refresh_every=refresh_every)
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

    def refresh(self, network: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any]) -> None:
        """Fit the mixture to the features of all batches, in evaluation mode."""
        features, labels = self.attach(network).collect(network, batches, run, self.labels)
        self.defense.to(features.device)
        self.cem.refresh(features, labels)

    def due(self, epoch: int) -> bool:
        """Whether the mixture is to be refreshed before this epoch."""
        return epoch % self.defense.refresh_every == 0 or not self.cem.mixture.refreshes

    def penalty(self, labels: Tensor | None, progress: float, lr: float) -> Tensor:
        """lambda x factor(progress, lr) x CEM of the last forward, a scalar."""
        assert self.tap is not None
        z_hat = self.tap.take()
        self.defense.before_step(progress, lr)
        value: Tensor = self.defense.weight.float() * self.cem(z_hat, labels)
        return value
