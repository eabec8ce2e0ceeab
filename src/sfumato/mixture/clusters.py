"""The clusters behind the loss: their moments between two refreshes, and products with (Sigma_j + sigma^2 I)^-1."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.distributed import Ranks
from sfumato.errors import CheckpointError
from sfumato.mixture.em import Parameters, clustered, expectation_maximization
from sfumato.mixture.families import (
    Covariance,
    batch_covariances,
    moments,
    subtract_noise,
    update_covariances,
    update_weights,
)
from sfumato.mixture.partition import Partition
from sfumato.mixture.precision import (
    DensePrecision,
    DiagonalPrecision,
    LowRankPrecision,
    Precision,
    centred_samples,
)
from sfumato.seeds import generator
from sfumato.torch_utils import free_to_look

_FIRST_ITERATIONS = 20
_WARM_ITERATIONS = 2
_EM_ITERATIONS = 20
_KEPT = 512
_BUFFERS = ("weights", "means", "centres", "counts", "spread", "snapshot", "scale", "kept", "kept_clusters")
# Of the moments that follow the steps: how much of them a step replaces at most, and how much may be replaced before
# their inverse is renewed. A fifth keeps up with the features of a fresh network (with a tenth the fit reached 1.6 in
# its first epochs).
_RATE = 0.2
_STALE = 0.4
_SCALE_RATE = 0.3  # of the common scale, one number, for which a single batch has samples enough
_MOST_WAITING = 1 << 26


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
        snapshot: of moments that follow the steps, the spread from which the present factors were computed.
        scale: of moments that follow the steps, how far the features of the last batches have outgrown the factors.
        layout: counts up whenever a tensor that a step reads has moved to another address.
        kept: up to 512 features, evenly spread over the data set or the latest ones: a sample to measure on. Before
            moments that follow the steps have begun, all features so far.
        kept_clusters: their clusters; before that, their labels.
    """

    weights: Tensor
    means: Tensor
    centres: Tensor
    counts: Tensor
    spread: Tensor
    snapshot: Tensor
    scale: Tensor
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
        self.num_classes, self.clusters_per_class = num_classes, clusters_per_class
        self.covariance: Covariance = covariance
        self.variance = variance
        self.class_conditional = class_conditional
        self.seed = seed
        self.samples = self.refreshes = 0
        self._may_be_dual = dual and covariance == "full"
        self._is_dual = False
        self._precision: Precision | None = None
        self._stale = True
        self._steps = 0  # since the factors were renewed
        self.layout = 0
        for name in _BUFFERS:
            self.register_buffer(name, torch.empty(0))
        self.scale = torch.ones(())

    def restart(self, variance: float) -> None:
        """Forget all moments: what comes is measured in other units, with this sigma^2."""
        self.variance = variance
        self.samples = self.refreshes = self._steps = 0
        self._is_dual = False
        for name in _BUFFERS:
            setattr(self, name, torch.empty(0, device=self.weights.device))
        self.scale = torch.ones((), device=self.weights.device)
        self._precision = None
        self._stale = True
        self.layout += 1

    @property
    def size(self) -> int:
        """k."""
        return self.num_classes * self.clusters_per_class

    @property
    def covariances(self) -> Tensor:
        """Sigma_j: (k, D, D) full and tied, (k, D) diagonal, (k,) spherical; the dual form is multiplied out."""
        if self.covariance == "tied":
            return self.spread.expand(self.size, -1, -1)
        return self.spread.transpose(1, 2) @ self.spread if self._is_dual else self.spread

    @property
    def traces(self) -> Tensor:
        """(k,), Tr Sigma_j."""
        if self._is_dual:
            return self.spread.square().sum((1, 2))
        if self.covariance in ("diagonal", "spherical"):
            return self.spread.sum(1) if self.spread.ndim == 2 else self.spread * self.means.shape[1]
        return self.covariances.diagonal(dim1=1, dim2=2).sum(1)

    @property
    def information(self) -> Tensor:
        """Theorem 2 for the moments that the factors belong to, float64, nats."""
        pi = self.weights.double()
        return (torch.special.entr(pi) + 0.5 * pi * self.precision.log_ratio).sum()

    @property
    def pull(self) -> Tensor:
        """sum_j pi_j Tr(B_j^-1 Sigma_j), float64: the mean of `(z - mu)^T B^-1 (z - mu)` over features that fit."""
        return (self.weights.double() * self.precision.pull).sum()

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
        spread = self.snapshot if self.snapshot.numel() else self.spread
        if self.covariance in ("diagonal", "spherical"):
            fresh: Precision = DiagonalPrecision(spread, self.variance, self.means.shape[1])
        elif self._is_dual:
            fresh = LowRankPrecision(spread, self.variance)
        else:  # one matrix for each cluster, or one for all
            fresh = DensePrecision(spread.reshape(-1, *spread.shape[-2:]), self.variance, self.size)
        if self._precision is None or not self._precision.adopt(fresh):
            self._precision = fresh
            self.layout += 1
        self._stale = False

    def _fit_by_kmeans(self, features: Tensor, labels: Tensor | None, noisy: bool) -> Tensor:
        """Cluster (N, D) features and take their moments; gives the cluster of each.

        k-means++ and up to 20 Lloyd iterations at first, two iterations from the last centres later.
        """
        partition = Partition.fit(
            features,
            labels,
            num_classes=self.num_classes,
            clusters_per_class=self.clusters_per_class,
            previous=self._partition if self.refreshes else None,
            iterations=_WARM_ITERATIONS if self.refreshes else _FIRST_ITERATIONS,
            generator=torch.Generator(device=features.device).manual_seed(self.seed),
        )
        assignment = partition.assign(features, labels)
        self._put("centres", partition.centres)
        self._put("counts", torch.bincount(assignment, minlength=self.size))
        self._put("weights", self.counts.to(features.dtype) / len(features))
        self._is_dual = self._may_be_dual and not noisy and int(self.counts.max()) * 2 <= features.shape[1]
        family: Covariance = "spherical" if self._is_dual else self.covariance
        fitted = moments(features, assignment, self.size, family, fallback=self.centres)
        self._put("means", fitted.means)
        if self._is_dual:
            self._put("spread", centred_samples(features, assignment, self.means, self.counts))
        else:
            self._put("spread", subtract_noise(fitted.covariances, self.variance) if noisy else fitted.covariances)
        return assignment

    def _fit_by_em(self, features: Tensor, noisy: bool) -> Tensor:
        """Lines 4 and 5 of the paper's Algorithm 1: EM over all classes to z = z_hat + eps; gives the nearest means.

        sigma^2 is subtracted from the covariances, floored at 0, which leaves Sigma_j of N(mu_j, Sigma_j + sigma^2 I).
        The first fit starts from k-means, later ones from the mixture of before; 20 iterations at most.
        """
        z = features
        if not noisy:
            drawn = generator(self.seed, "noise", self.refreshes, 0, device=z.device)
            z = z + self.variance**0.5 * torch.randn(z.shape, generator=drawn, dtype=z.dtype, device=z.device)
        if self.refreshes:
            start = Parameters(self.weights, self.means, self.spread.clone())
            start.covariances.diagonal(dim1=1, dim2=2).add_(self.variance)
        else:
            start = clustered(z, self.size, self.seed)
        found = expectation_maximization(z, start, iterations=_EM_ITERATIONS)
        self._put("weights", found.weights.to(z.dtype))
        self._put("means", found.means.to(z.dtype))
        self._put("centres", self.means.clone())  # a checkpoint takes no shared memory
        self._put("spread", subtract_noise(found.covariances, self.variance).to(z.dtype))
        assignment = self.assign(z, None)
        self._put("counts", torch.bincount(assignment, minlength=self.size))
        return assignment

    def refresh(self, features: Tensor, labels: Tensor | None, *, noisy: bool) -> None:
        """Fit the mixture to (N, D) features, by k-means or by EM."""
        fit = self._fit_by_em(features, noisy) if self.em else self._fit_by_kmeans(features, labels, noisy)
        self.samples = len(features)
        keep = torch.linspace(0, self.samples - 1, min(self.samples, _KEPT), device=features.device).long()
        self.kept, self.kept_clusters = features[keep], fit[keep]
        self.refreshes += 1
        self.snapshot = torch.empty_like(self.snapshot[:0])
        self.scale = torch.ones_like(self.scale)
        self._forget_factors()
        self._prepare()  # now, not in the first step, which may be a replayed one

    def assign(self, rows: Tensor, labels: Tensor | None) -> Tensor:
        """(n,) cluster of each row: the nearest centre, of its own class where clusters belong to classes."""
        return self._partition.assign(rows, labels)

    def carry(self, rows: Tensor, assignment: Tensor, ranks: Ranks = Ranks.ALONE) -> None:
        """Eq. 5 and Eq. 6 for one batch, that of all ranks; what is carried has no graph."""
        counts = ranks.sum(torch.bincount(assignment, minlength=self.size))
        self.weights = update_weights(self.weights, counts, self.samples, ranks.total(len(rows)))
        fresh = self._batch_covariances(rows, assignment, counts, ranks)
        self.spread = update_covariances(self.spread, fresh, counts, self.weights, self.samples)
        self._forget_factors()

    def _batch_covariances(self, rows: Tensor, assignment: Tensor, counts: Tensor, ranks: Ranks) -> Tensor:
        """Delta Sigma_j of the batch of all ranks: all are centred at the stored means, so that they add up."""
        own = batch_covariances(rows, assignment, self.means, self.covariance)
        if ranks.alone:
            return own
        if self.covariance == "tied":
            return ranks.sum(own * (len(rows) / counts.sum()).to(own.dtype))
        share = (torch.bincount(assignment, minlength=self.size) / counts.clamp(min=1)).to(own.dtype)
        return ranks.sum(share.reshape(-1, *[1] * (own.ndim - 1)) * own)

    def begin(self, rows: Tensor, labels: Tensor | None, ranks: Ranks = Ranks.ALONE) -> None:
        """Keep the features of the first steps, of all ranks, until they are enough for moments; then `refresh`."""
        labels = torch.zeros(len(rows), dtype=torch.int64, device=rows.device) if labels is None else labels
        rows, labels = ranks.gather(rows), ranks.gather(labels)
        first = self.kept.numel() == 0
        self.kept = rows if first else torch.cat([self.kept, rows])
        self.kept_clusters = labels if first else torch.cat([self.kept_clusters, labels])
        if len(self.kept) >= min(self._enough(rows.shape[1]), max(self.size, _MOST_WAITING // rows.shape[1])):
            self.begin_with_few()

    def begin_with_few(self) -> None:
        """Begin with the features that there are, if any; every rank has all of them."""
        if len(self.kept):
            known = self.kept_clusters if self.class_conditional else None
            self.refresh(self.kept, known, noisy=False)

    def _enough(self, dim: int) -> int:
        """Samples from which the parameters of the family can be told: 4 D for a D x D matrix, 20 for a variance."""
        return {"full": 4 * dim * self.size, "tied": 4 * dim}.get(self.covariance, 20 * self.size)

    def follow(self, rows: Tensor, assignment: Tensor, pull: Tensor, ranks: Ranks = Ranks.ALONE) -> None:
        r"""Let the moments follow the features of the steps: a moving average over the batches of all ranks.

            c_j = max(a n_j / (pi_j n), n_j / N_j) <= 1,    a = min(1/5, n / N_enough)
            Sigma_j <- (1 - c_j) Sigma_j + c_j Delta Sigma_j,   mu_j <- mu_j + c_j (mean_j - mu_j)
            pi_j <- (1 - a) pi_j + a n_j / n

        Features of a fresh network outgrow a matrix that takes many batches to estimate; their scale s, one number,
        keeps up: `s <- 0.7 s + 0.3 s r` with r the batch's observed over its expected pull. Until the factors have
        followed, the pull is that of `s B_j`.

        n_j of the n samples of the batch belong to cluster j, N_j of all samples so far; Delta Sigma_j is centred at
        the stored mu_j as in Eq. 6, so that a drift of the features counts as spread. N_enough, the samples that the
        family needs (4 D for a matrix), keeps small batches from estimating a large matrix out of few samples. The
        first n_j of a cluster that was empty set its mean. Factors are renewed when two fifths of the moments have been
        replaced.
        """
        n, dim = ranks.total(len(rows)), rows.shape[1]
        ratio = pull / (self.pull * n).clamp(min=1e-12)
        self.scale = self.scale * (1 + _SCALE_RATE * (ratio.to(self.scale) - 1))
        member = torch.nn.functional.one_hot(assignment, self.size).to(rows.dtype)
        counts, sums = ranks.sum(member.sum(0).double()), ranks.sum((member.T @ rows).double())
        batch_means = (sums / counts.clamp(min=1)[:, None]).to(rows.dtype)
        self.means = torch.where(((self.counts == 0) & (counts > 0))[:, None], batch_means, self.means)
        self.counts = self.counts + counts.to(self.counts.dtype)
        self.samples += n
        rate = max(min(_RATE, n / self._enough(dim)), n / self.samples)
        expected = (self.weights.double() * n).clamp(min=1e-9)
        share = torch.maximum(rate * counts / expected, counts / self.counts.clamp(min=1)).clamp(max=1.0).to(rows.dtype)
        fresh = self._batch_covariances(rows, assignment, counts, ranks)
        tied = self.covariance == "tied"
        weight = rate if tied else share.reshape(-1, *[1] * (fresh.ndim - 1))
        self.spread = torch.lerp(self.spread, fresh, weight)
        self.means = torch.lerp(self.means, batch_means, share[:, None])
        self.centres = self.means.clone()
        self.weights = torch.lerp(self.weights, (counts / n).to(self.weights), rate)
        self.kept = torch.cat([ranks.gather(rows), self.kept])[:_KEPT]
        self.kept_clusters = torch.cat([ranks.gather(assignment), self.kept_clusters])[:_KEPT]
        if self._steps == 0:
            self.snapshot = self.spread.clone()
            self._forget_factors()
        self._steps = (self._steps + 1) % max(1, round(_STALE / rate))

    def product(self, assignment: Tensor) -> Callable[[Tensor], Tensor]:
        """(n, D) -> (n, D), row i multiplied by the (Sigma_j + sigma^2 I)^-1 of now; 0 for a cluster never seen."""
        precision, scale, seen = self.precision, self.scale, (self.counts > 0)[assignment, None]
        return lambda rows: precision.apply(torch.where(seen, rows, 0.0), assignment) / scale

    def log_density(self, z: Tensor) -> Tensor:
        """(n, k) float64: log pi_j + log N(z; mu_j, Sigma_j + sigma^2 I), up to a constant that clusters share.

        Cluster by cluster, so that next to the result it needs no more than the rows.
        """
        found = torch.empty(len(z), self.size, dtype=torch.float64, device=z.device)
        for j in range(self.size):
            rows = z - self.means[j]
            found[:, j] = -0.5 * (rows * self.precision.apply(rows, j)).double().sum(1)
        return found + self.weights.double().log() - 0.5 * self.precision.log_ratio

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
            self._precision = None

    def get_extra_state(self) -> Tensor:
        """Counters as a tensor, so that a state dict holds nothing but tensors."""
        return torch.tensor([self.refreshes, self.samples, int(self._is_dual), self._steps], dtype=torch.int64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the counters; the factors are rebuilt from the loaded moments when they are needed."""
        self.refreshes, self.samples, self._is_dual = int(state[0]), int(state[1]), bool(state[2])
        self._steps = int(state[3]) if len(state) > 3 else 0
        self._forget_factors()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(prefix + "weights")
        if saved is not None and saved.numel() not in (0, self.size):
            raise CheckpointError(
                f"the saved mixture has {saved.numel()} clusters, this CEM {self.size}; "
                "build it with the settings of the saved one"
            )
        if saved is not None:  # before moments could follow the steps there was none
            state_dict.setdefault(prefix + "snapshot", torch.empty(0))
            state_dict.setdefault(prefix + "scale", torch.ones(()))
        for name in _BUFFERS:  # their shapes are those of the saved features
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(saved, device=self.weights.device))
                self.layout += 1
        super()._load_from_state_dict(state_dict, prefix, *rest)
