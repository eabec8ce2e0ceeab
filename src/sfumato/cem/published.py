"""The loss of the authors' released code, which is not the equation of the paper. For comparison."""

import math

import torch
from torch import Tensor


def published_loss(
    features: Tensor,
    assignment: Tensor,
    centres: Tensor,
    counts: Tensor,
    variances: Tensor,
    noise_variance: float,
    num_classes: int,
) -> Tensor:
    """The released variant of CEM, differentiable with respect to the features.

    With n_j samples of the batch in cluster j of class c, w_j the cluster's share of the class, u_j the mean squared
    distance per dimension of these samples to the cluster's centre and v_j its variance at the last refresh,

        mean over classes in the batch of sum_j w_j relu( log(v'_j + 0.01) - log(0.125 sigma^2 + 0.01) ),
        v'_j = f u_j + (1 - f) v_j,   f = min(10 n_j / (w_j N_class), 0.99),   N_class = N / classes,

    over the clusters present in the batch; v'_j is not carried over to the next one. Of Eq. 7 the term -log pi_j, the
    factor 1/2 and the determinant are dropped, and Eq. 5 is never applied.

    Args:
        features: (n, D).
        assignment: (n,) cluster of each feature.
        centres: (k, D).
        counts: (k,) samples per cluster at the last refresh.
        variances: (k,) v_j.
        noise_variance: sigma^2.
        num_classes: classes, each with k / num_classes consecutive clusters.

    Returns:
        A scalar without unit.
    """
    batch_counts = assignment.new_zeros(len(centres)).index_add_(0, assignment, torch.ones_like(assignment))
    present = batch_counts > 0
    squared = (features - centres[assignment]).square().mean(1)
    batch = torch.zeros_like(variances).index_add(0, assignment, squared) / batch_counts.clamp(min=1)
    in_class = counts.view(num_classes, -1).sum(1).repeat_interleave(len(centres) // num_classes)
    share = counts / in_class.clamp(min=1)
    expected = (share * (counts.sum() / num_classes)).clamp(min=1e-12)
    fraction = (10.0 * batch_counts / expected).clamp(max=0.99)
    variance = fraction * batch + (1.0 - fraction) * variances
    excess = torch.relu((variance + 0.01).log() - math.log(0.125 * noise_variance + 0.01))
    classes = present.view(num_classes, -1).any(1).sum()
    return (share * excess * present).sum() / classes
