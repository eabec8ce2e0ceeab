"""The network that reconstructs: the paper's, beside what the linear attack already reads."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.attacks.base import Observer, hold_out
from sfumato.attacks.linear import Linear, best_linear
from sfumato.models import ReconstructionNet
from sfumato.models.reconstruction import ResBlock

__all__ = ["Arranged", "Inverter", "Sketch"]

_WITHIN = 0.005


class Arranged(nn.Module):
    """The whitened feature -> each coordinate by itself standardised, where a convolution finds it at its place.

    Whitening turns coordinates into mixtures of all, and makes directions that say next to nothing as large as those
    that say most. A network has to unlearn both from few images. Scale and shift of a coordinate stay out of it.
    """

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self.shape = observer.feature_shape
        self.register_buffer("unmix", observer.whitening.unmix.clone(), persistent=False)

    def forward(self, seen: Tensor) -> Tensor:
        """(N, *feature_shape) -> the same."""
        flat = seen.flatten(1)
        unmix = cast(Tensor, self.unmix)
        return (flat * unmix if unmix.ndim == 1 else flat @ unmix).reshape(len(seen), *self.shape)


class Sketch(nn.Module):
    """What the linear attack makes of the whitened feature, (N, C, H, W): the same whatever the feature's units are,
    and however its coordinates are permuted or rotated. A checkpoint leaves it out: it is in closed form.

    Attributes:
        error: its mean squared error on held-out images.
    """

    def __init__(self, observer: Observer, share: float, seed: int) -> None:
        super().__init__()
        judge, learn = hold_out(len(observer), share, seed)
        linear, self.error, *_ = best_linear(observer, learn, judge, draws=2, seed=seed)
        self.shape = observer.image_shape
        for name, value in linear._asdict().items():
            self.register_buffer(name, value.float(), persistent=False)

    def forward(self, seen: Tensor) -> Tensor:
        """(N, *feature_shape) -> (N, C, H, W), not clipped."""
        linear = Linear(*(cast(Tensor, getattr(self, name)) for name in Linear._fields))
        return linear(seen).reshape(len(seen), *self.shape)


class Inverter(ReconstructionNet):
    r"""The paper's network for features as an observer hands them out, which begins with what a `Sketch` l answers.

        x_hat = sigmoid(g logit(l(z)) + last(body(z), l(z))),    g = 1 and last = 0 at first

    So it is no worse than the linear attack from its first step on, also where coordinates lie in disorder, as a
    permutation or rotation leaves them. The share g is learned: what noise spoils in l is given up. l is kept within
    [0.005, 0.995] (46 dB), outside of which logits say little.
    """

    def __init__(self, observer: Observer, sketch: Sketch | None, *, width: int, blocks: int) -> None:
        super().__init__(observer.feature_shape, observer.image_shape, width=width, blocks=blocks)
        self.arranged, self.sketch = Arranged(observer), sketch
        if sketch is not None:
            self.last = ResBlock(width + observer.image_shape[0], observer.image_shape[0])
            self.share = nn.Parameter(torch.ones(()))
            assert isinstance(self.last.shortcut, nn.Sequential)
            # Both ways through the last block begin at 0: the untrained network answers what the sketch does.
            for part in (self.last.conv2, self.last.shortcut[1]):
                nn.init.zeros_(cast(Tensor, part.weight))
                nn.init.zeros_(cast(Tensor, part.bias))

    def forward(self, z: Tensor) -> Tensor:
        """(N, *feature_shape) -> (N, C, H, W) in (0, 1)."""
        h = self.body(self.lay_out(self.arranged(z)))
        if self.resize:
            h = F.interpolate(h, size=self.image_shape[1:], mode="bilinear", align_corners=False)
        if self.sketch is None:
            return cast(Tensor, self.last(h)).sigmoid()
        sketch = self.sketch(z)
        # Centred, and bounded where the linear attack extrapolates far beyond grey values.
        out: Tensor = self.last(torch.cat([h, sketch.clamp(-1, 2).to(h.dtype) - 0.5], 1))
        return (out + self.share * sketch.clamp(_WITHIN, 1 - _WITHIN).logit()).sigmoid()
