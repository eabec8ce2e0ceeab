"""Reconstruction quality, one value per image, and accuracy.

Images are (N, C, H, W) with values in [0, 1]. float32 and float64 are kept, half precision becomes float32; autocast
has no effect in here. All image measures are differentiable; NaN pixels give NaN.
"""

import functools

import torch
from torch import Tensor

from sfumato.errors import FeatureError

__all__ = ["accuracy", "mse", "psnr", "ssim"]

_WINDOW = 11
_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2


def mse(x: Tensor, x_hat: Tensor) -> Tensor:
    """Mean squared error per image, `|x - x_hat|^2 / d` with d = C H W.

    Args:
        x: (N, C, H, W) images.
        x_hat: (N, C, H, W) reconstructions.

    Returns:
        (N,)

    Raises:
        FeatureError: the shapes differ, are not (N, C, H, W), or the values are not floating point.

    >>> mse(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5))
    tensor([0.2500])
    """
    x, x_hat = _checked(x, x_hat)
    return (x - x_hat).square().flatten(1).mean(1)


def psnr(x: Tensor, x_hat: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in decibels, `10 log10(1 / MSE)`.

    Identical images give infinity, with no useful gradient. The mean of this over images is not the PSNR of the mean
    MSE.

    Args:
        x: (N, C, H, W) images in [0, 1].
        x_hat: (N, C, H, W) reconstructions.

    Returns:
        (N,)

    Raises:
        FeatureError: as `mse`.

    >>> psnr(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.1))
    tensor([20.])
    """
    return -10.0 * mse(x, x_hat).log10()


def ssim(x: Tensor, x_hat: Tensor) -> Tensor:
    """Structural similarity per image (Wang et al. 2004), 1 for identical images.

        SSIM = (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2))

    with local means m, variances s^2 and covariance s_xy under an 11x11 Gaussian window of sigma 1.5, population
    (biased) moments, C1 = 0.01^2, C2 = 0.03^2 for data range 1. Averaged over the positions at which the window lies
    inside the image (no padding), then over channels. On images smaller than the window its side w is the largest odd
    number that fits into them, and sigma is 1.5 w / 11. This is scikit-image's `structural_similarity` with
    `gaussian_weights=True, sigma=1.5 * w / 11, use_sample_covariance=False, data_range=1`; libraries that average
    over a padded image differ by up to 0.006 at 32x32.

    Args:
        x: (N, C, H, W) images in [0, 1].
        x_hat: (N, C, H, W) reconstructions.

    Returns:
        (N,) in [-1, 1].

    Raises:
        FeatureError: as `mse`.

    >>> x = torch.eye(16).expand(1, 1, 16, 16)
    >>> ssim(x, x), ssim(x, 1 - x) < 0
    (tensor([1.]), tensor([True]))
    """
    x, x_hat = _checked(x, x_hat)
    height, width = x.shape[2:]
    window = min(_WINDOW, height, width)
    window -= 1 - window % 2
    # The variances are small differences of squares, and reduced-precision matrix products (TF32, bfloat16), which a
    # caller may have switched on for everything else, would ruin them. They do not apply to float64, which MPS lacks.
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    with torch.autocast(x.device.type, enabled=False):
        a, b = x.to(wide), x_hat.to(wide)
        down, across = _blur(height, window, a.dtype, a.device), _blur(width, window, a.dtype, a.device).T
        mean_a, mean_b, square_a, square_b, product = down @ torch.stack((a, b, a * a, b * b, a * b)) @ across
        squares, means = mean_a.square() + mean_b.square(), mean_a * mean_b
        luminance = (2.0 * means + _C1) / (squares + _C1)
        structure = (2.0 * (product - means) + _C2) / (square_a + square_b - squares + _C2)
        return (luminance * structure).flatten(1).mean(1).to(x.dtype)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of samples whose largest logit is that of their label; a row with NaN counts as wrong.

    Args:
        logits: (N, classes).
        labels: (N,) class indices.

    Returns:
        Scalar in [0, 1], float32.

    Raises:
        FeatureError: the shapes do not belong together, or there are no samples.

    >>> accuracy(torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0], [5.0, 4.0]]), torch.tensor([0, 1, 1, 0]))
    tensor(0.7500)
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.numel() == 0:
        raise FeatureError(
            f"accuracy needs logits (N, classes) and labels (N,) with N at least 1, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}; pass class indices, not one-hot rows"
        )
    correct = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
    return correct.float().mean()


@functools.lru_cache(maxsize=64)
def _blur(size: int, window: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(size - window + 1, size) banded matrix whose rows are the Gaussian window at each valid position.

    At the sizes of split inference two matrix products are about ten times faster on a CPU than two one-channel
    convolutions. Kept, because a step that a GPU replays must not copy anything to it.
    """
    with torch.inference_mode(False):  # what is made in inference mode could not be used in training later
        return _window_rows(size, window).to(device, dtype)


def _window_rows(size: int, window: int) -> Tensor:
    offsets = torch.arange(window)
    sigma = _SIGMA * window / _WINDOW
    weights = torch.exp(-0.5 * ((offsets.double() - window // 2) / sigma).square())
    columns = torch.arange(size - window + 1)[:, None] + offsets
    rows = torch.zeros(len(columns), size, dtype=torch.float64)
    return rows.scatter_(1, columns, (weights / weights.sum()).expand(columns.shape))


def _checked(x: Tensor, x_hat: Tensor) -> tuple[Tensor, Tensor]:
    if x.ndim != 4 or x.shape != x_hat.shape:
        raise FeatureError(
            f"images have to be two tensors (N, C, H, W) of one shape, got {tuple(x.shape)} and {tuple(x_hat.shape)}; "
            "give a single image as x[None]"
        )
    if min(x.shape[1:]) == 0:
        raise FeatureError(f"images of shape {tuple(x.shape[1:])} have no pixels")
    if not x.is_floating_point() or not x_hat.is_floating_point():
        raise FeatureError(
            f"images have to be floating point in [0, 1], got {x.dtype} and {x_hat.dtype}; divide bytes by 255"
        )
    dtype = torch.promote_types(torch.promote_types(x.dtype, x_hat.dtype), torch.float32)
    return x.to(dtype), x_hat.to(dtype)
