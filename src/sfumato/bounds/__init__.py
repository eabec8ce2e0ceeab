"""The paper's theorems as pure functions: batched, in nats, without state, and differentiable but for the certificates.

Every function takes Python numbers, lists, arrays or tensors and returns a tensor. What is assumed for a
value to be a bound stands in each docstring.
"""

from sfumato.bounds.certificates import clipped_success_at_most, success_at_most
from sfumato.bounds.fisher import dfil, fisher_factor, fisher_information, van_trees, van_trees_low_rank
from sfumato.bounds.geometry import Separation, separation
from sfumato.bounds.information import (
    clipped_power_information,
    gaussian_entropy,
    gaussian_information,
    mixture_information,
)
from sfumato.bounds.membership import cluster_posterior, own_cluster_posterior
from sfumato.bounds.minimal_error import (
    conditional_entropy,
    floor_ratio,
    maximal_conditional_entropy,
    minimal_mse,
    posterior_mse,
)

__all__ = [
    "Separation",
    "clipped_power_information",
    "clipped_success_at_most",
    "cluster_posterior",
    "conditional_entropy",
    "dfil",
    "fisher_factor",
    "fisher_information",
    "floor_ratio",
    "gaussian_entropy",
    "gaussian_information",
    "maximal_conditional_entropy",
    "minimal_mse",
    "mixture_information",
    "own_cluster_posterior",
    "posterior_mse",
    "separation",
    "success_at_most",
    "van_trees",
    "van_trees_low_rank",
]
