"""Conditional entropy maximization, the plug-in of the paper: `loss = task_loss + lam * cem(z_hat, y, task_loss)`."""

import math
import warnings
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from sfumato.cem.gradient import WithGradient, competence_factor
from sfumato.cem.health import Diagnostics, Health, diagnose
from sfumato.cem.noise_units import NoiseUnits
from sfumato.cem.published import published_loss
from sfumato.cem.settings import (
    DIVERGED,
    Fit,
    Scaling,
    Update,
    check_finite,
    check_graph,
    check_labels,
    check_settings,
)
from sfumato.distributed import Ranks, whole
from sfumato.errors import ConfigError, FeatureError, NotFittedError, SfumatoWarning
from sfumato.mixture import Clusters, Covariance
from sfumato.noise import Noise

__all__ = ["CEM"]

_JUDGED = 5  # batches before the fit is judged


class CEM(NoiseUnits):
    r"""The bound of Theorem 2 on I(z; z_hat) as a loss.

    The features z_hat (bounded, clipped, *before* noise; flattened row-major to D dimensions) are partitioned into
    k = num_classes x clusters_per_class clusters by k-means inside each class. With their exact moments and the noise
    N(0, sigma^2 I) on the wire,

        I(z; z_hat) <= L_C = sum_j pi_j ( -log pi_j + 1/2 log |Sigma_j + sigma^2 I| / |sigma^2 I| )   (Eq. 7, nats)

    holds for this, or any, hard partition. Its gradient with respect to a feature of cluster j is
    `B_j^-1 (z_i - mu_j) / N` with `B_j = Sigma_j + sigma^2 I`; a step needs one D x D product per sample, no
    determinant, and nothing of it depends on N.

    Scalings, with n the batch size:

    - `per_dimension` (default): value L_C / D; gradient `B_j^-1 (z_i - mu_j) / (n D)`, the unbiased mini-batch
      gradient of that value.
    - `literal`: Eq. 5-7 as printed; value L_C; gradient `B_j^-1 (z_i - mu_j) / N`, which is n / N times the unbiased
      gradient of L_C. To change from one to the other with the same effect use `equivalent_weight`.
    - `as_published`: what the authors' released code minimises, see `CEM.as_published`.

    Updates:

    - `epoch` (default): moments stay as they are between two refreshes.
    - `running`: in training mode Eq. 5 and Eq. 6 are carried over the batches: weights and covariances move with
      every batch, the batch covariance is centred at the stored mu_j, pi_j in Eq. 6 is the one just updated, a
      cluster without samples in the batch keeps its covariance, and the carried state is detached.
    - `steps`: no refresh is needed. The first batches give the first moments (no pull until there are enough of them),
      and in training mode all moments, means too, are a moving average over the features of the steps themselves
      (`Clusters.follow`). The mixture is then that of the features which the steps see, by construction. It is what
      `sfumato train` uses.

    **The mixture has to fit.** In a feature of the mixture the mean of `(z - mu_j)^T B_j^-1 (z - mu_j)` is
    `sum_j pi_j Tr(B_j^-1 Sigma_j)`. `mixture_fit` is the observed mean over the expected one, over the training batches
    since the last refresh: 1 where the mixture is that of the features which the steps see, 80 where `refresh` was
    given features in evaluation mode before batch norm had any statistics. Such a mixture pulls 80 times too hard, and
    the training collapses; outside 1/2 to 2 a warning says so. With `epoch`, collect the features inside
    `sfumato.as_in_training(model)`.

    **Competence.** The bound is scale-free, so its pull never weakens, and a classifier that knows nothing yet loses
    against it. Given the task loss L (a cross-entropy in nats), the penalty is multiplied by

        c = min(1, max(0, 2 (1 - L / log n)))

    with n the number of classes, without a gradient: 0 at chance, 1 where the loss is at most half of log n. A training
    at chance then has no penalty, so chance is no place where it can stay.

    Fits:

    - `kmeans` (default): the hard partition above, of clean features.
    - `em`: the paper's Algorithm 1: one Gaussian mixture of k components for all classes, fitted by EM to
      z = z_hat + eps, whose noise is drawn here from torch's global generator. Labels are not looked at; a sample
      belongs to the nearest mean. The value is then no bound, which takes the moments of a hard partition.

    Full covariances of clusters with far fewer samples than dimensions are kept in the exact dual form, n_j x n_j.

    In data-parallel training every rank passes the features of its own samples and all get the mixture of all. The
    average of the ranks' gradients is that of one process with the whole batch, if the ranks have equally many samples.

    Args:
        num_classes: number of classes n; None for targets that are no classes (numbers, several labels per sample): one
            mixture of `clusters` components for the whole set, and labels are not looked at.
        clusters_per_class: k / n; 3 as in the paper if not given, and 1 with `steps`.
        clusters: k, without classes.
        noise_std: sigma > 0, the standard deviation of the noise on the wire; or a `sfumato.Noise`, or what
            `Noise.of` makes one of. Noise with a shape: see `follow`.
        covariance: `full` (the tightest bound, and the default), `tied` (one matrix for all clusters, the default with
            `steps`: it needs few samples and one inverse), `diagonal` or `spherical`.
        scaling: see above.
        update: see above.
        fit: see above.
        class_conditional: False fits all k clusters to the whole set without looking at labels.
        seed: of the first k-means++ start; later refreshes start from the last centres.
        distributed: whose samples make the mixture: True (default) those of all ranks where torch.distributed is
            initialised, a process group those of its ranks, False those of this process. All ranks have to call
            `refresh` together; with `running` or `literal`, the loss too.

    Attributes:
        weights: (k,), pi_j.
        means: (k, D), mu_j.
        covariances: (k, D, D), (k, D) or (k,), Sigma_j.
        information: L_C of the last refresh (with `running` and `steps`: of the carried moments), nats;
            in-sample, hence a training signal and no bound, see `sfumato.held_out_information`.
        mixture_fit: observed over expected pull, see above; None before a training batch.

    Raises:
        ConfigError: a setting without meaning, such as noise_std = 0 (the bound would be infinite).

    >>> import torch, sfumato
    >>> z_hat = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    >>> cem = sfumato.CEM(num_classes=2, clusters_per_class=1, noise_std=1.0)
    >>> cem.refresh(z_hat, torch.arange(400) % 2)
    >>> print(f"{cem.information:.1f} nats")  # log 2 + 2/2 log(1 + 1)
    1.4 nats
    """

    _pulls: Tensor

    def __init__(
        self,
        *,
        num_classes: int | None,
        noise_std: float | Tensor | Noise,
        clusters_per_class: int | None = None,
        clusters: int | None = None,
        covariance: Covariance | None = None,
        scaling: Scaling = "per_dimension",
        update: Update = "epoch",
        fit: Fit = "kmeans",
        class_conditional: bool = True,
        seed: int = 0,
        distributed: "bool | dist.ProcessGroup" = True,
    ) -> None:
        super().__init__()
        noise = Noise.of(noise_std)
        own = check_settings(
            num_classes,
            clusters_per_class,
            clusters,
            noise_std=noise.rms,
            covariance=covariance,
            scaling=scaling,
            update=update,
            fit=fit,
            class_conditional=class_conditional,
        )
        self.num_classes = num_classes
        self.clusters_per_class = own.clusters_per_class
        self.noise, self.noise_std = Noise(noise.rms), noise.rms
        self.covariance: Covariance = own.covariance
        self.scaling: Scaling = scaling
        self.update: Update = update
        self.fit: Fit = fit
        self.class_conditional = own.class_conditional
        self.seed = seed
        self.distributed = distributed
        self.mixture = Clusters(
            own.groups,
            own.clusters_per_class,
            own.covariance,
            self.variance,
            class_conditional=own.class_conditional,
            dual=update == "epoch",
            seed=seed,
            em=fit == "em",
        )
        self.register_buffer("_pulls", torch.zeros(4, dtype=torch.float64))
        self._health = Health(
            math.log(self.mixture.size if num_classes is None else num_classes),
            what="clusters" if num_classes is None else "classes",
            groups=own.groups if own.class_conditional else 1,
        )
        self.follow(noise)

    @classmethod
    def as_published(cls, *, num_classes: int, noise_std: float, clusters_per_class: int = 5, seed: int = 0) -> Self:
        """The loss of the authors' released code, see `published_loss`; pair it with the `lr_coupled` schedule."""
        return cls(
            num_classes=num_classes,
            noise_std=noise_std,
            clusters_per_class=clusters_per_class,
            covariance="spherical",
            scaling="as_published",
            seed=seed,
        )

    @property
    def weights(self) -> Tensor:
        """(k,), pi_j."""
        return self._fitted().weights.clone()

    @property
    def means(self) -> Tensor:
        """(k, D), mu_j."""
        return self._fitted().means.clone()

    @property
    def covariances(self) -> Tensor:
        """Sigma_j: (k, D, D) full, (k, D) diagonal, (k,) spherical."""
        return self._fitted().covariances.clone()

    @property
    def information(self) -> float:
        """The bound of Theorem 2 on I(z; z_hat) for the current moments, in nats."""
        return float(self._fitted().information)

    @property
    def mixture_fit(self) -> float | None:
        """Observed over expected pull of the training batches since the last refresh; 1 where the mixture fits."""
        observed, expected, _, batches = self._pulls.tolist()
        return observed / expected if batches and expected > 0 else None

    @property
    def competence(self) -> float | None:
        """The mean competence factor of the same batches."""
        _, _, competence, batches = self._pulls.tolist()
        return competence / batches if batches else None

    def begin_period(self) -> None:
        """Start `mixture_fit` and `competence` anew, and warn, once each, of what went wrong since the last time.

        `refresh` does it; with `steps` call it once per epoch, as the trainer, `Monitor` and the integrations do. Where
        the first epoch had fewer samples than the first moments would wait for, they are taken from those.
        """
        if self._pulls[-1] >= _JUDGED:
            fit = self.mixture_fit if self.fit == "kmeans" else None
            for new in self._health.check_period(fit, self.competence):
                warnings.warn(new, SfumatoWarning, stacklevel=3)
        self._pulls.zero_()
        if self.update != "steps":
            return
        mixture = self.mixture
        if mixture.refreshes:  # `refresh` looks at the whole set, this at the latest features
            for new in self._health.check(mixture.kept.var(0, unbiased=False), self.variance, mixture.counts):
                warnings.warn(new, SfumatoWarning, stacklevel=3)
        else:
            mixture.begin_with_few()

    @torch.no_grad()
    def refresh(self, features: Tensor, labels: Tensor | None = None, *, noisy: bool = False) -> None:
        """Fit the mixture to the features of the whole training set; call it once per epoch (with `steps`: never).

        The features have to be those that the steps compute: `sfumato.as_in_training`. The first call starts from
        k-means++, later ones from the last centres with two Lloyd iterations. In data-parallel training each rank
        passes its own part of the set and fits the mixture of all, which takes memory for all features; see
        `distributed`.

        Args:
            features: z_hat of every training sample, (N, ...), without noise.
            labels: (N,) class of each sample, of an integer type; not looked at, and may be left out, without classes
                or with `class_conditional=False` or `fit="em"`.
            noisy: the features carry noise already (the paper's Algorithm 1): sigma^2 is subtracted from every
                variance, floored at 0. Noise-free features estimate better.

        Raises:
            FeatureError: NaN or infinite features, no samples, labels missing or out of range, or another number of
                dimensions than at the last refresh. A mistake on one rank is raised on all.
            RankLost: another rank has ended.
        """
        ranks = Ranks.current(self.distributed)
        with ranks.together():
            flat = self._flatten(features).float()
            self.begin_period()
            if flat.shape[1] == 0 or (ranks.alone and len(flat) == 0):
                raise FeatureError("refresh got no features; pass z_hat of the whole training set")
            if len(flat):
                low, high = flat.aminmax()
                if not (torch.isfinite(low) and torch.isfinite(high)):
                    raise FeatureError(DIVERGED)
            labels = check_labels(labels, flat, wanted=self.class_conditional)
        ranks.check_same({"number of dimensions": flat.shape[1]}, "give all ranks the same model")
        flat, labels = ranks.gather(flat), None if labels is None else ranks.gather(labels)
        with torch.autocast(flat.device.type, enabled=False):
            self.mixture.refresh(flat, labels, noisy=noisy)
        for message in self._health.check(flat.var(0, unbiased=False), self.variance, self.mixture.counts):
            warnings.warn(message, SfumatoWarning, stacklevel=2)

    def forward(self, z_hat: Tensor, labels: Tensor | None = None, task_loss: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar to be weighed: `loss = task_loss + lam * cem(z_hat, y, task_loss)`.

        Its derivatives, the second one included, are those of a frozen mixture.

        Args:
            z_hat: (n, ...) features without noise, with their graph.
            labels: (n,) classes; not looked at, and may be left out, without classes or with `class_conditional=False`.
            task_loss: the batch's mean cross-entropy, for the competence factor; 1 where it is not given.

        Raises:
            NotFittedError: called before the first `refresh` (but with `steps`).
            FeatureError: features without a graph in training mode, another number of dimensions than at the last
                refresh, labels missing or out of range, or (on the CPU) NaN or infinite features.
        """
        follows = self.update == "steps"
        mixture = self.mixture if follows else self._fitted()
        flat = self._flatten(z_hat)
        labels = check_labels(labels, flat, wanted=self.class_conditional)
        learns = self.training and torch.is_grad_enabled()
        ranks = Ranks.current(self.distributed)
        if len(flat) == 0 and ranks.alone:
            return flat.sum() * 0.0
        with torch.autocast(flat.device.type, enabled=False):
            rows = flat.detach().to(mixture.means.dtype)
            if follows and not mixture.refreshes:
                if not learns:
                    raise NotFittedError(
                        "this CEM has seen no training batch yet; train first, or call cem.refresh(...)"
                    )
                check_finite(rows)
                check_graph(flat)
                with torch.no_grad():
                    mixture.begin(rows, labels, ranks)
                return flat.sum() * 0.0
            if self.fit == "em":
                rows = rows + self.noise_std * torch.randn_like(rows)
            assignment = mixture.assign(rows, labels)
            if self.scaling == "as_published":
                clusters = (mixture.centres, mixture.counts, mixture.spread, self.variance, mixture.num_classes)
                return published_loss(whole(flat.to(rows.dtype), ranks), ranks.gather(assignment), *clusters)
            if self.update == "running" and self.training:
                mixture.carry(rows, assignment, ranks)
            product, centred = mixture.product(assignment), rows - mixture.means[assignment]
            direction, value = product(centred), mixture.information
            check_finite(direction)
            if learns:
                check_graph(flat)
            competence = competence_factor(task_loss, self.num_classes, ranks)
            if learns:
                with torch.no_grad():
                    pull, n = ranks.sum((centred * direction).double().sum()), ranks.total(len(rows))
                    one = torch.ones_like(pull)
                    # Rows of Algorithm 1 carry the noise, so that theirs is Tr(B^-1 B).
                    expected = one * rows.shape[1] if self.fit == "em" else mixture.pull
                    self._pulls += torch.stack([pull, expected * n, competence * one, one])
                    if follows:
                        mixture.follow(rows, assignment, pull, ranks)
            dim = rows.shape[1]
            if self.scaling == "literal":
                # Samples of the batch of all ranks over those of this one make a sum an average of ranks'.
                share = 1.0 if ranks.alone else ranks.total(len(rows)) / max(1, len(rows))
                weight, unit = competence * (share / mixture.samples), 1
            else:
                weight, unit = competence / (max(1, len(rows)) * dim), dim
            loss: Tensor = WithGradient.apply(flat, direction, competence * value / unit, weight, product)
            return loss

    def equivalent_weight(self, weight: float, batch_size: int, to: Scaling) -> float:
        """The lambda that gives, under the scaling `to`, the gradients that `weight` gives under this one.

        `lambda_per_dimension = lambda_literal * D * n / N`: at D = 512, n = 128, N = 50,000 the paper's 16 is 20.97
        per dimension, or 0.041 per nat.
        """
        mixture = self._fitted()
        if "as_published" in (self.scaling, to):
            raise ConfigError("the published loss is another function; no weight makes it equal to the bound's")
        factor = mixture.means.shape[1] * batch_size / mixture.samples
        if self.scaling == to:
            return weight
        return weight * factor if to == "per_dimension" else weight / factor

    def diagnostics(self) -> Diagnostics:
        """Eq. 4's posterior, the conditions of section 3.4, cluster sizes and notes on what the numbers are worth."""
        return diagnose(self._fitted(), self.variance, self.seed)

    def _fitted(self) -> Clusters:
        if not self.mixture.refreshes:
            raise NotFittedError(
                "this CEM has no mixture yet; call cem.refresh(features, labels) once before the first batch"
            )
        return self.mixture

    def extra_repr(self) -> str:
        """Settings, as `repr` shows them."""
        return (
            f"num_classes={self.num_classes}, "
            f"{'clusters' if self.num_classes is None else 'clusters_per_class'}={self.clusters_per_class}, "
            f"noise_std={self.noise_std}, covariance={self.covariance!r}, scaling={self.scaling!r}, "
            f"update={self.update!r}"
        )
