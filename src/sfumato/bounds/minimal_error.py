"""From what z leaves unknown to the error of every reconstruction: Propositions 1 and 2, Theorem 1, and its ratio."""

import math

import torch
from torch import Tensor

from sfumato.bounds._inputs import ArrayLike, Family, as_tensors, broadcast, covariance_form, require_dim
from sfumato.errors import FeatureError


def floor_ratio(information: ArrayLike, dim: int) -> Tensor:
    """Floor of Theorem 1 with I nats released, over the floor with nothing released, `exp(-2 I / d)`.

    `minimal_mse(H(x) - I, d) / minimal_mse(H(x), d)`: H(x), which nobody knows for real images, cancels.

    Assumption: `information` is an upper bound on I(z; z_hat); the ratio then is a lower bound on the ratio of the
    floors. It is *relative*: it says how far the floor has sunk, not where it is, and no error of an attack can be
    compared with it.

    Args:
        information: I >= 0 in nats; any shape. Infinity (no noise) gives 0.
        dim: d, the number of input dimensions.

    Returns:
        The ratio in [0, 1], same shape. I = 0 gives 1; I = d log(2) / 2 gives 1/2.

    Raises:
        FeatureError: NaN or negative information.
        ConfigError: `dim` is not a positive integer.

    >>> print(f"{floor_ratio(2.0, dim=4):.4f}")  # 1 / e
    0.3679
    """
    (nats,) = as_tensors(information=information)
    if bool((nats.detach() < 0).any()) or bool(torch.isnan(nats.detach()).any()):
        raise FeatureError("information holds NaN or negative values; pass an upper bound on I(z; z_hat) in nats")
    return torch.exp(-2 * nats / require_dim(dim))


def minimal_mse(conditional_entropy: ArrayLike, dim: int) -> Tensor:
    """Smallest mean squared error of any reconstruction, `xi >= exp(2 H(x|z) / d) / (2 pi e)` (Theorem 1).

    xi is the error per input dimension, `E|x - x_hat(z)|^2 / d`, of the best estimator there is, the
    posterior mean: no attack that sees z only does better on average over the data.

    Assumption: H(x|z) is the true conditional differential entropy, or a lower bound of it, of an x that has
    a density. With the H(x) of an unknown data distribution replaced by an estimate the result is relative,
    not a guarantee; 8-bit pixels have H(x) = -inf unless they are dequantised.

    Args:
        conditional_entropy: H(x|z) in nats, over all d dimensions; any shape.
        dim: d, the number of input dimensions (3072 for a 32 x 32 colour image).

    Returns:
        The bound, same shape. `H = -inf` (x is determined by z) gives 0; `H = d/2 log(2 pi e v)`, a Gaussian
        posterior of variance v in each direction, gives v, and there the bound is attained.

    Raises:
        FeatureError: NaN.
        ConfigError: `dim` is not a positive integer.

    >>> print(f"{minimal_mse(1.4189385, dim=1):.4f}")  # the entropy of N(0, 1)
    1.0000
    """
    (entropy,) = as_tensors(conditional_entropy=conditional_entropy)
    _require_no_nan("conditional_entropy", entropy)
    # Divided before exp: images have entropies of thousands of nats.
    return torch.exp(2 * entropy / require_dim(dim)) / (2 * math.pi * math.e)


def maximal_conditional_entropy(mse: ArrayLike, dim: int) -> Tensor:
    """Theorem 1 read backwards: an error xi that was reached proves `H(x|z) <= d/2 log(2 pi e xi)`.

    The inverse of `minimal_mse`. Any attack whose expected error per dimension is xi shows that no more than
    this conditional entropy can be left.

    Assumption: xi is the expected error; one measured on few samples may lie below it by chance.

    Args:
        mse: xi, the mean squared error per input dimension, >= 0; any shape.
        dim: d, the number of input dimensions.

    Returns:
        The bound on H(x|z) in nats, same shape. `xi = 0` gives -inf, `xi = 1 / (2 pi e)` gives 0.

    Raises:
        FeatureError: NaN or a negative error.
        ConfigError: `dim` is not a positive integer.

    >>> print(f"{maximal_conditional_entropy(1.0, dim=1):.4f}")
    1.4189
    """
    (error,) = as_tensors(mse=mse)
    _require_no_nan("mse", error)
    if bool((error.detach() < 0).any()):
        raise FeatureError("mse holds negative values; pass mean squared errors, not decibels or logarithms")
    return require_dim(dim) / 2 * torch.log(2 * math.pi * math.e * error)


def posterior_mse(posterior_covariance: ArrayLike, *, family: Family = "full", dim: int | None = None) -> Tensor:
    """Exact minimal error when the posterior is known, `xi = E_z[Tr Cov(x|z)] / d` (Proposition 1, Eq. 1).

    Assumption: the covariances are those of the true posterior, at samples of z drawn from its distribution;
    the mean over them then estimates the expectation.

    Args:
        posterior_covariance: Cov(x|z), one per sample of z or a single one: (..., d, d) for `family="full"`,
            (..., d) variances for "diagonal", (...) one variance for "spherical".
        family: how to read the axes of `posterior_covariance`.
        dim: d, needed for "spherical" only.

    Returns:
        A 0-d tensor, averaged over all leading axes: the squared error per dimension of the posterior mean.

    Raises:
        FeatureError: wrong shape, no sample at all, NaN, not symmetric, or negative variances.
        ConfigError: unknown family, `dim` missing or contradicting the shape.

    >>> float(posterior_mse([[2.0, 0.0], [0.0, 4.0]]))
    3.0
    """
    (values,) = as_tensors(posterior_covariance=posterior_covariance)
    if values.numel() == 0:
        raise FeatureError("posterior_covariance is empty; pass the covariance of at least one sample")
    form, full = covariance_form(values, family, dim, name="posterior_covariance")
    # The mean of a diagonal is its trace over d; samples are averaged at the same time.
    return (form.diagonal(dim1=-2, dim2=-1) if full else form).mean()


def conditional_entropy(input_entropy: ArrayLike, information: ArrayLike) -> Tensor:
    """What z leaves unknown about the input, `H(x|z) = H(x) - I(z; z_hat)` (Proposition 2, Eq. 2).

    Assumption: z_hat is a deterministic function of x and z = z_hat + eps with noise independent of x, so
    that `I(x; z) = I(z_hat; z)`. With an upper bound on the information, such as `mixture_information`, the
    result is a lower bound on H(x|z) (Eq. 3). It is relative wherever H(x) is an estimate.

    Args:
        input_entropy: H(x) in nats, over all d dimensions; any shape.
        information: I(z; z_hat) in nats; broadcast against `input_entropy`.

    Returns:
        H(x|z) in nats. Zero information gives H(x).

    Raises:
        FeatureError: NaN, or shapes that cannot be broadcast.

    >>> float(conditional_entropy(10.0, 4.0))
    6.0
    """
    entropy, known = as_tensors(input_entropy=input_entropy, information=information)
    _require_no_nan("input_entropy", entropy)
    _require_no_nan("information", known)
    entropy, known = broadcast(input_entropy=entropy, information=known)
    return entropy - known


def _require_no_nan(name: str, tensor: Tensor) -> None:
    if bool(torch.isnan(tensor.detach()).any()):
        raise FeatureError(f"{name} holds NaN; find the step that produced it first")
