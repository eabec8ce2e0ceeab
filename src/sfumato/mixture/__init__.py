"""Mixtures of features: hard partitions with exact moments, EM, and the running update of the paper.

`Partition` and `moments` are what the loss uses: Theorem 2 holds for the moments of any hard partition.
`expectation_maximization` is for Algorithm 1 as printed alone (`CEM(fit="em")`).
`update_weights` and `update_covariances` are Eq. 5 and Eq. 6.
"""

from sfumato.mixture.clusters import Clusters
from sfumato.mixture.em import Parameters, expectation_maximization
from sfumato.mixture.families import (
    Covariance,
    Moments,
    batch_covariances,
    check_covariance,
    moments,
    subtract_noise,
    update_covariances,
    update_weights,
)
from sfumato.mixture.held_out import HeldOutInformation, held_out_information
from sfumato.mixture.kmeans import KMeansResult, kmeans, kmeans_plus_plus, nearest
from sfumato.mixture.partition import Partition

__all__ = [
    "Clusters",
    "Covariance",
    "HeldOutInformation",
    "KMeansResult",
    "Moments",
    "Parameters",
    "Partition",
    "batch_covariances",
    "check_covariance",
    "expectation_maximization",
    "held_out_information",
    "kmeans",
    "kmeans_plus_plus",
    "moments",
    "nearest",
    "subtract_noise",
    "update_covariances",
    "update_weights",
]
