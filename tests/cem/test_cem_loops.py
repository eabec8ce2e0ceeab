"""The plug-in in other people's loops: accumulated gradients, mixed precision, saved state."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import sfumato

CLASSES, SIGMA = 3, 0.1


def batch(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % CLASSES
    centres = torch.rand(CLASSES, 8, generator=generator)
    return centres[labels] + 0.1 * torch.randn(count, 8, generator=generator), labels


def fitted(**options):
    x, y = batch(240)
    cem = sfumato.CEM(**({"num_classes": CLASSES, "noise_std": SIGMA} | options))
    cem.refresh(x, y)
    return cem, x, y


@pytest.mark.parametrize("options", [{}, {"num_classes": None, "clusters": 6}, {"covariance": "diagonal"}], ids=str)
def test_accumulated_gradients_are_those_of_the_whole_batch(options):
    cem, x, y = fitted(**options)
    torch.manual_seed(0)
    layer = torch.nn.Linear(x.shape[1], 7)
    cem = sfumato.CEM(**({"num_classes": CLASSES, "noise_std": SIGMA} | options))
    cem.refresh(layer(x).detach(), y)
    cem(layer(x[:64]), y[:64]).backward()
    whole = layer.weight.grad.clone()
    layer.zero_grad()
    for part in torch.arange(64).split(16):
        (cem(layer(x[part]), y[part]) / 4).backward()
    torch.testing.assert_close(layer.weight.grad, whole, rtol=1e-4, atol=1e-8)
    assert whole.abs().max() > 0


def test_autocast_reaches_the_model_and_not_the_loss():
    cem, x, y = fitted()
    torch.manual_seed(0)
    layer = torch.nn.Linear(x.shape[1], x.shape[1])
    cem.refresh(layer(x).detach(), y)
    gradients = []
    for enabled in (False, True):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            z_hat = layer(x[:64])
            assert (z_hat.dtype == torch.bfloat16) == enabled
            loss = cem(z_hat, y[:64])
        assert loss.dtype == torch.float32
        loss.backward()
        gradients.append(layer.weight.grad.double().numpy().ravel())
    assert np.corrcoef(*gradients)[0, 1] > 0.95  # features rounded to eight bits, near their cluster's mean


def test_a_gradient_scaler_scales_it_and_takes_the_scale_out_again():
    cem, x, y = fitted()
    layer = torch.nn.Linear(x.shape[1], x.shape[1])
    cem.refresh(layer(x).detach(), y)
    cem(layer(x[:64]), y[:64]).backward()
    plain = layer.weight.grad.clone()
    layer.zero_grad()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(cem(layer(x[:64]), y[:64])).backward()
    torch.testing.assert_close(layer.weight.grad, 1024 * plain)
    scaler.unscale_(optimizer)
    torch.testing.assert_close(layer.weight.grad, plain)
    # In float16 itself, as a GPU computes: the gradient arrives in the feature's type.
    half = x[:64].half().requires_grad_()
    scaler.scale(cem(half, y[:64])).backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.float16
    assert bool(half.grad.isfinite().all())


@pytest.mark.parametrize("through", ["safetensors", "torch"])
@pytest.mark.parametrize("options", [{}, {"update": "running"}, {"num_classes": None, "clusters": 6}], ids=str)
def test_the_state_survives_files_that_unpickle_nothing(through, options, tmp_path):
    cem, x, y = fitted(**options)
    if through == "safetensors":
        state = load(save({name: value.contiguous() for name, value in cem.state_dict().items()}))
    else:
        torch.save(cem.state_dict(), tmp_path / "cem.pt")
        state = torch.load(tmp_path / "cem.pt", weights_only=True)
    again = sfumato.CEM(**({"num_classes": CLASSES, "noise_std": SIGMA} | options))
    again.load_state_dict(state)
    assert again.information == cem.information
    assert torch.equal(again.covariances, cem.covariances)
    one, other = (part(x[:30].clone().requires_grad_(), y[:30]) for part in (cem, again))
    assert float(one.detach()) == float(other.detach())
    cem.refresh(x + 0.01, y)
    again.refresh(x + 0.01, y)
    assert torch.equal(again.means, cem.means)
