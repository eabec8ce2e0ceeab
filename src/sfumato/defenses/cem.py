"""Conditional entropy maximization as a defence: a thin adapter around `sfumato.CEM`."""

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.hooks import RemovableHandle

from sfumato.cem import CEM, schedule
from sfumato.defenses.base import Batch, Defense, Epoch
from sfumato.errors import ConfigError, FeatureError

LAMBDA = 0.3
"""The default lambda, per dimension; see the ablation for what it costs and gains."""

_UNDEFENDED = "so the model is trained without a defence"
_LOST = (
    f"the penalty of CEM was computed, but no backward pass ran through it, {_UNDEFENDED}: minimise the loss that "
    "contains it",
    f"the gradient of CEM's penalty did not reach the feature, {_UNDEFENDED}: pass the feature as the encoder gave it",
    f"the gradient of CEM's penalty reached the feature, but no parameter before it that the optimizer holds, "
    f"{_UNDEFENDED}: the encoder's layers are not given to it, or frozen; unfreeze some (requires_grad_(True)), or "
    "train without CEM",
)


class CEMDefense(Defense):
    """Adds `lambda x factor(progress, lr) x CEM(z_hat, y)` to the loss and refreshes the mixture between epochs.

    In the first epoch with lambda > 0 it is checked that a parameter of the encoder receives a gradient from the
    penalty (`end_epoch`): a loop that minimises another loss than the one it was given, or an encoder that is frozen
    behind the user's back, would otherwise train undefended and say nothing.

    Args:
        cem: the plug-in.
        lam: lambda of Eq. 8, in the units of the plug-in's scaling.
        lam_schedule: name of the schedule that multiplies lambda (`sfumato.cem.schedules`).
        refresh_every: epochs between two refreshes; a plug-in that follows the steps needs none.
        competence: multiply the penalty by how far the classifier is from chance, see `sfumato.CEM`.
    """

    name: ClassVar[str] = "cem"
    weight: Tensor

    def __init__(
        self, cem: CEM, *, lam: float, lam_schedule: str = "constant", refresh_every: int = 1, competence: bool = True
    ) -> None:
        super().__init__()
        if lam < 0:
            raise ConfigError(f"lambda is {lam}, which would reward leaking; give 0 or more")
        if refresh_every < 1:
            raise ConfigError(f"refresh_every is {refresh_every}; give at least 1 epoch")
        self.cem = cem
        self.lam = lam
        self.refresh_every = refresh_every
        self.competence = competence and cem.num_classes is not None and cem.scaling != "as_published"
        self.factor = schedule(lam_schedule)
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64))
        self._watched: list[RemovableHandle] = []
        self._largest = 0.0  # weight since the last `end_epoch`
        # How far the penalty's gradient has come: 1 into the penalty, 2 to the feature, 3 to a parameter before it.
        self._arrived = 0

    @property
    def replayable(self) -> bool:  # type: ignore[override]
        """Not where moments are carried from step to step, whose factors are renewed and waited for in between."""
        return self.cem.update == "epoch"

    @property
    def layout(self) -> int:
        """See `Defense.layout`."""
        return self.cem.mixture.layout

    def before_step(self, progress: float, lr: float) -> None:
        """Set lambda times the factor of its schedule."""
        weight = self.lam * self.factor(progress, lr)
        self._largest = max(self._largest, weight)
        self.weight.fill_(weight)

    def penalty(self, batch: Batch) -> Tensor | None:
        """The weighed loss of Eq. 7 for this batch."""
        task_loss = cross_entropy(batch.logits.detach().float(), batch.labels) if self.competence else None
        return self.weigh(batch.features, batch.labels, task_loss)

    def weigh(self, z_hat: Tensor, labels: Tensor | None, task_loss: Tensor | None) -> Tensor:
        """The weighed loss of features with their graph; without `competence` the task loss is not looked at."""
        value: Tensor = self.weight.float() * self.cem(z_hat, labels, task_loss if self.competence else None)
        if self._watched and self._arrived < 3 and value.requires_grad and z_hat.requires_grad:
            self._arrived = 0  # in every step anew: a parameter behind the feature is first in the next one
            value.register_hook(lambda _: self._come(1))
            z_hat.register_hook(lambda _: self._come(2))
        return value

    def watch(self, parameters: Iterable[nn.Parameter]) -> None:
        """Look out for the penalty's gradient at these parameters, those before the feature among them, until it came.

        Parameters behind the feature do not disturb: autograd is done with them before it turns to the feature.
        """
        while self._watched:
            self._watched.pop().remove()
        if self._arrived < 3:
            self._watched = [
                parameter.register_post_accumulate_grad_hook(lambda _: self._come(3))
                for parameter in parameters
                if parameter.requires_grad
            ]

    def _come(self, step: int) -> None:
        if self._arrived == step - 1:
            self._arrived = step

    def end_epoch(self) -> None:
        """Check that the penalty, if it had a weight, reached the encoder.

        Raises:
            FeatureError: it did not.
        """
        if self._arrived == 3:
            self.watch(())
        elif self._largest > 0 and self._watched:
            raise FeatureError(_LOST[self._arrived])
        self._largest = 0.0

    def on_epoch(self, epoch: Epoch) -> None:
        """Refresh the mixture from the features that the steps will see, unless it follows them anyway."""
        self.watch(epoch.model.parameters())
        self.cem.follow(epoch.model.channel.noise)
        if self.cem.update == "steps":
            self.cem.begin_period()
        elif epoch.index % self.refresh_every == 0:
            self.cem.refresh(*epoch.collect())

    def report(self) -> dict[str, Any]:
        """Weight, fit and competence over the epoch; information, Eq. 4 and the conditions of section 3.4."""
        line = {"lam": float(self.weight), "fit": self.cem.mixture_fit, "competence": self.cem.competence}
        return line | (self.cem.diagnostics().as_dict() if self.cem.mixture.refreshes else {"information": None})


def build_cem(
    lam: float = LAMBDA,
    schedule: Literal["ramp", "lr_coupled", "constant"] = "constant",
    covariance: Literal["full", "tied", "diagonal", "spherical"] | None = None,
    clusters: int | None = None,
    scaling: Literal["per_dimension", "literal", "as_published"] = "per_dimension",
    update: Literal["epoch", "running", "steps"] | None = None,
    fit: Literal["kmeans", "em"] = "kmeans",
    refresh: int = 1,
    *,
    num_classes: int,
    noise_std: float,
    seed: int = 0,
) -> CEMDefense:
    """CEM as a training has it: `cem(lam, schedule=, ...)` of the notation, with what only the training knows.

    Args:
        lam: lambda of Eq. 8, in the units of the scaling.
        schedule: of lambda (`sfumato.cem.schedules`).
        covariance: form of the covariances; `tied` if `update` is `steps`, else `full`, where none is given.
        clusters: mixture components per class; 1 if `update` is `steps`, else 3, where none is given.
        scaling: units of the loss.
        update: `steps` if the scaling is `per_dimension`, else `epoch`, where none is given.
        fit: `kmeans` inside each class, or `em` over all classes as Algorithm 1 prints it.
        refresh: epochs between two fits of the mixture.
        num_classes: of the classifier.
        noise_std: of the channel.
        seed: of the partition.

    Raises:
        ConfigError: as `sfumato.CEM` and `CEMDefense`.
    """
    cem = CEM(
        num_classes=num_classes,
        noise_std=noise_std,
        clusters_per_class=clusters,
        covariance=covariance,
        scaling=scaling,
        update=update or ("steps" if scaling == "per_dimension" else "epoch"),
        fit=fit,
        seed=seed,
    )
    return CEMDefense(cem, lam=lam, lam_schedule=schedule, refresh_every=refresh, competence=fit == "kmeans")
