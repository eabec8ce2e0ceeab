"""Conditional entropy maximization (CEM), the plug-in of the paper, for any training loop.

    cem = sfumato.CEM(num_classes=10, noise_std=0.025)
    for epoch in range(epochs):
        cem.refresh(features, labels)              # z_hat of the whole training set
        for x, y in loader:
            z_hat = encoder(x)
            loss = task_loss + lam * cem(z_hat, y)

Nothing here depends on the rest of the library but the mixture and the bounds.
"""

import math
import warnings
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError, ConfigError, FeatureError, NotFittedError, SfumatoWarning
from sfumato.health import Diagnostics, Health, diagnose
from sfumato.mixture import (
    Covariance,
    Partition,
    batch_covariances,
    check_covariance,
    moments,
    subtract_noise,
    update_covariances,
    update_weights,
)
from sfumato.mixture.precision import (
    Precision,
    dense_precision,
    diagonal_precision,
    low_rank_precision,
)

__all__ = ["CEM"]

Scaling = Literal["per_dimension", "literal", "as_published"]
Update = Literal["epoch", "running"]

_FIRST_ITERATIONS = 20
_WARM_ITERATIONS = 2
_KEPT_FOR_DIAGNOSTICS = 512


class CEM(nn.Module):
    r"""The bound of Theorem 2 on I(z; z_hat) as a loss.

    The features z_hat (bounded, clipped, *before* noise; flattened row-major to D dimensions) are partitioned into
    k = num_classes x clusters_per_class clusters by k-means, a sample belonging to the nearest centre of its own
    class. With the exact moments (pi_j, mu_j, Sigma_j) of these clusters and noise N(0, sigma^2 I) on the wire,

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

    Full covariances of clusters that have fewer samples than dimensions are kept in the dual form: n_j x n_j matrices
    instead of D x D ones, exact, no shrinkage (sigma^2 I already makes every B_j regular).

    Args:
        num_classes: number of classes n.
        clusters_per_class: k / n; the paper has k = 3 n.
        noise_std: sigma, the standard deviation of the noise on the wire; must be positive.
        covariance: `full` (default, the tightest bound), `diagonal` or `spherical`.
        scaling: see above.
        update: see above.
        class_conditional: False fits all k clusters to the whole set without looking at labels.
        seed: of the first k-means++ start; later refreshes start from the last centres.

    Attributes:
        weights: (k,), pi_j.
        means: (k, D), mu_j.
        covariances: (k, D, D), (k, D) or (k,), Sigma_j.
        information: L_C of the features of the last refresh (with `running`: of the running moments), nats.

    Raises:
        ConfigError: a setting without meaning, such as noise_std = 0 (the bound would be infinite).
    """

    weights: Tensor
    means: Tensor
    centres: Tensor
    counts: Tensor
    spread: Tensor
    kept: Tensor
    kept_clusters: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        noise_std: float,
        clusters_per_class: int = 3,
        covariance: Covariance = "full",
        scaling: Scaling = "per_dimension",
        update: Update = "epoch",
        class_conditional: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_covariance(covariance)
        _check_choice("scaling", scaling, ("per_dimension", "literal", "as_published"))
        _check_choice("update", update, ("epoch", "running"))
        if not (math.isfinite(noise_std) and noise_std > 0):
            raise ConfigError(
                f"noise_std is {noise_std}, but without noise the information in a feature is infinite and CEM has "
                "nothing to minimise; give a positive standard deviation such as 0.025"
            )
        if num_classes < 1 or clusters_per_class < 1:
            raise ConfigError(
                f"num_classes ({num_classes}) and clusters_per_class ({clusters_per_class}) must be at least 1"
            )
        if scaling == "as_published" and (covariance != "spherical" or update != "epoch" or not class_conditional):
            raise ConfigError(
                "scaling='as_published' is defined for one variance per cluster inside each class; "
                "build it with CEM.as_published(...)"
            )
        self.num_classes = num_classes
        self.clusters_per_class = clusters_per_class
        self.noise_std = float(noise_std)
        self.covariance: Covariance = covariance
        self.scaling: Scaling = scaling
        self.update: Update = update
        self.class_conditional = class_conditional
        self.seed = seed
        self.refreshes = 0
        self.samples = 0
        self._precision: Precision | None = None
        self._information: Tensor | None = None
        self._health = Health(math.log(num_classes))
        for name in _BUFFERS:
            self.register_buffer(name, torch.empty(0))

    @classmethod
    def as_published(cls, *, num_classes: int, noise_std: float, clusters_per_class: int = 5, seed: int = 0) -> Self:
        """The loss of the authors' released code, for comparison; it is not the equation of the paper.

        Spherical variances v_j; with n_j samples of the batch in cluster j of class c, w_j its share of the class and
        u_j the mean squared distance per dimension of these samples to the cluster's centre,

            mean over classes in the batch of sum_j w_j relu( log(v'_j + 0.01) - log(0.125 sigma^2 + 0.01) ),
            v'_j = f u_j + (1 - f) v_j,   f = min(10 n_j / (w_j N_class), 0.99),

        over clusters present in the batch; v_j is not carried over. Equation 5, the term -log pi_j, the factor 1/2
        and the determinant are dropped. Pair it with the `lr_coupled` schedule and five clusters per class.
        """
        return cls(
            num_classes=num_classes,
            noise_std=noise_std,
            clusters_per_class=clusters_per_class,
            covariance="spherical",
            scaling="as_published",
            seed=seed,
        )

    @property
    def clusters(self) -> int:
        """k, the number of clusters."""
        return self.num_classes * self.clusters_per_class

    @property
    def variance(self) -> float:
        """sigma^2."""
        return self.noise_std**2

    @property
    def covariances(self) -> Tensor:
        """Sigma_j: (k, D, D) full, (k, D) diagonal, (k,) spherical. Full ones in dual form are multiplied out."""
        self._require_fitted()
        if self.covariance == "full" and self._dual:
            return self.spread.transpose(1, 2) @ self.spread
        return self.spread

    @property
    def information(self) -> float:
        """The bound of Theorem 2 on I(z; z_hat) for the current moments, in nats."""
        self._require_fitted()
        return float(self._value())

    @torch.no_grad()
    def refresh(self, features: Tensor, labels: Tensor | None = None, *, noisy: bool = False) -> None:
        """Fit the mixture to the features of the whole training set; call it once per epoch.

        The first call starts from k-means++, later ones from the last centres with two Lloyd iterations.

        Args:
            features: z_hat of every training sample, (N, ...), without noise.
            labels: (N,) class of each sample; may be left out with `class_conditional=False`.
            noisy: the features carry noise already (the paper's Algorithm 1): sigma^2 is subtracted from every
                variance, floored at 0. Noise-free features estimate better.

        Raises:
            FeatureError: NaN or infinite features, no samples, labels missing or out of range, or another number of
                dimensions than at the last refresh.
        """
        flat = self._flatten(features).float()
        if len(flat) == 0:
            raise FeatureError("refresh got no features; pass z_hat of the whole training set")
        low, high = flat.aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise FeatureError(
                "the features contain NaN or infinity; the training has diverged: lower the learning rate or lambda"
            )
        labels = self._check_labels(labels, len(flat))
        generator = torch.Generator(device=flat.device).manual_seed(self.seed)
        partition = Partition.fit(
            flat,
            labels,
            num_classes=self.num_classes,
            clusters_per_class=self.clusters_per_class,
            previous=self._partition if self.refreshes else None,
            iterations=_WARM_ITERATIONS if self.refreshes else _FIRST_ITERATIONS,
            generator=generator,
        )
        assignment = partition.assign(flat, labels)
        self.centres = partition.centres
        self.counts = torch.bincount(assignment, minlength=self.clusters)
        self.weights = self.counts.to(flat.dtype) / len(flat)
        self.samples = len(flat)
        self.means, self.spread = self._moments(flat, assignment, noisy)
        keep = torch.linspace(0, len(flat) - 1, min(len(flat), _KEPT_FOR_DIAGNOSTICS), device=flat.device).long()
        self.kept, self.kept_clusters = flat[keep].clone(), assignment[keep]
        self.refreshes += 1
        self._prepare()
        for message in self._health.check(flat.var(0, unbiased=False), self.variance, self.counts):
            warnings.warn(message, SfumatoWarning, stacklevel=2)

    def forward(self, z_hat: Tensor, labels: Tensor | None = None) -> Tensor:
        """The loss of a batch, a scalar to be weighed: `loss = task_loss + lam * cem(z_hat, y)`.

        Args:
            z_hat: (n, ...) features without noise, with their graph.
            labels: (n,) classes; may be left out with `class_conditional=False`.

        Raises:
            NotFittedError: called before the first `refresh`.
            FeatureError: another number of dimensions than at the last refresh, or labels missing or out of range.
        """
        self._require_fitted()
        flat = self._flatten(z_hat)
        labels = self._check_labels(labels, len(flat))
        rows = flat.detach().to(self.means.dtype)
        if len(rows) == 0:
            return flat.sum() * 0.0
        assignment = self._partition.assign(rows, labels)
        if self.scaling == "as_published":
            return self._as_published(flat.to(self.means.dtype), assignment)
        if self.update == "running" and self.training:
            self._carry(rows, assignment)
        assert self._precision is not None
        direction = self._precision.apply(rows - self.means[assignment], assignment)
        value = self._value()
        if self.scaling == "literal":
            return _with_gradient(flat, direction / self.samples, value)
        dim = rows.shape[1]
        return _with_gradient(flat, direction / (len(rows) * dim), value / dim)

    def equivalent_weight(self, weight: float, batch_size: int, to: Scaling) -> float:
        """The lambda that gives, under the scaling `to`, the gradients that `weight` gives under this one.

        `lambda_per_dimension = lambda_literal * D * n / N`: at D = 512, n = 128, N = 50,000 the paper's 16 is 20.97
        per dimension, or 0.041 per nat.
        """
        self._require_fitted()
        if "as_published" in (self.scaling, to):
            raise ConfigError("the published loss is another function; no weight makes it equal to the bound's")
        factor = self.means.shape[1] * batch_size / self.samples
        if self.scaling == to:
            return weight
        return weight * factor if to == "per_dimension" else weight / factor

    def diagnostics(self) -> Diagnostics:
        """Eq. 4's posterior, the conditions of section 3.4, cluster sizes and notes on what the numbers are worth."""
        self._require_fitted()
        return diagnose(
            weights=self.weights,
            means=self.means,
            covariances=self.covariances,
            counts=self.counts,
            noise_variance=self.variance,
            information=self.information,
            features=self.kept,
            clusters=self.kept_clusters,
            seed=self.seed,
        )

    def get_extra_state(self) -> Tensor:
        """Counters as a tensor, so that a state dict holds nothing but tensors."""
        return torch.tensor([self.refreshes, self.samples, int(self._dual)], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the counters and rebuild the factors from the loaded moments."""
        self.refreshes, self.samples, self._dual = int(state[0]), int(state[1]), bool(state[2])
        if self.refreshes:
            self._prepare()

    _dual: bool = False

    @property
    def _partition(self) -> Partition:
        return Partition.of(self.centres, self.num_classes if self.class_conditional else None)

    def _moments(self, flat: Tensor, assignment: Tensor, noisy: bool) -> tuple[Tensor, Tensor]:
        dim = flat.shape[1]
        largest = int(self.counts.max())
        self._dual = self.covariance == "full" and not noisy and self.update == "epoch" and largest * 2 <= dim
        if self._dual:
            means = moments(flat, assignment, self.clusters, "spherical", fallback=self.centres).means
            return means, _centred_samples(flat, assignment, means, self.counts)
        fitted = moments(flat, assignment, self.clusters, self.covariance, fallback=self.centres)
        if noisy:
            return fitted.means, subtract_noise(fitted.covariances, self.variance)
        return fitted.means, fitted.covariances

    def _prepare(self) -> None:
        """Factorise B_j once for all steps until the next refresh."""
        if self.covariance != "full":
            self._precision = diagonal_precision(self.spread, self.variance, self.means.shape[1])
        elif self._dual:
            self._precision = low_rank_precision(self.spread, self.variance)
        else:
            self._precision = dense_precision(self.spread, self.variance)
        self._information = None

    def _carry(self, rows: Tensor, assignment: Tensor) -> None:
        """Eq. 5 and Eq. 6 for one batch."""
        counts = torch.bincount(assignment, minlength=self.clusters)
        self.weights = update_weights(self.weights, counts, self.samples, len(rows))
        fresh = batch_covariances(rows, assignment, self.means, self.covariance)
        self.spread = update_covariances(self.spread, fresh, counts, self.weights, self.samples)
        self._prepare()

    def _value(self) -> Tensor:
        if self._information is None:
            assert self._precision is not None
            pi = self.weights.double()
            self._information = (torch.special.entr(pi) + 0.5 * pi * self._precision.log_ratio).sum().to(pi.dtype)
        return self._information

    def _as_published(self, flat: Tensor, assignment: Tensor) -> Tensor:
        squared = (flat - self.centres[assignment]).square().mean(1)
        counts = torch.bincount(assignment, minlength=self.clusters)
        present = counts > 0
        batch = torch.zeros_like(self.weights).index_add(0, assignment, squared) / counts.clamp(min=1)
        per_class = self.counts.view(self.num_classes, -1).sum(1).repeat_interleave(self.clusters_per_class)
        share = self.counts / per_class.clamp(min=1)
        expected = (share * (self.samples / self.num_classes)).clamp(min=1e-12)
        fraction = (10.0 * counts / expected).clamp(max=0.99)
        variance = fraction * batch + (1.0 - fraction) * self.spread
        excess = torch.relu((variance + 0.01).log() - math.log(0.125 * self.variance + 0.01))
        classes = present.view(self.num_classes, -1).any(1).sum()
        return (share * excess * present).sum() / classes

    def _flatten(self, features: Tensor) -> Tensor:
        if features.ndim < 2 or not features.is_floating_point():
            raise FeatureError(
                f"features must be a floating-point tensor (N, ...) of at least two dimensions, got "
                f"{features.dtype} {tuple(features.shape)}"
            )
        flat = features.flatten(1)
        if self.refreshes and flat.shape[1] != self.means.shape[1]:
            raise FeatureError(
                f"features have {flat.shape[1]} dimensions, but {self.means.shape[1]} at the last refresh; "
                "use a new CEM object for another cut or model"
            )
        return flat

    def _check_labels(self, labels: Tensor | None, count: int) -> Tensor | None:
        if not self.class_conditional:
            return None
        if labels is None:
            raise FeatureError("class-conditional clusters need labels; pass them or set class_conditional=False")
        if labels.ndim != 1 or len(labels) != count:
            raise FeatureError(f"labels must have shape ({count},) like the features, got {tuple(labels.shape)}")
        return labels

    def _require_fitted(self) -> None:
        if not self.refreshes:
            raise NotFittedError(
                "this CEM has no mixture yet; call cem.refresh(features, labels) once before the first batch"
            )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in _BUFFERS:  # shapes are those of the saved mixture
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=self.weights.device))
        saved = state_dict.get(prefix + "weights")
        if saved is not None and saved.numel() not in (0, self.clusters):
            raise CheckpointError(
                f"the saved mixture has {saved.numel()} clusters, this CEM {self.clusters}; "
                "build it with the settings of the saved one"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Settings, as `repr` shows them."""
        return (
            f"num_classes={self.num_classes}, clusters_per_class={self.clusters_per_class}, "
            f"noise_std={self.noise_std}, covariance={self.covariance!r}, scaling={self.scaling!r}, "
            f"update={self.update!r}"
        )


_BUFFERS = ("weights", "means", "centres", "counts", "spread", "kept", "kept_clusters")


class _WithGradient(torch.autograd.Function):
    """A value that does not depend on the batch, with a gradient that does."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, direction: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(direction)
        ctx.dtype = flat.dtype
        return value.to(direction.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (direction,) = ctx.saved_tensors
        return (grads[0] * direction).to(ctx.dtype), None, None


def _with_gradient(flat: Tensor, direction: Tensor, value: Tensor) -> Tensor:
    result: Tensor = _WithGradient.apply(flat, direction, value)  # type: ignore[no-untyped-call]
    return result


def _centred_samples(flat: Tensor, assignment: Tensor, means: Tensor, counts: Tensor) -> Tensor:
    """(k, r, D): the samples of each cluster, centred and divided by sqrt(n_j), zero rows as padding."""
    order = assignment.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    sorted_clusters = assignment[order]
    slot = torch.arange(len(flat), device=flat.device) - starts[sorted_clusters]
    rows = flat.new_zeros(len(counts), int(counts.max()), flat.shape[1])
    scale = counts.clamp(min=1).to(flat.dtype).rsqrt()
    rows[sorted_clusters, slot] = (flat[order] - means[sorted_clusters]) * scale[sorted_clusters, None]
    return rows


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; choose one of {', '.join(known)}")
