"""The network of the strong attack: a linear reconstruction, and what has to be added to it, from coarse to fine."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import ConfigError, FeatureError
from sfumato.models.layers import check_image_shape
from sfumato.models.reconstruction import ResBlock

__all__ = ["RefinementNet", "explanation"]

_COARSEST = 8  # the coarsest level is at most this high and wide
_FLAT_CHANNELS = 16  # a feature without height and width is laid out as a map of so many channels
_NARROWING = 0.75  # channels of a level against those of the coarser one


class RefinementNet(nn.Module):
    """Released feature -> image: `x_hat = x_0 + r(z, x_0, g)` with the linear reconstruction `x_0 = offset + z slope`.

    g says how x_0 would have to change to explain z. With the encoder f at hand it is the negative gradient of the
    data term, as in learned iterative reconstruction (Adler and Öktem, Inverse Problems 2017), here of one iteration:

        g = -d/dx |f(x) - z|^2 / 2  at  x = x_0 clipped to [0, 1],  over `unit`, its typical size

    so that r has not to learn from images what the encoder does, and can learn what images look like. The gradient is
    taken with f as it is and nothing is learned through it. Without f there is no g.

    r works on a pyramid of maps: the image's size halved until it is at most 8x8, and back up through transposed
    convolutions. On every level the feature map, x_0 and g, brought to its size, are added through a 1x1 convolution.
    The depth is where pixels are few: `blocks` residual blocks of `width` channels on the coarsest level, one on each
    finer level, with three quarters of the channels of the level below. The last convolution begins at zero, so that
    training begins at x_0. The feature is standardised channel by channel first. In evaluation mode x_hat is clipped
    to [0, 1].

    From 8x8x8 to 3x32x32 with the defaults: 84 million multiply-adds, against 54 of `ReconstructionNet`.

    Args:
        feature_shape: (C, h, w), or any other shape, which is flattened.
        image_shape: (C, H, W).
        slope: (D, d) of the linear reconstruction; fixed.
        offset: (d,).
        mean: (C,) of the feature's channels, or (D,) where it is flattened.
        std: likewise, positive.
        width: channels of the coarsest level.
        blocks: residual blocks on the coarsest level.
        features: f, (N, C, H, W) -> (N, *feature_shape), differentiable; None where the attacker has no such access.
        unit: typical size of the gradient, see `explanation`.

    Raises:
        ConfigError: a shape or number is out of its range.
    """

    slope: Tensor
    offset: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        feature_shape: Sequence[int],
        image_shape: Sequence[int],
        slope: Tensor,
        offset: Tensor,
        mean: Tensor,
        std: Tensor,
        *,
        width: int = 64,
        blocks: int = 8,
        features: Callable[[Tensor], Tensor] | None = None,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        self._victim = (features,)  # in a tuple, or an encoder that is a module would become a part of this network
        self._unit = unit
        self.feature_shape = tuple(int(size) for size in feature_shape)
        self.image_shape = check_image_shape(image_shape)
        if width < 1 or blocks < 0:
            raise ConfigError(f"width is {width} and blocks is {blocks}; give at least 1 and at least 0")
        for name, value in (("slope", slope), ("offset", offset), ("mean", mean), ("std", std)):
            self.register_buffer(name, value.detach().clone())
        self.sizes = [self.image_shape[1:]]
        while max(self.sizes[-1]) > _COARSEST:
            self.sizes.append((-(-self.sizes[-1][0] // 2), -(-self.sizes[-1][1] // 2)))
        self.lay_out: nn.Module = nn.Identity()
        channels = self.feature_shape[0]
        if len(self.feature_shape) != 3:
            channels, (height, breadth) = _FLAT_CHANNELS, self.sizes[-1]
            flat = nn.Linear(slope.shape[0], channels * height * breadth)
            self.lay_out = nn.Sequential(nn.Flatten(), flat, nn.Unflatten(1, (channels, height, breadth)))
        top = len(self.sizes) - 1
        widths = [max(1, round(_NARROWING ** (top - level) * width)) for level in range(top + 1)]
        inputs = channels + self.image_shape[0] * (1 if features is None else 2)
        self.entries = nn.ModuleList(nn.Conv2d(inputs, wide, 1) for wide in widths)
        self.rises = nn.ModuleList(_rise(coarse, fine) for fine, coarse in pairwise(widths))
        self.levels = nn.ModuleList(
            nn.Sequential(*(ResBlock(wide, wide) for _ in range(blocks if level == top else 1)))
            for level, wide in enumerate(widths)
        )
        self.norm = nn.BatchNorm2d(widths[0])
        self.last = nn.Conv2d(widths[0], self.image_shape[0], 3, padding=1)
        for value in self.last.parameters():
            nn.init.zeros_(value)

    def forward(self, z: Tensor) -> Tensor:
        """(N, *feature_shape) -> (N, C, H, W); in [0, 1] in evaluation mode.

        Raises:
            FeatureError: `z` has another shape than the network was built for.
        """
        if tuple(z.shape[1:]) != self.feature_shape:
            raise FeatureError(
                f"the network was built for features {self.feature_shape}, got {tuple(z.shape[1:])}; "
                "build it with the model's feature_shape"
            )
        with torch.autocast(z.device.type, enabled=False):
            linear = torch.addmm(self.offset, z.float().flatten(1), self.slope).unflatten(1, self.image_shape)
            if z.ndim == 4:
                normal = (z - self.mean[:, None, None]) / self.std[:, None, None]
            else:
                normal = (z.flatten(1) - self.mean) / self.std
        sketch = 4.0 * (linear - 0.5)
        (features,) = self._victim
        if features is not None:
            wanted = explanation(features, linear.clamp(0, 1), z.float()) / self._unit
            sketch = torch.cat([sketch, wanted], 1)
        feature = self.lay_out(normal)
        h: Tensor | None = None
        for level in reversed(range(len(self.sizes))):
            size = self.sizes[level]
            entry = self.entries[level](torch.cat([_resized(feature, size), _resized(sketch.to(feature), size)], 1))
            if h is not None:
                entry = entry + _fitted(self.rises[level](h), size)
            h = self.levels[level](entry)
        assert h is not None
        out: Tensor = linear + self.last(F.relu(self.norm(h))).float()
        return out if self.training else out.clamp(0, 1)


def explanation(features: Callable[[Tensor], Tensor], x: Tensor, z: Tensor) -> Tensor:
    """How images should change to explain released features: `-d/dx |features(x) - z|^2 / 2`, without a graph.

    Args:
        features: (N, C, H, W) -> (N, ...), differentiable.
        x: (N, C, H, W).
        z: (N, ...).

    Returns:
        (N, C, H, W).
    """
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        x = x.detach().requires_grad_()
        misfit = (features(x) - z.detach()).square().sum() / 2
        (slope,) = torch.autograd.grad(misfit, x)
    return -slope.detach()


def _rise(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1))


def _fitted(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut off what an odd side has too much after doubling."""
    return x[:, :, : size[0], : size[1]]


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Averaged where the new size is smaller, repeated where it is larger."""
    height, width = x.shape[2:]
    if (height, width) == size:
        return x
    if height >= size[0] and width >= size[1]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size)
