"""Class-conditional mixtures: EM inside each class, put together as one mixture."""

import math

import torch
from torch import Tensor

from sfumato.errors import FeatureError
from sfumato.mixture._inputs import (
    check_features,
    check_finite,
    check_labels,
    check_positive,
    seeded,
    sorted_clusters,
)
from sfumato.mixture.em import GaussianMixture, Parameters
from sfumato.mixture.families import Covariance

__all__ = ["fit_per_class"]


@torch.no_grad()
def fit_per_class(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    clusters_per_class: int,
    covariance: Covariance = "full",
    previous: GaussianMixture | None = None,
    generator: torch.Generator | None = None,
    tol: float = 1e-3,
    max_iter: int = 100,
    reg_covar: float = 1e-6,
    shrinkage: float = 0.0,
) -> GaussianMixture:
    """One mixture of num_classes * clusters_per_class components, those of class c fitted to the samples of class c.

    Component c m + j has the weight `n_c / n * pi_(c, j)`. `lower_bound_` of the result is the mean of
    `log P(class) + log p(z | class)`, a lower bound on its mean log likelihood; `n_iter_` is the largest of the
    classes' and `converged_` says whether all converged. A class without samples gets weight 0, and the components of
    `previous` or, at first, the mean and covariance of the whole set.

    Args:
        features: (n, D) with n >= 1.
        labels: (n,) int64 in [0, num_classes).
        num_classes: number of classes.
        clusters_per_class: m, components of each class.
        covariance: the family.
        previous: an earlier result of the same shape, for a warm start.
        generator: source of randomness; a new one with seed 0 when left out.
        tol: see `GaussianMixture`, as for the following.
        max_iter: iterations of each class.
        reg_covar: added to every variance.
        shrinkage: of full covariances towards their diagonal.

    Raises:
        ConfigError: a setting without meaning.
        FeatureError: features or labels of a wrong shape or dtype, labels out of range, or a `previous` of another
            shape or family.
    """
    check_positive(num_classes=num_classes, clusters_per_class=clusters_per_class)
    check_features(features)
    check_finite(features)
    labels = check_labels(labels, len(features), num_classes)
    source = seeded(generator)

    def mixture(k: int) -> GaussianMixture:
        return GaussianMixture(k, covariance, tol=tol, max_iter=max_iter, reg_covar=reg_covar, shrinkage=shrinkage)

    result = mixture(num_classes * clusters_per_class)
    if previous is not None:
        start = previous._fitted()
        if (previous.k, previous.covariance, start.means.shape[1]) != (
            result.k,
            covariance,
            features.shape[1],
        ):
            raise FeatureError(
                f"the previous mixture has {previous.k} {previous.covariance} components in {start.means.shape[1]} "
                f"dimensions, which does not fit {result.k} {covariance} ones in {features.shape[1]}; leave it out"
            )
    parts: list[Parameters] = []
    bound, iterations, converged = 0.0, 0, True
    order, counts, ends = sorted_clusters(labels, num_classes)
    for c, count in enumerate(counts.tolist()):
        own = None
        if previous is not None:
            block = slice(c * clusters_per_class, (c + 1) * clusters_per_class)
            own = Parameters(start.weights[block], start.means[block], start.covariances[block])
        if count == 0:
            parts.append(_absent(own, features, mixture(1), clusters_per_class))
            continue
        if own is not None and float(own.weights.sum()) > 0:
            own = own._replace(weights=own.weights / own.weights.sum())
        else:
            own = None
        rows = features[order[ends[c] - count : ends[c]]]
        fitted = mixture(clusters_per_class).fit(rows, init=own, generator=source)
        share = count / len(features)
        parts.append(Parameters(fitted.weights_ * share, fitted.means_, fitted.covariances_))
        bound += share * (fitted.lower_bound_ + math.log(share))
        iterations, converged = max(iterations, fitted.n_iter_), converged and fitted.converged_
    result.weights_, result.means_, result.covariances_ = (torch.cat(part) for part in zip(*parts, strict=True))
    result.lower_bounds_, result.n_iter_, result.converged_ = [bound], iterations, converged
    return result


def _absent(own: Parameters | None, features: Tensor, whole: GaussianMixture, clusters: int) -> Parameters:
    """Components of a class without samples: the earlier ones, or copies of the whole set's Gaussian; weight 0."""
    if own is None:
        whole.max_iter = 1
        assignment = torch.zeros(len(features), dtype=torch.int64, device=features.device)
        fitted = whole.fit(features, init=assignment)._fitted()
        own = Parameters(*(part.repeat(clusters, *[1] * (part.ndim - 1)) for part in fitted))
    return own._replace(weights=torch.zeros_like(own.weights))
