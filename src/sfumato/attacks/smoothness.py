"""Is a feature hard to invert, or only scrambled? Whether images that look the same have features that are alike."""

from dataclasses import dataclass

import torch

from sfumato.attacks.observer import Observer
from sfumato.data import ImageSet
from sfumato.seeds import generator
from sfumato.split import SplitModel
from sfumato.torch_utils import evaluating

__all__ = ["THRESHOLD", "Obfuscation", "obfuscation"]

THRESHOLD = 0.2
"""An encoder whose feature is smooth in the image moves in proportion. One grey level is 1/255 of a pixel's range, and
two images differ in all d pixels by about a third of it, so that one pixel moves the feature by `3 / (255 sqrt(2 d))`
of the distance between two images: .1 % for 8x8, less for larger ones, several times that where neighbouring pixels
are alike and a single one stands out. A fifth is fifty times that. Networks that recognise anything stay far below,
since what they recognise does not depend on single pixels; a cipher or a hash reaches the distance of another image.
Between both lie features that are partly scrambled and partly plain: the attacks read the plain part."""

_JUMP = 0.5  # of the way to another image, where all pixels change by one grey level
_PIXELS = 4  # of every image
_PATTERNS = 4  # in which all pixels of an image change by one level: brighter, and some up and some down
_VARIES = 0.02  # standard deviation over the images from which a pixel is one that can tell something


@dataclass(frozen=True)
class Obfuscation:
    """How far the smallest change of an image moves its feature.

    Attributes:
        moved: distance of the whitened features of an image and of the same with one pixel one grey level off, over the
            distance to another image; the mean over images and pixels.
        jumped: the same where all pixels that vary change by one grey level at once, the 99th percentile: a feature
            that depends on a key, a sign or a remainder taken from the image stays for most small changes, and jumps at
            some. A smooth encoder stays near .04, a cipher reaches 1.
        images: how many were tried.
        threshold: above which attacks that learn from examples say nothing, however large their errors are.

    >>> Obfuscation(moved=0.002, jumped=0.9, images=256).obfuscated  # it stays for one pixel and jumps for all
    True
    """

    moved: float
    jumped: float
    images: int
    threshold: float = THRESHOLD

    @property
    def obfuscated(self) -> bool:
        """Whether the feature is scrambled rather than poor."""
        return self.moved > self.threshold or self.jumped > _JUMP

    @property
    def sentence(self) -> str:
        """For a reader."""
        found = (
            f"One grey level of one pixel moves the feature by {100 * self.moved:.2g} % of the way to another image, "
            f"one of all pixels by up to {100 * self.jumped:.2g} %"
        )
        if self.obfuscated:
            return f"{found}: it is scrambled, which hides from attacks what it does not take away. Not judged."
        return f"{found}: it is not scrambled."


def obfuscation(model: SplitModel, images: ImageSet, *, most: int = 256, seed: int = 0) -> Obfuscation:
    """Compare the clean features of images, of the same with one pixel changed, and of other images.

        moved = mean_i |w(x_i +- e_p / 255) - w(x_i)| / |w(x_j) - w(x_i)|,    w the whitened z_hat

    Pixels are drawn among those that vary over the images. Where another image has the same feature, nothing moves.

    Args:
        model: the split model, in evaluation mode while it is measured.
        images: on which the whitening is fitted, and a sample of which is changed; a few hundred are enough.
        most: images that are changed.
        seed: of the choice of images and pixels.

    >>> from torch import nn
    >>> from sfumato.split import Channel
    >>> pixels = torch.randint(0, 256, (400, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    >>> some = ImageSet(pixels, torch.zeros(400, dtype=torch.long), ("any",))
    >>> found = obfuscation(SplitModel(nn.Identity(), Channel(), nn.Identity()), some)
    >>> print(f"{found.moved:.4f} {found.jumped:.3f}", found.obfuscated)
    0.0025 0.016 False
    """
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    observer = Observer(model, images, device=device)
    random = generator(seed, "obfuscation")
    index = torch.randperm(len(images), generator=random)[:most]
    spread = images.images[index].float().div(255).std(0).flatten()
    places = (spread > _VARIES * (spread.max() > _VARIES)).nonzero().squeeze(1)
    if len(places) == 0:
        places = torch.arange(len(spread))
    varies = torch.zeros(len(spread)).index_fill_(0, places, 1.0)
    moved: list[torch.Tensor] = []
    jumped: list[torch.Tensor] = []
    for part in observer.parts(index):
        x = images.float(part)
        others = images.float(part.roll(1) if len(part) > 1 else (part + 1) % len(images))
        with evaluating(model):
            own, other = (observer.seen(model.features(one.to(device))).flatten(1) for one in (x, others))
        whole = (other - own).norm(dim=1)
        levels = (x.flatten(1) * 255).round()
        for number in range(_PIXELS + _PATTERNS):
            if number < _PIXELS:
                place = places[torch.randint(len(places), (len(x),), generator=random)]
                step = torch.zeros_like(levels).scatter_(1, place[:, None], 1.0)
            else:
                step = torch.randint(0, 2, levels.shape, generator=random).mul(2).sub(1).float()
                step = (step.abs() if number == _PIXELS else step) * varies
            changed = torch.where((levels + step).clamp(0, 255) == levels + step, levels + step, levels - step)
            with evaluating(model):
                near = observer.seen(model.features((changed / 255).reshape(x.shape).to(device))).flatten(1)
            share = torch.where(whole > 0, (near - own).norm(dim=1) / whole, 0.0).cpu()
            (moved if number < _PIXELS else jumped).append(share.double())
    return Obfuscation(float(torch.cat(moved).mean()), float(torch.cat(jumped).quantile(0.99)), len(index))
