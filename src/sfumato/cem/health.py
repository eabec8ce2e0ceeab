"""Whether a CEM training is well: section 3.4 of the paper measured, and warnings with a remedy."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato import bounds
from sfumato.mixture import Clusters, Covariance

_SCALE_LIMIT = 4.0
_ONE_CLUSTER = 0.95
_FITS = (0.5, 2.0)  # of `CEM.mixture_fit`; outside something is wrong with the features that the mixture was given
_NOTHING = 0.01  # a competence that leaves the penalty without weight
ENOUGH_PER_CLUSTER = 20
"""Samples per cluster below which variances underestimate the information notably."""
ENOUGH_PER_DIMENSION = 3
"""Samples per cluster and dimension below which full covariances do."""


@dataclass(frozen=True)
class Diagnostics:
    """The state of the mixture after the last refresh.

    Attributes:
        information: bound of Theorem 2 on I(z; z_hat), nats, from the moments of the training features.
        information_per_dimension: the same divided by D.
        own_cluster_posterior: Eq. 4, E_z[P(own cluster | z)], estimated on kept training features with fresh noise.
            1 means that the noisy feature still tells its cluster: full utility.
        mean_gap: min over i != j of |mu_i - mu_j|^2.
        noise_power: Tr Sigma_p = D sigma^2.
        spread: max over i != j of Tr(Sigma_i + Sigma_j).
        gap_over_noise, noise_over_spread: the two ratios that section 3.4 wants to be much larger than 1.
        smallest_cluster, empty_clusters, samples: how many samples the estimates rest on.
        notes: what a reader has to know before quoting these numbers; empty where nothing is wrong.
    """

    information: float
    information_per_dimension: float
    own_cluster_posterior: float
    mean_gap: float
    noise_power: float
    spread: float
    gap_over_noise: float
    noise_over_spread: float
    smallest_cluster: int
    empty_clusters: int
    samples: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity: a ratio over zero becomes None."""
        plain = asdict(self) | {"notes": list(self.notes)}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in plain.items()
        }


def diagnose(mixture: Clusters, noise_variance: float, seed: int) -> Diagnostics:
    """Measure section 3.4 on a mixture, on its kept features; nothing of the size k D^2 is formed."""
    dim, counts = mixture.means.shape[1], mixture.counts
    generator = torch.Generator(device=mixture.kept.device).manual_seed(seed)
    noise = torch.randn(mixture.kept.shape, generator=generator, device=mixture.kept.device, dtype=mixture.kept.dtype)
    density = mixture.log_density(mixture.kept + noise_variance**0.5 * noise)
    posterior = density.softmax(1).gather(1, mixture.kept_clusters[:, None]).mean()
    # Only the traces of the covariances enter, so spherical ones of the same trace serve.
    gap = bounds.separation(mixture.weights, mixture.means, mixture.traces / dim, noise_variance)
    filled = counts[counts > 0]
    smallest, empty = int(filled.min()), int((counts == 0).sum())
    information = float(mixture.information)
    return Diagnostics(
        information=information,
        information_per_dimension=information / dim,
        own_cluster_posterior=float(posterior),
        mean_gap=float(gap.mean_gap),
        noise_power=float(gap.noise_power),
        spread=float(gap.spread),
        gap_over_noise=float(gap.gap_over_noise),
        noise_over_spread=float(gap.noise_over_spread),
        smallest_cluster=smallest,
        empty_clusters=empty,
        samples=int(counts.sum()),
        notes=tuple(_notes(smallest, empty, len(counts), filled, dim, mixture.covariance)),
    )


def _notes(smallest: int, empty: int, clusters: int, filled: Tensor, dim: int, covariance: Covariance) -> list[str]:
    notes = []
    needed = ENOUGH_PER_DIMENSION * dim if covariance == "full" else ENOUGH_PER_CLUSTER
    typical = float(filled.double().median())
    if typical < needed:
        notes.append(
            f"a typical cluster has {typical:.0f} samples, but sample moments in {dim} dimensions underestimate the "
            f"information below about {needed}: read it as a training signal, not as a bound"
        )
    if empty:
        notes.append(f"{empty} of {clusters} clusters are empty; fewer clusters per class would do")
    if smallest == 1:
        notes.append("at least one cluster is a single sample, whose covariance is zero")
    return notes


class Health:
    """Remembers the feature's scale between refreshes and says when a training goes wrong.

    Args:
        needed: nats needed to tell the classes apart, log n.
        what: what is told apart: classes, or clusters where the targets are no classes.
        groups: the k clusters belong to so many classes, k / groups to each; 1 where they belong to none.
        remedy: against a collapse.
    """

    def __init__(
        self,
        needed: float,
        *,
        what: str = "classes",
        groups: int = 1,
        remedy: str = "lower lambda, or give the loss its third argument, cem(z_hat, y, task_loss)",
    ) -> None:
        self.needed = needed
        self.what = what
        self.groups = groups
        self.remedy = remedy
        self.reference: float | None = None
        self.was_informative = False
        self.refreshes = 0
        self.told: set[str] = set()
        self.was_idle = False

    def restart(self) -> None:
        """The features are in other units from now on."""
        self.reference, self.refreshes = None, 0

    def check(self, variances: Tensor, noise_variance: float, counts: Tensor) -> list[str]:
        """Messages of conditions that newly hold: collapse, escape by scale, degenerate clusters.

        Args:
            variances: (D,) variance of each dimension over the whole set.
            noise_variance: sigma^2.
            counts: (k,) samples per cluster.
        """
        self.refreshes += 1
        # The Gaussian with these variances bounds the information of any feature that has them.
        ceiling = 0.5 * float((variances.double() / noise_variance).log1p().sum())
        scale = math.sqrt(float(variances.double().mean()))
        collapsed = ceiling < self.needed
        found: dict[str, str] = {}
        if collapsed and (self.was_informative or self.refreshes > 5):
            found["collapse"] = (
                f"the features have collapsed: they can carry at most {ceiling:.2g} nats through the noise, and "
                f"telling the {self.what} apart takes {self.needed:.2g}; {self.remedy}"
            )
        if self.reference is None or self.refreshes <= 2:
            self.reference = max(scale, self.reference or 0.0)
        elif scale > 1.0 and scale > _SCALE_LIMIT * self.reference:
            found["scale"] = (
                f"the encoder escapes the noise by scale: the features' standard deviation grew from "
                f"{self.reference:.2g} to {scale:.2g}; bound them (a sigmoid at the end of the encoder, or clip_norm)"
            )
        unseen = (counts.view(self.groups, -1).sum(1) == 0).nonzero().flatten().tolist()
        if self.groups > 1 and unseen:
            first = ", ".join(map(str, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
            found["unseen"] = (
                f"class {first} has no samples here, so that nothing is known of its features and they get no pull; "
                "refresh with samples of all classes"
            )
        thin = int((counts < 2).sum())
        if 2 * thin > len(counts):
            found["clusters"] = (
                f"{thin} of {len(counts)} clusters have fewer than two samples; lower clusters_per_class or refresh "
                "with more samples"
            )
        elif not collapsed and self._one_cluster(counts):
            each = len(counts) // self.groups
            found["clusters"] = (
                f"the mixture has degenerated: nearly all samples lie in one of {each} clusters, and outliers in the "
                "others; bound the features (a sigmoid, or clip_norm), or use one cluster"
            )
        self.was_informative = self.was_informative or not collapsed
        return [new for kind, text in found.items() for new in self.tell(kind, text)]

    def check_period(self, fit: float | None, competence: float | None) -> list[str]:
        """The same for the mixture's fit and the penalty's weight since the last time."""
        found = {}
        if fit is not None and not _FITS[0] <= fit <= _FITS[1]:
            found["fit"] = (
                f"the mixture does not fit: it pulls {fit:.2g} times as hard at the features of the training steps as "
                "at those that it was fitted to; collect them inside sfumato.as_in_training(model), augmented as in "
                "training, or build CEM(update='steps')"
            )
        idle = competence is not None and competence < _NOTHING
        if idle and self.was_idle:
            found["idle"] = (
                "the penalty has had no weight for two epochs, because the task loss is not below log(num_classes): "
                "lower the learning rate, or, if the loss is no mean cross-entropy, leave it out (competence=False)"
            )
        self.was_idle = idle
        return [new for kind, text in found.items() for new in self.tell(kind, text)]

    def tell(self, kind: str, text: str) -> list[str]:
        """The text where nothing of this kind has been told yet."""
        new = [] if kind in self.told else [text]
        self.told.add(kind)
        return new

    def _one_cluster(self, counts: Tensor) -> bool:
        """Whether in most classes one cluster has more than 95 % of the samples, of which there are enough for all."""
        per_class = counts.view(self.groups, -1).double()
        enough = per_class.sum(1) >= ENOUGH_PER_CLUSTER * per_class.shape[1]
        if per_class.shape[1] == 1 or not bool(enough.any()):
            return False
        shares = (per_class.amax(1) / per_class.sum(1).clamp_min(1))[enough]
        return float(shares.median()) > _ONE_CLUSTER
