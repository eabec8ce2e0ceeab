"""The clusters behind the loss: their moments between two refreshes, and products with (Sigma_j + sigma^2 I)^-1."""

from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import CheckpointError
from sfumato.mixture.em import GaussianMixture, Parameters
from sfumato.mixture.families import Covariance, moments
from sfumato.mixture.partition import Partition
from sfumato.mixture.precision import (
    Precision,
    centred_samples,
    dense_precision,
    diagonal_precision,
    low_rank_precision,
)
from sfumato.mixture.running import batch_covariances, subtract_noise, update_covariances, update_weights
from sfumato.modes import free_to_look
from sfumato.ranks import Ranks
from sfumato.seeds import generator

__all__ = ["Clusters"]

_FIRST_ITERATIONS = 20
_WARM_ITERATIONS = 2
_EM_ITERATIONS = 20
_KEPT = 512
_BUFFERS = ("weights", "means", "centres", "counts", "spread", "kept", "kept_clusters")


class Clusters(nn.Module):
    """A hard partition of the features with its exact moments, and the factors that a training step needs.

    Full covariances of clusters that have at most half as many samples as dimensions are kept in the dual form: their
    scaled centred samples instead of D x D matrices. It is exact; no shrinkage is needed, since sigma^2 I makes every
    Sigma_j + sigma^2 I regular.

    Args:
        num_classes: classes.
        clusters_per_class: k / classes.
        covariance: family of the covariances.
        variance: sigma^2.
        class_conditional: whether each class has its own clusters.
        dual: whether the dual form may be used (it cannot be updated batch by batch).
        seed: of the first k-means++ start.
        em: fit by EM, over all classes and to features with noise; see `_fit_by_em`.

    Attributes:
        weights: (k,) pi_j.
        means: (k, D) mu_j.
        centres: (k, D), which define the partition.
        counts: (k,) samples per cluster at the last refresh.
        spread: Sigma_j in its family's shape, or in dual form (k, r, D).
        layout: counts up whenever a tensor that a step reads has moved to another address.
        kept: up to 512 features, evenly spread over the data set: a sample to measure on.
        kept_clusters: their clusters.
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
        num_classes: int,
        clusters_per_class: int,
        covariance: Covariance,
        variance: float,
        *,
        class_conditional: bool,
        dual: bool,
        seed: int,
        em: bool = False,
    ) -> None:
        super().__init__()
        self.em = em
        self.num_classes = num_classes
        self.clusters_per_class = clusters_per_class
        self.covariance: Covariance = covariance
        self.variance = variance
        self.class_conditional = class_conditional
        self.seed = seed
        self.samples = 0
        self.refreshes = 0
        self._may_be_dual = dual and covariance == "full"
        self._is_dual = False
        self._precision: Precision | None = None
        self._stale = True
        self._information: Tensor | None = None
        self.layout = 0
        for name in _BUFFERS:
            self.register_buffer(name, torch.empty(0))

    @property
    def size(self) -> int:
        """k."""
        return self.num_classes * self.clusters_per_class

    @property
    def covariances(self) -> Tensor:
        """Sigma_j: (k, D, D) full, (k, D) diagonal, (k,) spherical; the dual form is multiplied out."""
        return self.spread.transpose(1, 2) @ self.spread if self._is_dual else self.spread

    @property
    def information(self) -> Tensor:
        """Theorem 2 for the current moments, float64, nats."""
        self._prepare()
        assert self._information is not None
        return self._information

    @property
    def precision(self) -> Precision:
        """The factors of (Sigma_j + sigma^2 I)^-1."""
        self._prepare()
        assert self._precision is not None
        return self._precision

    def _prepare(self) -> None:
        """Bring factors and information up to date, in the tensors that a captured step reads where they fit."""
        if not self._stale:
            return
        if self.covariance != "full":
            fresh: Precision = diagonal_precision(self.spread, self.variance, self.means.shape[1])
        elif self._is_dual:
            fresh = low_rank_precision(self.spread, self.variance)
        else:
            fresh = dense_precision(self.spread, self.variance)
        if self._precision is None or not self._precision.adopt(fresh):
            self._precision = fresh
            self.layout += 1
        pi = self.weights.double()
        information = (torch.special.entr(pi) + 0.5 * pi * self._precision.log_ratio).sum()
        if self._information is None or self._information.device != information.device:
            self._information = information
        else:
            self._information.copy_(information)
        self._stale = False

    def _fit_by_kmeans(self, features: Tensor, labels: Tensor | None, noisy: bool, ranks: Ranks) -> Tensor:
        """Cluster (N, D) features and take their moments; gives the cluster of each.

        k-means++ and up to 20 Lloyd iterations at first, two iterations from the last centres later. Where ranks hold a
        part of the features each, assignments are made where the features are, and counts, sums and squares are summed
        over the ranks. Only the dual form, which consists of samples, gathers them: N D numbers on every rank, at most
        half of what k covariances take.
        """
        partition = Partition.fit(
            features,
            labels,
            num_classes=self.num_classes,
            clusters_per_class=self.clusters_per_class,
            previous=self._partition if self.refreshes else None,
            iterations=_WARM_ITERATIONS if self.refreshes else _FIRST_ITERATIONS,
            generator=torch.Generator(device=features.device).manual_seed(self.seed),
            ranks=ranks,
        )
        assignment = partition.assign(features, labels)
        self._put("centres", partition.centres)
        self._put("counts", ranks.sum(torch.bincount(assignment, minlength=self.size)))
        self.samples = ranks.total(len(features))
        self._put("weights", self.counts.to(features.dtype) / self.samples)
        self._is_dual = self._may_be_dual and not noisy and int(self.counts.max()) * 2 <= features.shape[1]
        fitted = moments(
            features,
            assignment,
            self.size,
            "spherical" if self._is_dual else self.covariance,
            fallback=self.centres,
            ranks=ranks,
        )
        self._put("means", fitted.means)
        if self._is_dual:
            everything, clusters = ranks.gather(features), ranks.gather(assignment)
            self._put("spread", centred_samples(everything, clusters, self.means, self.counts))
        else:
            self._put("spread", subtract_noise(fitted.covariances, self.variance) if noisy else fitted.covariances)
        return assignment

    def _fit_by_em(self, features: Tensor, noisy: bool, ranks: Ranks) -> Tensor:
        """Lines 4 and 5 of the paper's Algorithm 1: EM over all classes to z = z_hat + eps; gives the nearest means.

        sigma^2 is subtracted from the covariances, floored at 0, which leaves Sigma_j of N(mu_j, Sigma_j + sigma^2 I).
        The first fit starts from k-means, later ones from the mixture of before; 20 iterations at most.
        """
        z = features
        if not noisy:
            drawn = generator(self.seed, "noise", self.refreshes, ranks.before(len(z)), device=z.device)
            z = z + self.variance**0.5 * torch.randn(z.shape, generator=drawn, dtype=z.dtype, device=z.device)
        start = None
        if self.refreshes:
            widened = self.spread.clone()
            (widened.diagonal(dim1=1, dim2=2) if self.covariance == "full" else widened).add_(self.variance)
            start = Parameters(self.weights, self.means, widened)
        found = GaussianMixture(self.size, self.covariance, max_iter=_EM_ITERATIONS).fit(
            ranks.gather(z), init=start, generator=torch.Generator(device=z.device).manual_seed(self.seed)
        )
        self._put("weights", found.weights_.to(z.dtype))
        self._put("means", found.means_.to(z.dtype))
        self._put("centres", self.means.clone())  # a checkpoint takes no shared memory
        self._put("spread", subtract_noise(found.covariances_, self.variance).to(z.dtype))
        assignment = self.assign(z, None)
        self._put("counts", ranks.sum(torch.bincount(assignment, minlength=self.size)))
        self.samples = ranks.total(len(z))
        return assignment

    def refresh(self, features: Tensor, labels: Tensor | None, *, noisy: bool, ranks: Ranks = Ranks.ALONE) -> None:
        """Fit the mixture to (N, D) features, by k-means or by EM."""
        if self.em:
            assignment = self._fit_by_em(features, noisy, ranks)
        else:
            assignment = self._fit_by_kmeans(features, labels, noisy, ranks)
        keep = torch.linspace(0, self.samples - 1, min(self.samples, _KEPT), device=features.device).long()
        start = ranks.before(len(features))
        keep = keep[(keep >= start) & (keep < start + len(features))] - start
        self.kept, self.kept_clusters = ranks.gather(features[keep].clone()), ranks.gather(assignment[keep])
        self.refreshes += 1
        self._forget_factors()
        self._prepare()  # now, not in the first step, which may be a replayed one

    def assign(self, rows: Tensor, labels: Tensor | None) -> Tensor:
        """(n,) cluster of each row: the nearest centre, of its own class where clusters belong to classes."""
        return self._partition.assign(rows, labels)

    def carry(self, rows: Tensor, assignment: Tensor, ranks: Ranks = Ranks.ALONE) -> None:
        """Eq. 5 and Eq. 6 for one batch, that of all ranks; what is carried has no graph."""
        own = torch.bincount(assignment, minlength=self.size)
        counts = ranks.sum(own)
        self.weights = update_weights(self.weights, counts, self.samples, ranks.total(len(rows)))
        fresh = batch_covariances(rows, assignment, self.means, self.covariance)
        if not ranks.alone:  # all are centred at the stored means
            share = (own / counts.clamp(min=1)).to(fresh.dtype)
            fresh = ranks.sum(share.reshape(-1, *[1] * (fresh.ndim - 1)) * fresh)
        self.spread = update_covariances(self.spread, fresh, counts, self.weights, self.samples)
        self._forget_factors()

    def direction(self, rows: Tensor, assignment: Tensor) -> Tensor:
        """(n, D): (Sigma_j + sigma^2 I)^-1 (z_i - mu_j) for each row i of cluster j."""
        return self.precision.apply(rows - self.means[assignment], assignment)

    @property
    def _partition(self) -> Partition:
        return Partition.of(self.centres, self.num_classes if self.class_conditional else None)

    def _put(self, name: str, value: Tensor) -> None:
        """Store a buffer: in place where the old one fits, since a captured step reads it at its address.

        Where it does not fit `layout` counts up, and whoever captured a step has to do so again.
        """
        old: Tensor = getattr(self, name)
        if free_to_look(value):  # nothing is captured here, and the old one makes room
            setattr(self, name, value)
        elif old.shape == value.shape and old.dtype == value.dtype and old.device == value.device:
            old.copy_(value)
        else:
            setattr(self, name, value)
            self.layout += 1

    def _forget_factors(self) -> None:
        self._stale = True
        if free_to_look(self.weights):
            self._precision = self._information = None

    def get_extra_state(self) -> Tensor:
        """Counters as a tensor, so that a state dict holds nothing but tensors."""
        return torch.tensor([self.refreshes, self.samples, int(self._is_dual)], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the counters; the factors are rebuilt from the loaded moments when they are needed."""
        self.refreshes, self.samples, self._is_dual = int(state[0]), int(state[1]), bool(state[2])
        self._forget_factors()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(prefix + "weights")
        if saved is not None and saved.numel() not in (0, self.size):
            raise CheckpointError(
                f"the saved mixture has {saved.numel()} clusters, this CEM {self.size}; "
                "build it with the settings of the saved one"
            )
        for name in _BUFFERS:  # their shapes are those of the saved features
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=self.weights.device))
                self.layout += 1
        super()._load_from_state_dict(state_dict, prefix, *rest)
