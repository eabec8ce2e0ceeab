"""How often an attacker can be right at most, in absolute terms: certificates that need no entropy of the data."""

import torch
from torch import Tensor

from sfumato.bounds._inputs import ArrayLike, as_tensors, broadcast
from sfumato.errors import ConfigError
from sfumato.noise import Noise

# Each halves an interval of at most 1: the last one is far below the distance of two float64 numbers around 1e-12.
_HALVINGS = 100


def success_at_most(prior: ArrayLike, information: ArrayLike) -> Tensor:
    r"""Success of any attacker who sees what carries I nats: the largest p >= kappa with `KL(p || kappa) <= I`.

        KL(p || kappa) = p log(p / kappa) + (1 - p) log((1 - p) / (1 - kappa))

    kappa is the success of the best attacker who sees nothing: 1 / N for naming the one of N equally likely images,
    the share of the commonest class for reading the class. Whatever counts as a success (an image named, an
    attribute read, an image reconstructed to within some error) and however the attacker computes, it succeeds with
    probability at most p.

    Proof. Let x be the secret, z what was released for it, and B = 1 where the attacker's answer, computed from z and
    from randomness of its own, succeeds. Under the true law P of (x, z), B = 1 with probability p. Under the product
    of the marginals of x and z the answer knows nothing of x, so B = 1 with probability q <= kappa. B is a function
    of (x, z) and independent randomness, so by data processing `KL(p || q) <= KL(P_xz || P_x P_z) = I(x; z)`, and
    `I(x; z) <= I(z_hat; z)` because z depends on x through z_hat only. For q <= kappa <= p, `KL(p || kappa) <= KL(p ||
    q)`. Candidates that the attacker knows change nothing: with C the N candidates, J the index sent and z_hat = C_J,
    `I(J; z | C) <= I(J, C; z) = I(z_hat; z)`, and KL is convex in p, which carries the bound over the mean over C.

    Source: Xiao and Devadas, PAC Privacy, CRYPTO 2023 (theorem 1, with the Kullback-Leibler divergence); for N equal
    candidates it is Fano's inequality.

    Assumption: `information` is at least I(z_hat; z), in the mean over the distribution that the secrets are drawn
    from, so p is a mean over it too: a rare input may be recognised more often. For K fresh queries of one input
    pass the information at noise_std / sqrt(K).

    Args:
        prior: kappa in [0, 1]; any shape.
        information: I >= 0 in nats, infinity included; broadcast against `prior`.

    Returns:
        p in float64, in the broadcast shape, rounded up by at most 1e-12. No gradient. I = 0 gives kappa;
        I >= -log kappa gives 1; kappa = 0 gives 0 for any finite I.

    Raises:
        ConfigError: a prior outside [0, 1], negative information, or NaN.
        FeatureError: shapes that cannot be broadcast, or values that are not numeric.

    Example:
        >>> import sfumato
        >>> print(f"{sfumato.bounds.success_at_most(1 / 359, 3.0):.4f}")
        0.6224
    """
    kappa, nats = _doubles(prior=prior, information=information)
    _require_prior(kappa)
    if not bool((nats >= 0).all()):
        raise ConfigError("information is negative or NaN; pass an upper bound on I(z; z_hat) in nats, at least 0")
    low, room = torch.zeros_like(kappa), 1 - kappa
    high = room.clone()
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # In the excess d = p - kappa and log1p, because the two terms cancel where d is small. xlog1py gives 0 log 0.
        divergence = torch.special.xlog1py(kappa + middle, middle / kappa) + torch.special.xlog1py(
            room - middle, -middle / room
        )
        above = divergence > nats
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    found = (kappa + high).clamp(max=1)
    found = torch.where(nats == 0, kappa, found)
    found = torch.where((kappa > 0) | (nats == torch.inf), found, torch.zeros_like(found))
    return torch.where(nats >= -kappa.log(), torch.ones_like(found), found)


def clipped_success_at_most(prior: ArrayLike, radius: ArrayLike, noise_std: ArrayLike | Noise) -> Tensor:
    r"""Success of any attacker on a clipped feature, for every input: `Phi(Phi^-1(kappa) + R / sigma)`.

    Phi is the standard normal distribution function, kappa the success of the best attacker who sees nothing (see
    `success_at_most`), R the norm that the device enforces and sigma the standard deviation of its noise.

    Proof. Let the secret be i with probability w_i, its feature z_i with `|z_i| <= R`, and a_i(z) the probability
    that the attacker's answer to z succeeds for i. Compare z ~ N(z_i, sigma^2 I) with N(0, sigma^2 I), which says
    nothing of i. By the lemma of Neyman and Pearson the best test between the two is a threshold along z_i, so
    `E_i a_i <= G(E_0 a_i)` with `G(t) = Phi(Phi^-1(t) + R / sigma)`. G is increasing and concave, hence `sum_i w_i E_i
    a_i <= G(sum_i w_i E_0 a_i) <= G(kappa)`, since an answer to N(0, sigma^2 I) is a blind one.

    Source: Dong, Roth and Su, Gaussian differential privacy, JRSS B 2022 (the trade-off function with mu = R / sigma).

    Assumption: `|z_hat|_2 <= R` is enforced on the device (the ball may have any fixed centre), and eps ~ N(0, sigma^2
    I) is drawn afresh, independent of everything. Nothing is assumed about the data: any N inputs, chosen by
    an adversary, are named with probability G(1 / N) at most in their mean. For K fresh queries pass
    noise_std / sqrt(K).

    Noise of a covariance Sigma_p (`sfumato.Noise`): the test between N(z_i, Sigma_p) and N(0, Sigma_p) has the power of
    the Mahalanobis distance `|Sigma_p^-1/2 z_i| <= R / sigma` with sigma^2 the smallest eigenvalue of Sigma_p. Where a
    direction has no noise the certificate is void: the bound is 1.

    Args:
        prior: kappa in [0, 1]; any shape.
        radius: R >= 0; broadcast against `prior`.
        noise_std: sigma >= 0; broadcast against both; or a `sfumato.Noise`.

    Returns:
        The bound in float64, in the broadcast shape. R = 0 gives kappa, sigma = 0 gives 1 (nothing is certified).

    Raises:
        ConfigError: a prior outside [0, 1], a negative radius or noise, or NaN.
        FeatureError: shapes that cannot be broadcast, or values that are not numeric.

    Example:
        >>> import sfumato
        >>> print(f"{sfumato.bounds.clipped_success_at_most(1 / 359, radius=1.0, noise_std=0.5):.4f}")
        0.2201
    """
    level = noise_std.smallest if isinstance(noise_std, Noise) else noise_std
    kappa, bound, sigma = _doubles(prior=prior, radius=radius, noise_std=level)
    _require_prior(kappa)
    if not bool((bound >= 0).all()):
        raise ConfigError("radius is negative or NaN; pass the largest norm |z_hat|_2 that the clipping lets pass")
    if not bool((sigma >= 0).all()):
        raise ConfigError("noise_std is negative or NaN; pass the standard deviation of the noise, at least 0")
    found = torch.special.ndtr(torch.special.ndtri(kappa) + bound / sigma)
    return torch.where(sigma > 0, found, torch.ones_like(found))


def _doubles(**named: ArrayLike) -> tuple[Tensor, ...]:
    """Detached float64 tensors of one shape on one device."""
    device = as_tensors(**named)[0].device
    # One by one: float64 beside a float32 tensor stays what it was.
    wide = {name: as_tensors(**{name: value})[0].detach().to(device, torch.float64) for name, value in named.items()}
    return broadcast(**wide)


def _require_prior(prior: Tensor) -> None:
    if not bool(((prior >= 0) & (prior <= 1)).all()):
        raise ConfigError(
            "prior is not a probability; pass the success of the best guess without the feature, such as 1 / N"
        )
