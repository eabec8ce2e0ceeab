"""What a released feature tells about its input, locally: Fisher information of the Gaussian channel, dFIL, and the
Bayesian Cramer-Rao bound of van Trees, a floor under every attack's mean error when the prior is declared.
"""

import torch
from torch import Tensor

from sfumato.bounds._channel import noise_root
from sfumato.bounds._inputs import ArrayLike, as_tensors, noise_form, require_finite
from sfumato.errors import ConfigError, FeatureError

_ROWS_AT_ONCE = 4096


def fisher_factor(jacobians: ArrayLike, noise_covariance: ArrayLike) -> Tensor:
    """A factor F of the mean Fisher information, `F^T F = E[J(x)^T Sigma_p^-1 J(x)]`, by whitening the Jacobians.

    Args:
        jacobians: (n, D, d), J = d z_hat / d x at n inputs.
        noise_covariance: Sigma_p, positive definite: a variance (number or 0-d), (D,) variances or (D, D).

    Returns:
        (n D, d), the rows of Sigma_p^-1/2 J(x_i) / sqrt(n), image after image.

    Raises:
        FeatureError: the Jacobians have another shape, are empty, or hold NaN.
        ConfigError: a noise covariance that is not positive definite or has the wrong shape.

    >>> fisher_factor([[[2.0]]], 4.0).tolist()  # a slope of 2 through noise of variance 4
    [[1.0]]
    """
    white = _whitened(jacobians, noise_covariance)
    return white.reshape(-1, white.shape[2]) / len(white) ** 0.5


def fisher_information(jacobians: ArrayLike, noise_covariance: ArrayLike) -> Tensor:
    """Mean Fisher information about the input, `J_D = E[J(x)^T Sigma_p^-1 J(x)]`, per unit of x squared.

    z given x is N(z_hat(x), Sigma_p), whose Fisher information about x is J^T Sigma_p^-1 J; the mean runs over the n
    inputs given. K releases of the same input with independent noise have K times this information.

    Args:
        jacobians: (n, D, d), J = d z_hat / d x at n inputs drawn from the distribution of x.
        noise_covariance: Sigma_p, positive definite: a variance (number or 0-d), (D,) variances or (D, D).

    Returns:
        (d, d), symmetric and positive semidefinite.

    Raises:
        FeatureError: the Jacobians have another shape, are empty, or hold NaN.
        ConfigError: a noise covariance that is not positive definite or has the wrong shape.

    >>> fisher_information([[[6.0]]], 4.0).tolist()
    [[9.0]]
    """
    factor = fisher_factor(jacobians, noise_covariance)
    total = factor.new_zeros(factor.shape[1], factor.shape[1])
    # A sum over rows, some at a time: there are n D of them.
    for rows in factor.split(_ROWS_AT_ONCE):
        total = total + rows.mT @ rows
    return total


def dfil(jacobians: ArrayLike, noise_covariance: ArrayLike) -> Tensor:
    """Diagonal Fisher information leakage of each input, `dFIL(x) = Tr(J(x)^T Sigma_p^-1 J(x)) / d`.

    An *unbiased* reconstruction of this x has an error of at least 1 / dFIL per dimension (Cramer-Rao, and the harmonic
    mean lies below the arithmetic one; Maeng et al. 2023). Assumption: the attacker is unbiased. Every attacker that
    knows what images look like is biased towards them and may do far better, so 1 / dFIL limits none of the attacks of
    this library and decides nothing; it compares inputs with each other.

    Args:
        jacobians: (n, D, d), J = d z_hat / d x at n inputs.
        noise_covariance: Sigma_p, positive definite: a variance (number or 0-d), (D,) variances or (D, D).

    Returns:
        (n,), in 1 / (unit of x)^2. 0 where the feature does not depend on the input: then 1 / dFIL is infinite.

    Raises:
        FeatureError: the Jacobians have another shape, are empty, or hold NaN.
        ConfigError: a noise covariance that is not positive definite or has the wrong shape.

    >>> dfil([[[2.0, 0.0]]], 4.0).tolist()  # (2^2 / 4 + 0) / 2
    [0.5]
    """
    white = _whitened(jacobians, noise_covariance)
    return white.square().sum((1, 2)) / white.shape[2]


def _whitened(jacobians: ArrayLike, noise_covariance: ArrayLike) -> Tensor:
    """L^-1 J with L L^T = Sigma_p, (n, D, d)."""
    slopes, noise = as_tensors(jacobians=jacobians, noise_covariance=noise_covariance)
    if slopes.ndim != 3 or slopes.numel() == 0:
        raise FeatureError(
            f"jacobians have shape {tuple(slopes.shape)}; pass (n, D, d), the derivatives of the D feature values "
            "with respect to the d input values at n >= 1 inputs"
        )
    require_finite("jacobians", slopes)
    root = noise_root(noise_form(noise, slopes.shape[1]))
    if root.ndim == 2:
        return torch.linalg.solve_triangular(root, slopes, upper=False)
    return slopes / (root[:, None] if root.ndim else root)


def van_trees(data_information: ArrayLike, prior_information: ArrayLike) -> Tensor:
    """Smallest mean squared error per dimension of any estimator, `Tr((J_D + J_P)^-1) / d`.

    The matrix form is `E[(x - x_hat)(x - x_hat)^T] >= (J_D + J_P)^-1` (van Trees 1968, section 2.4.3) with
    J_D = E[J(x)^T Sigma_p^-1 J(x)], see `fisher_information`, and J_P = E[grad log p(x) grad log p(x)^T] the Fisher
    information of the prior's density p; for N(m, C) it is C^-1. It holds for biased estimators too, unlike dFIL.

    Assumptions: x is drawn from the declared prior, whose density vanishes smoothly at the edge of its support; the
    feature is an absolutely continuous function of x (networks of linear, ReLU and smooth layers are); the noise is
    Gaussian with covariance Sigma_p and independent of x. What happens to z after the noise (rounding, dropping) takes
    information away and leaves the bound true. For x from another distribution than the declared one (photographs
    against a Gaussian prior) the value is an illustration and no guarantee. J_D is an expectation: the value at the
    mean over a few inputs tends to lie above the bound, because the inverse is convex.

    Args:
        data_information: J_D, (d, d), symmetric and positive semidefinite.
        prior_information: J_P: a number (common to all directions), (d,) or (d, d); the sum must be positive definite.

    Returns:
        0-d, in the unit of x squared. J_D = 0 with J_P = C^-1 gives Tr C / d. In the linear-Gaussian case it is the
        exact minimal error.

    Raises:
        FeatureError: shapes that do not match, or NaN.
        ConfigError: the sum is not positive definite: some direction is seen neither by the prior nor in the feature.

    >>> print(f"{van_trees([[3.0]], [[1.0]]):.2f}")
    0.25
    """
    information, prior = as_tensors(data_information=data_information, prior_information=prior_information)
    if information.ndim != 2 or information.shape[0] != information.shape[1] or information.numel() == 0:
        raise FeatureError(f"data_information has shape {tuple(information.shape)}; pass (d, d)")
    require_finite("data_information", information)
    size = len(information)
    form = _prior_form(prior, size)
    # A J_D from samples is symmetric but for rounding, and Cholesky reads one triangle only.
    total = (information + information.mT) / 2 + (form if form.ndim == 2 else torch.diag_embed(form))
    root, info = torch.linalg.cholesky_ex(total)
    if bool((info != 0).any()):
        raise ConfigError(
            "J_D + J_P is not positive definite: a direction of the input is limited by neither; declare a prior with "
            "a finite variance in every direction, and compute in float64"
        )
    # Tr A^-1 = |L^-1|_F^2 with A = L L^T: the inverse itself is not needed.
    identity = torch.eye(size, dtype=root.dtype, device=root.device)
    return torch.linalg.solve_triangular(root, identity, upper=False).square().sum() / size


def van_trees_low_rank(factor: ArrayLike, prior_information: ArrayLike) -> Tensor:
    """`van_trees` for J_D = F^T F with few rows m in F and a diagonal J_P: an m x m system instead of a d x d one.

        Tr((P + F^T F)^-1) = Tr P^-1 - Tr((I + F P^-1 F^T)^-1 F P^-2 F^T)          (Woodbury), P = J_P

    Exact, and equal to `van_trees(F^T F, J_P)`. With F made of random projections of the Jacobians (rows v^T J with
    E[v v^T] = Sigma_p^-1) F^T F is an unbiased estimate of J_D, and the value, convex in it, errs upwards; more rows
    lower it towards the bound.

    Args:
        factor: F (m, d), see `fisher_factor`.
        prior_information: J_P > 0: a number or (d,).

    Returns:
        0-d, in the unit of x squared.

    Raises:
        FeatureError: shapes that do not match, or NaN.
        ConfigError: J_P is a matrix or not positive.

    >>> print(f"{van_trees_low_rank([[1.0, 0.0]], [1.0, 1.0]):.2f}")  # (1 / 2 + 1) / 2
    0.75
    """
    rows, prior = as_tensors(factor=factor, prior_information=prior_information)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise FeatureError(f"factor has shape {tuple(rows.shape)}; pass (m, d), one row per whitened derivative")
    require_finite("factor", rows)
    form = _prior_form(prior, rows.shape[1])
    if form.ndim == 2:
        raise ConfigError("the low-rank form needs a diagonal prior information (a number or (d,)); use van_trees")
    if not bool((form > 0).all()):
        raise ConfigError(
            "prior_information is not positive; declare a prior with a finite variance in every direction"
        )
    scaled = rows / form
    gram = scaled @ rows.mT
    # I + F P^-1 F^T has no eigenvalue below 1, so its factor exists whatever F is.
    gram = (gram + gram.mT) / 2 + torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    root = torch.linalg.cholesky(gram)
    # |L^-1 F P^-1|_F^2 is the second trace of the formula.
    gained = torch.linalg.solve_triangular(root, scaled, upper=False).square().sum()
    return ((1 / form).sum() - gained) / rows.shape[1]


def _prior_form(prior: Tensor, size: int) -> Tensor:
    """(d,) or (d, d)."""
    if tuple(prior.shape) not in {(), (size,), (size, size)}:
        raise FeatureError(
            f"prior_information has shape {tuple(prior.shape)} for inputs of {size} dimensions; "
            f"pass a number, ({size},) or ({size}, {size})"
        )
    require_finite("prior_information", prior)
    if prior.ndim == 2:
        return (prior + prior.mT) / 2
    return prior.expand(size)
