"""The handwritten digits that come with the package: enough to try everything in minutes, without a download.

1,797 grey images of 8 x 8 pixels in ten classes: the test part of "Optical Recognition of Handwritten Digits",
E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed
CC BY 4.0; the same images as scikit-learn's `load_digits`. A pixel is a count v of ink in 0 .. 16, stored here
unchanged and handed out as round(255 v / 16).
"""

from importlib.resources import files

import numpy as np
import torch

from sfumato.data.images import TEST_FRACTION, Size, both_sides, resized
from sfumato.data.imageset import DataSets, ImageSet
from sfumato.data.split import hold_out

__all__ = ["load_digits"]

_CAVEAT = "The images are 8x8 grey digits: they show a method's behaviour in minutes, and say little about photographs."


def load_digits(seed: int = 0, size: Size = None) -> DataSets:
    """The embedded digits, a fifth of them as test images, stratified by class; `seed` decides the split.

    With `size` they are resized, so that a network for larger images can be tried without any download.
    """
    sides = both_sides(size)
    with (
        files("sfumato.data").joinpath("digits.npz").open("rb") as handle,
        np.load(handle, allow_pickle=False) as stored,
    ):
        counts, labels = stored["images"], stored["labels"]
    pixels = np.rint(counts * (255 / 16)).astype(np.uint8)
    images, caveat = torch.from_numpy(pixels).unsqueeze(1), _CAVEAT
    if sides is not None and sides != (8, 8):
        images, caveat = resized(images, sides), f"{_CAVEAT} They were resized to {sides[0]}x{sides[1]}."
    every = ImageSet(
        images,
        torch.from_numpy(labels.astype(np.int64)),
        tuple(str(digit) for digit in range(10)),
    )
    train, test = hold_out(every, TEST_FRACTION, seed)
    return DataSets("digits", train, test, caveat)
