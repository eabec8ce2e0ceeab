import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from sfumato.errors import FeatureError
from sfumato.metrics import accuracy, mse, psnr, ssim


def images(kind, n, channels, height, width, seed=0):
    """Pairs (x, x_hat) in [0, 1], float64: independent noise, a smooth picture with noise, or flat grey."""
    generator = torch.Generator().manual_seed(seed)

    def noise():
        return torch.rand(n, channels, height, width, generator=generator, dtype=torch.float64)

    if kind == "random":
        return noise(), noise()
    if kind == "flat":
        return 0.9 + 0.001 * noise(), 0.9 + 0.001 * noise()
    row = torch.linspace(0, 3, height, dtype=torch.float64)[:, None]
    column = torch.linspace(0, 2, width, dtype=torch.float64)
    x = 0.5 + 0.5 * torch.sin(row * (1 + noise()[..., :1, :1]) + column)
    return x, (x + 0.1 * (noise() - 0.5)).clamp(0, 1)


def reference_ssim(a, b):
    window = min(11, *a.shape[1:])
    window -= 1 - window % 2
    return structural_similarity(
        a.numpy(),
        b.numpy(),
        gaussian_weights=True,
        sigma=1.5 * window / 11,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=0,
    )


@pytest.mark.parametrize("kind", ["random", "smooth", "flat"])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 8, 8),
        (3, 8, 8),
        (1, 32, 32),
        (3, 32, 32),
        (3, 64, 64),
        (3, 11, 12),
        (2, 9, 40),
        (1, 5, 6),
        (1, 3, 4),
    ],
)
def test_ssim_is_that_of_scikit_image(kind, shape):
    x, x_hat = images(kind, 3, *shape)
    expected = [reference_ssim(a, b) for a, b in zip(x, x_hat, strict=True)]
    assert ssim(x, x_hat).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["random", "smooth", "flat"])
def test_single_precision_is_enough(kind):
    x, x_hat = images(kind, 4, 3, 32, 32)
    values = ssim(x.float(), x_hat.float())
    assert values.dtype == torch.float32
    assert torch.allclose(values.double(), ssim(x, x_hat), atol=1e-5)


def test_ssim_by_definition():
    x, x_hat = images("random", 2, 1, 20, 20)
    assert torch.allclose(ssim(x, x), torch.ones(2, dtype=torch.float64), atol=1e-12)
    assert torch.equal(ssim(x, x_hat), ssim(x_hat, x))
    assert float(ssim(x, 1 - x).max()) < 0
    grey, white = torch.full((1, 1, 12, 12), 0.5), torch.ones(1, 1, 12, 12)
    assert float(ssim(grey, white)) == pytest.approx((1.0 + 1e-4) / (1.25 + 1e-4), abs=1e-6)


def test_ssim_gradient():
    x, x_hat = images("smooth", 2, 2, 12, 12)
    assert torch.autograd.gradcheck(lambda b: ssim(x, b), x_hat.requires_grad_())
    moving = x.clone().requires_grad_()
    ssim(x, moving).sum().backward()
    assert float(moving.grad.abs().max()) < 1e-10  # a maximum


def test_ssim_withstands_reduced_precision_settings():
    x, x_hat = images("flat", 4, 3, 32, 32)
    exact = ssim(x, x_hat)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(ssim(x.float(), x_hat.float()).double(), exact, atol=1e-5)
    previous = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.allclose(ssim(x.float(), x_hat.float()).double(), exact, atol=1e-5)
    finally:
        torch.set_float32_matmul_precision(previous)


def test_mse_and_psnr_by_hand():
    x = torch.zeros(3, 1, 2, 2)
    x_hat = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]).reshape(3, 1, 2, 2)
    assert mse(x, x_hat).tolist() == pytest.approx([0.01, 0.25, 0.0])
    assert psnr(x, x_hat).tolist() == pytest.approx([20.0, 6.0205999, math.inf])


def test_each_image_is_judged_alone():
    x, x_hat = images("smooth", 5, 3, 16, 16)
    for measure in (mse, psnr, ssim):
        together = measure(x, x_hat)
        assert together.shape == (5,)
        assert torch.allclose(torch.cat([measure(x[i : i + 1], x_hat[i : i + 1]) for i in range(5)]), together)
    assert np.allclose(mse(x, x_hat).numpy(), ((x - x_hat).numpy() ** 2).reshape(5, -1).mean(1))


@pytest.mark.parametrize("measure", [mse, psnr, ssim])
def test_images_of_every_kind_of_batch(measure):
    x, x_hat = images("smooth", 2, 3, 16, 16)
    assert measure(x[:0], x_hat[:0]).shape == (0,)
    assert measure(x, x_hat).dtype == torch.float64
    assert measure(x.bfloat16(), x_hat.float()).dtype == torch.float32
    last = x_hat.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(measure(x, last), measure(x, x_hat))
    broken = x_hat.clone()
    broken[0, 0, 8, 8] = math.nan
    assert measure(x, broken).isnan().tolist() == [True, False]
    x_hat.requires_grad_()
    measure(x, x_hat).sum().backward()
    assert bool(x_hat.grad.isfinite().all())
    assert float(x_hat.grad.abs().sum()) > 0


@pytest.mark.parametrize("measure", [mse, psnr, ssim])
def test_what_is_not_a_pair_of_images_is_refused(measure):
    x = torch.rand(2, 3, 8, 8)
    with pytest.raises(FeatureError, match=r"of one shape, got \(2, 3, 8, 8\) and \(1, 3, 8, 8\)"):
        measure(x, x[:1])
    with pytest.raises(FeatureError, match=r"give a single image as x\[None\]"):
        measure(x[0], x[0])
    with pytest.raises(FeatureError, match=r"got torch\.uint8 and torch\.float32; divide bytes by 255"):
        measure(x.byte(), x)
    with pytest.raises(FeatureError, match="have no pixels"):
        measure(x[..., :0], x[..., :0])


def test_accuracy():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [math.nan, 0.0]])
    assert float(accuracy(logits, torch.tensor([1, 0, 0, 0]))) == 0.5
    assert accuracy(logits, torch.tensor([1, 0, 0, 0])).shape == ()
    with pytest.raises(FeatureError, match="pass class indices, not one-hot rows"):
        accuracy(logits, torch.zeros(4, 2))
    with pytest.raises(FeatureError, match="N at least 1"):
        accuracy(logits[:0], torch.zeros(0, dtype=torch.long))
