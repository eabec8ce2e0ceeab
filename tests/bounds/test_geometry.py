import numpy as np
import pytest
import torch
from bounds_oracles import as_matrix, simplex, spd
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.bounds import separation
from sfumato.errors import ConfigError, FeatureError


def test_literals():
    found = separation([0.2, 0.3, 0.5], [[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], [1.0, 2.0, 5.0], 0.5)
    # Gaps 25, 1, 18; Tr Sigma_p = 1; traces 2, 4, 10.
    assert [value.item() for value in found] == pytest.approx([1.0, 1.0, 14.0, 1.0, 1 / 14])
    assert found.mean_gap.shape == ()


@given(
    seed=st.integers(0, 10_000),
    k=st.integers(2, 5),
    dim=st.integers(1, 4),
    family=st.sampled_from(["full", "diagonal", "spherical"]),
    noise=st.sampled_from(["scalar", "diagonal", "full"]),
)
@settings(max_examples=30, deadline=None)
def test_equals_a_loop_over_pairs(seed, k, dim, family, noise):
    full, means = spd(seed, k, dim), spd(seed + 1, k, dim)[:, 0]
    sigma = {"full": full, "diagonal": full.diagonal(dim1=-2, dim2=-1), "spherical": full[:, 0, 0]}[family]
    matrix = spd(seed + 2, 1, dim)[0]
    sigma_p = {"scalar": matrix[0, 0], "diagonal": matrix.diag(), "full": matrix}[noise]
    found = separation(simplex(seed, k), means, sigma, sigma_p)
    pairs = [(i, j) for i in range(k) for j in range(i)]
    gap = min(float(np.sum((means[i].numpy() - means[j].numpy()) ** 2)) for i, j in pairs)
    spread = max(np.trace(as_matrix(sigma[i], dim)) + np.trace(as_matrix(sigma[j], dim)) for i, j in pairs)
    power = np.trace(as_matrix(sigma_p, dim))
    expected = [gap, power, spread, gap / power, power / spread]
    assert [value.item() for value in found] == pytest.approx(expected, rel=1e-9)


def test_empty_components_are_left_out():
    found = separation([0.5, 0.0, 0.5], [[0.0], [np.nan], [2.0]], [[1.0], [np.nan], [1.0]], 1.0)
    assert [value.item() for value in found] == [4.0, 1.0, 2.0, 4.0, 0.5]


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0]])
def test_a_lone_component_has_no_neighbour(weights):
    k = len(weights)
    found = separation(weights, [[0.0]] * k, [3.0] * k, 1.0)
    assert [value.item() for value in found] == [float("inf"), 1.0, 6.0, float("inf"), pytest.approx(1 / 6)]


def test_ratios_of_zeros():
    ideal = separation([0.5, 0.5], [[0.0], [1.0]], [0.0, 0.0], 0.0)
    assert (ideal.gap_over_noise.item(), ideal.noise_over_spread.item()) == (float("inf"), 1.0)
    assert separation([0.5, 0.5], [[0.0], [1.0]], [0.0, 0.0], 0.1).noise_over_spread.item() == float("inf")


def test_close_means_far_from_the_origin_keep_their_gap():
    means = torch.tensor([[3000.0, 0.0], [3000.25, 0.0]])
    assert separation([0.5, 0.5], means, [1.0, 1.0], 1.0).mean_gap.item() == 0.0625


def test_many_components_need_no_pairwise_tensor():
    # (k, k, D) in float32 would be 4 GB.
    found = separation(torch.full((500,), 2e-3), torch.eye(500, 4000), torch.ones(500), 1.0)
    assert found.mean_gap.item() == pytest.approx(2.0)


def test_leading_axes_are_a_batch():
    pi, means, sigma = (
        torch.stack([simplex(0, 3), simplex(1, 3)]),
        spd(1, 2, 3),
        spd(2, 6, 3).reshape(2, 3, 3, 3),
    )
    together = separation(pi, means, sigma, 0.3)
    alone = separation(pi[1], means[1], sigma[1], 0.3)
    for batch, single in zip(together, alone, strict=True):
        assert batch.shape == (2,)
        torch.testing.assert_close(batch[1], single)


@pytest.mark.parametrize("noise", ["scalar", "diagonal", "full"])
def test_gradcheck(noise):
    matrix = spd(3, 1, 4)[0]
    sigma_p = {"scalar": matrix[0, 0], "diagonal": matrix.diag(), "full": matrix}[noise]
    inputs = [t.clone().requires_grad_() for t in (spd(4, 1, 4)[0], spd(5, 4, 4), sigma_p)]
    assert torch.autograd.gradcheck(lambda m, s, p: tuple(separation(simplex(3, 4), m, s, p)), inputs)


def test_coinciding_means_have_a_finite_gradient():
    means = torch.zeros(2, 3, requires_grad=True)
    separation([0.5, 0.5], means, [1.0, 1.0], 1.0).mean_gap.backward()
    assert (means.grad == 0).all()


def test_float32_follows_float64():
    pi, means, sigma = simplex(6, 4), spd(6, 1, 4)[0], spd(7, 4, 4)
    wide, narrow = (
        separation(pi, means, sigma, 0.3),
        separation(pi.float(), means.float(), sigma.float(), 0.3),
    )
    for one, other in zip(narrow, wide, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (
            ([0.5, 0.5], [[0.0]], [1.0, 1.0], 1.0),
            FeatureError,
            r"weights \(2,\) and means \(1, 1\) do not match",
        ),
        (([1.0], [[np.nan]], [1.0], 1.0), FeatureError, "means holds NaN"),
        (([0.0], [[0.0]], [1.0], 1.0), FeatureError, "do not sum to 1"),
        (([1.0], [[0.0]], [1.0], -1.0), ConfigError, "negative variance"),
        (([1.0], [[0.0]], [1.0], [1.0, 1.0]), ConfigError, "for features of 1 dimensions"),
    ],
)
def test_mistakes_are_explained(arguments, error, match):
    with pytest.raises(error, match=match):
        separation(*arguments)
