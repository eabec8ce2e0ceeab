import numpy as np
import pytest
import torch
from bounds_oracles import linear_gaussian, spd
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.bounds import dfil, fisher_factor, fisher_information, floor_ratio, minimal_mse
from sfumato.errors import ConfigError, FeatureError
from sfumato.split import Channel, SplitModel, jacobian, projected_jacobian


@given(seed=st.integers(0, 10_000), n=st.integers(1, 4), dim=st.integers(1, 5), d=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_is_the_mean_of_the_matrices_of_each_input(seed, n, dim, d):
    rng = np.random.default_rng(seed)
    slopes, noise = rng.standard_normal((n, dim, d)), spd(seed, 1, dim)[0].numpy()
    each = [j.T @ np.linalg.inv(noise) @ j for j in slopes]
    np.testing.assert_allclose(fisher_information(slopes, noise), sum(each) / n, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(dfil(slopes, noise), [np.trace(one) / d for one in each], rtol=1e-8)
    factor = fisher_factor(slopes, noise)
    assert factor.shape == (n * dim, d)
    np.testing.assert_allclose(factor.mT @ factor, sum(each) / n, rtol=1e-8, atol=1e-10)


def test_all_three_forms_of_the_noise_agree():
    slopes = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    full = fisher_information(slopes, 0.3 * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(fisher_information(slopes, 0.3), full)
    torch.testing.assert_close(fisher_information(slopes, [0.3] * 4), full)


def test_dfil_bounds_the_unbiased_least_squares_attacker_and_is_met_in_one_dimension():
    # z = A x + eps: least squares is unbiased and has the error Tr((A^T P^-1 A)^-1) / d >= 1 / dFIL.
    case = linear_gaussian(3, 3, 5)
    exact = np.trace(np.linalg.inv(case.encoder.T @ np.linalg.inv(case.noise) @ case.encoder)) / 3
    assert exact >= 1 / float(dfil(case.encoder[None], case.noise)) - 1e-12
    assert 1 / float(dfil([[[2.0]]], 0.04)) == pytest.approx(0.01)  # x_hat = z / 2 has the variance 0.04 / 4


def test_floor_ratio_literals():
    assert float(floor_ratio(0.0, 5)) == 1.0
    assert float(floor_ratio(3072 * np.log(2) / 2, 3072)) == pytest.approx(0.5)
    assert float(floor_ratio(float("inf"), 5)) == 0.0
    known = minimal_mse(7.0 - 2.5, 4) / minimal_mse(7.0, 4)
    assert float(floor_ratio(2.5, 4)) == pytest.approx(float(known))


class _Bent(torch.nn.Module):
    """z_hat_k = tanh(sum_j W_kj x_j), whose Jacobian is known by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 8, generator=torch.Generator().manual_seed(1)))

    def forward(self, x):
        return torch.tanh(x.flatten(1) @ self.weight.T).reshape(-1, 3, 2)


def test_the_jacobian_of_an_encoder_is_the_one_by_hand():
    model = SplitModel(_Bent(), Channel(noise_std=0.1), torch.nn.Identity()).eval()
    x = torch.rand(3, 2, 2, 2, generator=torch.Generator().manual_seed(2))
    weight = model.edge.weight.detach().double()
    by_hand = torch.stack([(1 - torch.tanh(weight @ one.double().flatten()).square())[:, None] * weight for one in x])
    found = jacobian(model, x)
    torch.testing.assert_close(found.double(), by_hand, rtol=1e-4, atol=1e-5)
    # E[(VJ)^T VJ] = J^T J: with 4,000 probes the trace is met within a few per cent.
    probed = projected_jacobian(model, x, 4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(probed.square().sum((1, 2)), found.square().sum((1, 2)), rtol=0.08, atol=0)


def test_an_encoder_without_gradient_is_refused():
    class Stepped(_Bent):
        def forward(self, x):
            return super().forward(x.detach()).detach()

    model = SplitModel(Stepped(), Channel(), torch.nn.Identity()).eval()
    with pytest.raises(ConfigError, match="passes no gradient"):
        jacobian(model, torch.rand(1, 2, 2, 2))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: dfil(torch.ones(2, 3), 1.0), FeatureError, r"jacobians have shape \(2, 3\); pass \(n, D, d\)"),
        (lambda: dfil(torch.ones(0, 2, 3), 1.0), FeatureError, "n >= 1"),
        (lambda: dfil(torch.full((1, 2, 3), torch.nan), 1.0), FeatureError, "NaN"),
        (lambda: fisher_information(torch.ones(1, 2, 3), 0.0), ConfigError, "variance of 0"),
        (lambda: fisher_information(torch.ones(1, 2, 3), torch.ones(3)), ConfigError, "features of 2 dimensions"),
        (lambda: floor_ratio(-1.0, 3), FeatureError, "negative"),
    ],
)
def test_mistakes_are_explained(call, error, match):
    with pytest.raises(error, match=match):
        call()
