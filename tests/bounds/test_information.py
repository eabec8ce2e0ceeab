import numpy as np
import pytest
import torch
from bounds_oracles import linear_gaussian, sampled_information, simplex, spd, theorem_2_by_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr
from scipy.stats import norm

from sfumato.bounds import mixture_information
from sfumato.errors import ConfigError, FeatureError

seeds = st.integers(0, 10_000)
sizes = st.integers(1, 5)
quick = settings(max_examples=20, deadline=None)


def test_literals():
    # log 2 + 1/2 * 1/2 log 2 * 2 + 1/2 * 1/2 log 4 * 2 over two dimensions
    information = mixture_information([0.5, 0.5], [1.0, 3.0], 1.0, dim=2)
    assert information.item() == pytest.approx(1.7328679513998633, rel=1e-12)
    assert mixture_information([1.0], [[0.0, 0.0]], 0.01).item() == 0.0
    assert mixture_information([0.25] * 4, [0.0] * 4, 0.01, dim=9).item() == pytest.approx(1.3862943611198906)


@given(seed=seeds, k=sizes, dim=sizes, noise=st.sampled_from(["scalar", "diagonal", "full"]))
@quick
def test_every_form_equals_a_loop_over_eigenvalues(seed, k, dim, noise):
    pi, full = simplex(seed, k), spd(seed, k, dim)
    sigma_p = {
        "scalar": torch.tensor(0.3),
        "diagonal": spd(seed + 1, 1, dim)[0].diag(),
        "full": spd(seed + 1, 1, dim)[0],
    }
    for sigma in (full, full.diagonal(dim1=-2, dim2=-1), full[:, 0, 0]):
        value = mixture_information(pi, sigma, sigma_p[noise], dim=dim)
        expected = theorem_2_by_loop(pi, sigma, sigma_p[noise], dim)
        assert value.item() == pytest.approx(expected, rel=1e-6 if noise == "scalar" else 1e-9, abs=1e-9)


@given(seed=seeds, d=sizes, dim=sizes)
@quick
def test_one_component_is_exact_for_a_gaussian(seed, d, dim):
    channel = linear_gaussian(seed, d, dim)
    value = mixture_information([1.0], channel.feature_covariance[None], channel.noise)
    assert value.item() == pytest.approx(channel.input_entropy - channel.left_entropy, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("distance", [0.0, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("family", ["full", "diagonal", "spherical"])
def test_bound_holds_for_sampled_mixtures_and_is_tight_when_they_are_apart(distance, family):
    pi, full = np.array([0.2, 0.5, 0.3]), spd(7, 3, 2)
    sigma = {"full": full, "diagonal": full.diagonal(dim1=-2, dim2=-1), "spherical": full[:, 0, 0]}[family]
    means = distance * np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    noise = np.array([[0.3, 0.1], [0.1, 0.2]])
    exact, error = sampled_information(3, 20_000, pi, means, sigma.numpy(), noise)
    bound = mixture_information(pi, sigma, noise, dim=2).item()
    assert bound >= exact - 3 * error
    if distance == 40.0:
        assert bound == pytest.approx(exact, abs=4 * error)
    if distance == 0.0:
        assert bound > exact + 10 * error


def test_holds_for_a_hard_clustering_that_is_no_mixture():
    # z_hat is uniform on [0, 1], cut into 4 equal intervals: variance (1/4)^2 / 12 each. The density of z is
    # known, so I(z; z_hat) is an integral on a grid.
    sigma, grid = 0.05, np.linspace(-0.5, 1.5, 200_001)
    density = norm.cdf(grid / sigma) - norm.cdf((grid - 1) / sigma)
    exact = np.trapezoid(entr(density), grid) - norm(scale=sigma).entropy()
    bound = mixture_information([0.25] * 4, [1 / 192] * 4, sigma**2, dim=1).item()
    assert exact == pytest.approx(1.667, abs=0.03)  # log(1 / (sigma sqrt(2 pi e))) + 1.8 sigma
    assert exact < bound < exact + 0.8


@given(seed=seeds, k=st.integers(2, 5), dim=sizes)
@quick
def test_order_of_components_is_irrelevant(seed, k, dim):
    pi, sigma = simplex(seed, k), spd(seed, k, dim)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    value = mixture_information(pi, sigma, 0.2)
    torch.testing.assert_close(mixture_information(pi[order], sigma[order], 0.2), value)


@given(seed=seeds, k=sizes, dim=sizes)
@quick
def test_weight_zero_is_the_same_as_absent(seed, k, dim):
    pi, sigma = simplex(seed, k), spd(seed, k, dim)
    expected = mixture_information(pi, sigma, 0.2)
    wide = torch.cat([pi, torch.zeros(1).double()]).requires_grad_()
    with_nan = torch.cat([sigma, torch.full((1, dim, dim), torch.nan).double()]).requires_grad_()
    value = mixture_information(wide, with_nan, 0.2)
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
    value.backward()
    assert wide.grad[-1] == 0
    assert torch.isfinite(wide.grad).all()
    assert (with_nan.grad[-1] == 0).all()
    assert torch.isfinite(with_nan.grad).all()


@given(seed=seeds, k=sizes, dim=st.integers(2, 6))
@quick
def test_poorer_families_stay_above_under_isotropic_noise(seed, k, dim):
    pi, full = simplex(seed, k), spd(seed, k, dim)
    diagonal = full.diagonal(dim1=-2, dim2=-1)
    values = [mixture_information(pi, c, 0.1, dim=dim).item() for c in (full, diagonal, diagonal.mean(-1))]
    assert values[0] < values[1] <= values[2] + 1e-12
    unequal = torch.linspace(0.1, 2.0, dim).double()
    assert mixture_information(pi, full, unequal) < mixture_information(pi, diagonal, unequal)


def test_poorer_families_may_fall_below_under_other_noise():
    # By hand: |Sigma + Sigma_p| is 4 in full form, 4 - 0.25 from the variances.
    sigma, sigma_p = torch.tensor([[[1.0, -0.5], [-0.5, 1.0]]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    full = mixture_information([1.0], sigma, sigma_p)
    assert mixture_information([1.0], torch.ones(1, 2), sigma_p) < full
    # (3 + 1)(1 + 3) = 16 in diagonal form, (2 + 1)(2 + 3) = 15 from the mean variance.
    diagonal = mixture_information([1.0], [[3.0, 1.0]], [1.0, 3.0])
    assert mixture_information([1.0], [2.0], [1.0, 3.0], dim=2) < diagonal


@given(seed=seeds, k=sizes, dim=sizes)
@quick
def test_forms_that_mean_the_same_agree(seed, k, dim):
    pi, variance = simplex(seed, k), spd(seed, k, 1)[:, 0, 0]
    diagonal = variance[:, None].expand(k, dim)
    spherical = mixture_information(pi, variance, 0.2, dim=dim)
    for sigma in (diagonal, torch.diag_embed(diagonal)):
        for noise in (0.2, [0.2] * dim, 0.2 * np.eye(dim)):
            torch.testing.assert_close(mixture_information(pi, sigma, noise), spherical)


def test_square_diagonal_form_is_read_by_its_axes():
    value = mixture_information([0.5, 0.5], [[1.0, 1.0], [1.0, 1.0]], 1.0)
    assert value.item() == pytest.approx(1.3862943611198906)  # log 2 + log 2, not a (D, D) matrix


def test_ideal_limit_leaves_the_entropy_of_the_labels():
    # Section 3.4: k = n, Sigma_i << Sigma_p -> 0. H(y) of (0.1, 0.2, 0.7) is 0.8018186 nats.
    for noise in (1e-2, 1e-6, 1e-10):
        value = mixture_information([0.1, 0.2, 0.7], [noise * 1e-6] * 3, noise, dim=8)
        assert value.item() == pytest.approx(0.8018185525433373, abs=1e-5)


def test_leading_axes_are_a_batch():
    pi, sigma = torch.stack([simplex(0, 3), simplex(1, 3)]), spd(2, 6, 4).reshape(2, 3, 4, 4)
    for form in (sigma, sigma.diagonal(dim1=-2, dim2=-1), sigma[..., 0, 0]):
        together = mixture_information(pi, form, 0.2, dim=4)
        assert together.shape == (2,)
        torch.testing.assert_close(together[1], mixture_information(pi[1], form[1], 0.2, dim=4))


def test_gradient_is_the_weighted_inverse():
    pi, sigma = simplex(3, 3), spd(3, 3, 4).requires_grad_()
    noise = spd(4, 1, 4)[0]
    mixture_information(pi, sigma, noise).backward()
    for j in range(3):
        expected = pi[j].item() / 2 * np.linalg.inv(sigma[j].detach().numpy() + noise.numpy())
        np.testing.assert_allclose(sigma.grad[j], expected, rtol=1e-9)


@pytest.mark.parametrize("noise", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize("family", ["full", "diagonal", "spherical"])
def test_gradcheck(family, noise):
    full = spd(5, 2, 3)
    sigma = {"full": full, "diagonal": full.diagonal(dim1=-2, dim2=-1), "spherical": full[:, 0, 0]}[family]
    matrix = spd(6, 1, 3)[0]
    sigma_p = {"scalar": matrix[0, 0], "diagonal": matrix.diag(), "full": matrix}[noise]
    inputs = [t.clone().requires_grad_() for t in (simplex(5, 2), sigma, sigma_p)]
    assert torch.autograd.gradcheck(lambda w, s, p: mixture_information(w, s, p, dim=3), inputs)


@pytest.mark.parametrize("dim", [2, 40])
def test_float32_follows_float64_with_singular_covariances(dim):
    features = torch.rand(3, 12, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred = features - features.mean(1, keepdim=True)
    sigma = centred.mT @ centred / 12  # rank 11 at most
    wide = mixture_information([0.2, 0.3, 0.5], sigma, 0.025**2)
    narrow = mixture_information([0.2, 0.3, 0.5], sigma.float(), 0.025**2)
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(wide.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (([1.0], [1.0], 1.0), {}, ConfigError, "cannot be told from spherical covariances; pass dim=D"),
        (
            ([1.0], [[1.0, 1.0]], 0.0),
            {},
            ConfigError,
            "variance of 0: .* not bounded; pass a positive variance",
        ),
        (([1.0], [[1.0, 1.0]], 1.0), {"dim": 3}, ConfigError, "dim=3 contradicts"),
        (
            ([0.5, 0.6], [1.0, 1.0], 1.0),
            {"dim": 2},
            FeatureError,
            "do not sum to 1; divide them by their sum",
        ),
        (([1.5, -0.5], [1.0, 1.0], 1.0), {"dim": 2}, FeatureError, "weights hold negative values"),
        (([float("nan"), 1.0], [1.0, 1.0], 1.0), {"dim": 2}, FeatureError, "weights holds? NaN or infinite"),
        ((1.0, [1.0], 1.0), {"dim": 2}, FeatureError, r"weights have shape \(\); pass \(k,\)"),
        (
            ([0.5, 0.5], [1.0], 1.0),
            {"dim": 2},
            FeatureError,
            r"weights \(2,\) and covariances \(1,\) do not match",
        ),
        (([1.0], np.ones((1, 1, 2, 2)), 1.0), {}, FeatureError, r"\(k, D, D\) full, \(k, D\) diagonal or"),
        (([1.0], np.ones((1, 2, 3)), 1.0), {}, FeatureError, "cannot be read as"),
        (([1.0], [[1.0, float("inf")]], 1.0), {}, FeatureError, "NaN or infinite"),
        (
            ([0.5, 0.5], [np.eye(2), [[1.0, 9.0], [9.0, 1.0]]], 1.0),
            {},
            FeatureError,
            "covariance 1 is not positive",
        ),
    ],
)
def test_mistakes_are_explained(arguments, options, error, match):
    with pytest.raises(error, match=match):
        mixture_information(*arguments, **options)
