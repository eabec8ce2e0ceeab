"""The covariance families: exact moments of a hard partition, and Eq. 5 and 6, which carry them over the batches."""

from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from sfumato.errors import ConfigError, FeatureError
from sfumato.mixture._inputs import (
    check_assignment,
    check_features,
    check_positive,
    chunk_rows,
    sorted_clusters,
)
from sfumato.mixture.precision import centred_samples

Covariance = Literal["full", "tied", "diagonal", "spherical"]


class Moments(NamedTuple):
    """Population moments of k clusters of D-dimensional features.

    Attributes:
        counts: (k,) int64, n_j.
        means: (k, D), mu_j.
        covariances: Sigma_j as (k, D, D) full, (D, D) tied, (k, D) diagonal or (k,) spherical.
    """

    counts: Tensor
    means: Tensor
    covariances: Tensor


def check_covariance(name: str) -> Covariance:
    """The name of a covariance family, checked.

    Args:
        name: of the family.

    Raises:
        ConfigError: the name is none of `full`, `tied`, `diagonal`, `spherical`.
    """
    if name not in (known := get_args(Covariance)):
        raise ConfigError(f"covariance is {name!r}; choose one of {', '.join(known)}")
    return cast(Covariance, name)


def moments(
    features: Tensor,
    assignment: Tensor,
    k: int,
    covariance: Covariance,
    *,
    fallback: Tensor | None = None,
) -> Moments:
    r"""Exact population moments of each cluster of a hard partition.

        mu_j = 1/n_j sum_{i in j} z_i,    Sigma_j = 1/n_j sum_{i in j} (z_i - mu_j)(z_i - mu_j)^T

    `tied` is one matrix for all clusters, sum_j n_j Sigma_j / n: log det is concave, so the bound of Theorem 2 holds
    for it and is no smaller. `diagonal` keeps the D variances of Sigma_j, `spherical` their average Tr Sigma_j / D.
    Dividing by n_j, not by n_j - 1, makes Theorem 2 hold for the empirical distribution. Samples are centred before
    they are squared and chunks are merged by their means (Chan, Golub and LeVeque 1983), so an offset of the features
    costs no digits. Works cluster by cluster and chunk by chunk: next to the result it needs a few megabytes.
    Differentiable with respect to the features; call it under `torch.no_grad()` where that is not wanted.

    Args:
        features: (n, D) float32 or float64.
        assignment: (n,) int64 in [0, k).
        k: number of clusters.
        covariance: the family.
        fallback: (k, D) means for clusters without samples; zeros when left out.

    Returns:
        Moments in the dtype of the features. A cluster without samples has its fallback mean and covariance 0; so
        has a cluster of one sample its own position and covariance 0.

    Raises:
        ConfigError: an unknown family, or k below 1.
        FeatureError: features, assignment or fallback of another shape or dtype, or an assignment out of range.
    """
    check_covariance(covariance)
    check_positive(k=k)
    check_features(features)
    check_assignment(assignment, len(features), k)
    dim = features.shape[1]
    if fallback is not None and fallback.shape != (k, dim):
        raise FeatureError(f"fallback means have shape {tuple(fallback.shape)}; pass ({k}, {dim})")
    means = features.new_zeros(k, dim) if fallback is None else fallback.detach().to(features).clone()
    shapes = {"full": (k, dim, dim), "tied": (dim, dim), "diagonal": (k, dim), "spherical": (k,)}
    covariances = features.new_zeros(shapes[covariance])
    order, counts, ends = sorted_clusters(assignment, k)
    start = 0
    for j, end in enumerate(ends):
        if end > start:
            mean, scatter = _cluster(features, order[start:end], full=covariance in ("full", "tied"))
            means[j] = mean.to(features.dtype)
            if covariance == "tied":
                covariances += scatter * ((end - start) / len(features))
            else:
                covariances[j] = scatter.mean() if covariance == "spherical" else scatter
        start = end
    return Moments(counts, means, covariances)


def _cluster(features: Tensor, rows: Tensor, *, full: bool) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) or variances (D,) of the samples `rows`, chunk merged into chunk."""
    seen = 0
    mean = features.new_zeros(features.shape[1], dtype=torch.float64)
    spread = features.new_zeros((features.shape[1],) * (2 if full else 1))
    for part in rows.split(chunk_rows(features.shape[1], features.device)):
        chunk = features[part]
        count = len(part)
        rough = chunk.detach().mean(0)
        centred = chunk - rough
        # What the rounding of the first mean left over; it belongs to the mean and has to leave the squares.
        rest = centred.sum(0, dtype=torch.float64) / count
        here = rough.double() + rest
        shift = (here - mean).to(features.dtype)
        rest = rest.to(features.dtype)
        share = count / (seen + count)
        between = share * (1 - share)
        if full:
            inside = centred.T @ centred / count - torch.outer(rest, rest)
            spread = torch.lerp(spread, inside, share) + between * torch.outer(shift, shift)
        else:
            inside = centred.square().mean(0) - rest.square()
            spread = torch.lerp(spread, inside, share) + between * shift.square()
        mean = mean + (here - mean) * share
        seen += count
    if not full:
        spread = spread.clamp(min=0)
    return mean, spread


def update_weights(weights: Tensor, counts: Tensor, total: int, batch: int) -> Tensor:
    r"""Eq. 5: `pi_j <- (pi_j (N - N_batch) + n_j) / N`.

    Args:
        weights: (k,), pi_j.
        counts: (k,), n_j, samples of the batch in each cluster; they sum to N_batch.
        total: N, samples in the data set.
        batch: N_batch, samples in the batch.

    Returns:
        (k,), which sums to 1 when `weights` do.

    Raises:
        ConfigError: the batch is larger than the data set.
    """
    if not 0 <= batch <= total or total < 1:
        raise ConfigError(f"a batch of {batch} samples from a data set of {total}; pass the size of the whole set")
    return (weights * (total - batch) + counts.to(weights)) / total


def update_covariances(
    covariances: Tensor, batch_scatter: Tensor, counts: Tensor, weights: Tensor, total: int
) -> Tensor:
    r"""Eq. 6: `Sigma_j <- (1 - c_j) Sigma_j + c_j Delta Sigma_j` with `c_j = n_j / (pi_j N)`.

    pi_j is the weight that Eq. 5 has just updated, so that `pi_j N >= n_j` and c_j <= 1; with weights from before
    the update, c_j is cut at 1. A cluster without samples in the batch (n_j = 0) keeps its covariance. Gradients flow
    to both covariances: detach what is carried from batch to batch.

    Args:
        covariances: Sigma_j, (k, D, D), (k, D) or (k,).
        batch_scatter: Delta Sigma_j, the result of `batch_covariances`, of the same shape.
        counts: (k,), n_j.
        weights: (k,), pi_j after Eq. 5.
        total: N.

    Raises:
        FeatureError: the two covariances differ in shape.
    """
    if covariances.shape != batch_scatter.shape:
        raise FeatureError(
            f"stored covariances have shape {tuple(covariances.shape)}, those of the batch "
            f"{tuple(batch_scatter.shape)}; compute both in the same family"
        )
    share = torch.where(counts > 0, counts / (weights * total), 0.0).clamp(max=1.0).to(covariances.dtype)
    share = share.reshape(-1, *[1] * (covariances.ndim - 1))
    return (1 - share) * covariances + share * batch_scatter


def batch_covariances(features: Tensor, assignment: Tensor, means: Tensor, covariance: Covariance) -> Tensor:
    r"""Delta Sigma_j of Eq. 6, the covariance of a batch's samples in each cluster about the *stored* mean.

        Delta Sigma_j = 1/n_j sum_{i in j} (z_i - mu_j)(z_i - mu_j)^T

    Around the batch's own mean a cluster with one sample would have no gradient, and others a biased one. Meant for
    batches: no loop over clusters; `full` lays the samples out cluster by cluster, padded to the largest, which takes
    k max(n_j) D numbers next to the result. Differentiable with respect to features and means.

    Args:
        features: (n, D); n = 0 is allowed.
        assignment: (n,) int64 in [0, k).
        means: (k, D), mu_j.
        covariance: the family.

    Returns:
        (k, D, D), (k, D) or (k,); 0 for clusters without samples. `tied`: (D, D), over all samples.

    Raises:
        ConfigError: an unknown family.
        FeatureError: features or assignment of a wrong shape or dtype, or an assignment out of range.
    """
    check_covariance(covariance)
    check_features(features, means.shape[1])
    k = len(means)
    check_assignment(assignment, len(features), k)
    counts = torch.bincount(assignment, minlength=k)
    if covariance == "full":
        # Scaling the samples by 1/sqrt(n_j) instead of the result by 1/n_j saves a pass over k D^2 numbers.
        padded = centred_samples(features, assignment, means.to(features), counts)
        return torch.bmm(padded.mT.contiguous(), padded)
    centred = features - means.to(features)[assignment]
    if covariance == "tied":
        return centred.T @ centred / max(1, len(features))
    member = torch.nn.functional.one_hot(assignment, k).to(features).T / counts.clamp(min=1).to(features)[:, None]
    squares = centred.square()
    return member @ squares if covariance == "diagonal" else member @ squares.mean(1)


def subtract_noise(covariances: Tensor, noise_variance: float) -> Tensor:
    """Covariances of z_hat from those of z = z_hat + eps, eps ~ N(0, noise_variance I): what remains, floored at 0.

    Variances are floored at 0; of a full covariance the eigenvalues are, so that the result is the positive
    semidefinite matrix nearest to Sigma_j - noise_variance I. For mixtures fitted to noisy features, as in the
    paper's Algorithm 1.

    Args:
        covariances: (k, D, D), (k, D) or (k,).
        noise_variance: sigma^2.

    Raises:
        ConfigError: a negative variance.
        FeatureError: covariances of another number of axes.
    """
    if not noise_variance >= 0:
        raise ConfigError(f"noise_variance is {noise_variance}; pass sigma ** 2, which is not negative")
    if covariances.ndim not in (1, 2, 3):
        raise FeatureError(f"covariances have shape {tuple(covariances.shape)}; pass (k, D, D), (k, D) or (k,)")
    if covariances.ndim < 3:
        return (covariances - noise_variance).clamp(min=0)
    result = covariances.clone()
    for matrix in result:
        matrix.diagonal().sub_(noise_variance)
        wide = ((matrix + matrix.mT) / 2).double()
        if int(torch.linalg.cholesky_ex(wide).info):
            values, vectors = torch.linalg.eigh(wide)
            matrix.copy_((vectors * values.clamp(min=0)) @ vectors.T)
    return result
