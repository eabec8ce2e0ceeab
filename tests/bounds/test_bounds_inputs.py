import numpy as np
import pytest
import torch

from sfumato import bounds
from sfumato.errors import FeatureError


def test_every_public_name_exists_and_is_documented():
    for name in bounds.__all__:
        assert getattr(bounds, name).__doc__


def test_devices_are_not_mixed_silently():
    with pytest.raises(FeatureError, match=r"live on cpu, meta; move them to one device with \.to\(device\)"):
        bounds.conditional_entropy(torch.ones(2), torch.ones(2, device="meta"))


@pytest.mark.parametrize("wrap", [list, tuple, np.array, torch.tensor])
def test_every_container_is_accepted(wrap):
    assert bounds.mixture_information(wrap([0.5, 0.5]), wrap([1.0, 1.0]), 1.0, dim=2).item() == pytest.approx(
        1.3862943611198906
    )


def test_arrays_are_copied_not_shared():
    variances = np.array([1.0, 2.0, 3.0])
    variances.setflags(write=False)
    backwards = bounds.gaussian_entropy(variances[::-1], family="diagonal")
    torch.testing.assert_close(backwards, bounds.gaussian_entropy(variances, family="diagonal"))


def test_numpy_scalars_count_as_arrays():
    assert bounds.minimal_mse(np.float32(0.0), np.int64(3)).dtype == torch.float32
    assert bounds.minimal_mse(0, 3).dtype == torch.float64


def test_gradients_reach_the_noise_and_stop_at_nothing():
    noise = torch.tensor(2.0, requires_grad=True)
    bounds.mixture_information([1.0], torch.tensor([2.0]), noise, dim=1).backward()
    # d/dp 1/2 log((2 + p) / p) at p = 2 is 1/2 (1/4 - 1/2).
    assert noise.grad.item() == pytest.approx(-0.125)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_function_runs_on_the_gpu():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 8, generator=generator)
    means, root = torch.randn(3, 8, generator=generator), torch.randn(3, 8, 8, generator=generator)
    sigma, pi, noise = root @ root.mT, torch.tensor([0.2, 0.3, 0.5]), torch.eye(8) * 0.3
    own = torch.arange(50) % 3

    def everything(device):
        m, s, w, p, x = (t.to(device) for t in (means, sigma, pi, noise, z))
        forms = (s, s.diagonal(dim1=-2, dim2=-1), s[:, 0, 0])
        for form in forms:
            for form_of_noise in (p, p.diagonal(), 0.3, torch.tensor(0.3)):
                yield bounds.mixture_information(w, form, form_of_noise, dim=8)
                yield bounds.mixture_information([0.2, 0.3, 0.5], form, form_of_noise, dim=8)
                yield bounds.cluster_posterior(x, w, m, form, form_of_noise)
                yield bounds.own_cluster_posterior(x, own.tolist(), w, m, form, form_of_noise)
                yield from bounds.separation(w, m, form, form_of_noise)
        yield bounds.gaussian_entropy(s)
        yield bounds.gaussian_information(s, p)
        yield bounds.posterior_mse(s)
        yield bounds.minimal_mse(s[0, 0], 8)
        yield bounds.maximal_conditional_entropy(s[0, 0].abs(), 8)
        yield bounds.conditional_entropy(1.0, s[0, 0])
        yield bounds.clipped_power_information(s[0, 0].abs(), 0.3, 8)

    for here, there in zip(everything("cpu"), everything("cuda"), strict=True):
        assert there.device.type == "cuda"
        torch.testing.assert_close(there.cpu(), here, rtol=1e-4, atol=1e-6)
