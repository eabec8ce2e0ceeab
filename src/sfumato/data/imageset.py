"""Labelled images in memory: one uint8 tensor, checked once, identified by its content."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfumato.errors import DataError

__all__ = ["DataSets", "ImageSet", "Progress", "Skipped", "of_arrays"]

_LARGE = 128  # pixels of a side; four times those that the built-in networks are made for

Progress = Callable[[int, int], None]
"""Called with (done, total) while something long is read: images, or bytes of a download."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with their classes.

    Attributes:
        images: uint8 pixels, (N, C, H, W) with N >= 1.
        labels: int64 class indices, (N,), each in 0 .. len(classes) - 1.
        classes: the names of the classes.

    Raises:
        DataError: a shape, a dtype or a label does not fit, or there is no image.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
            raise DataError(
                f"images are a {type(images).__name__} and labels a {type(labels).__name__}; give tensors, of arrays "
                "with torch.from_numpy"
            )
        names = self.classes
        if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
            raise DataError(f"classes are {str(names)[:50]!r}; give the names of the classes as texts in a tuple")
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise DataError(
                f"images are {images.dtype} of shape {tuple(images.shape)}; "
                "give 8-bit pixels: uint8 of shape (N, C, H, W)"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels are {labels.dtype} of shape {tuple(labels.shape)} for {len(images)} images; "
                "give int64, one per image"
            )
        if images.numel() == 0:
            raise DataError(f"the set is empty (images of shape {tuple(images.shape)}); give at least one image")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.classes):
            raise DataError(
                f"labels run from {low} to {high}, but there are {len(self.classes)} classes; "
                f"labels must lie in 0 .. {len(self.classes) - 1}: correct them or name the missing classes"
            )
        object.__setattr__(self, "classes", tuple(self.classes))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """How many classes there are, also those without an image here."""
        return len(self.classes)

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageSet":
        """The images at these positions, in this order, copied; a boolean mask of length N works too.

        Raises:
            DataError: no index, or one outside 0 .. N - 1.
        """
        try:
            index = torch.as_tensor(indices, device=self.images.device)
        except (TypeError, ValueError, RuntimeError):
            raise DataError(f"indices are a {type(indices).__name__}; give a flat list of positions") from None
        if index.numel() == 0:
            raise DataError("no index is given, and a set cannot be empty; choose at least one image")
        if index.dtype == torch.bool and index.shape != self.labels.shape:
            raise DataError(
                f"the mask has shape {tuple(index.shape)}; give one value for each of the {len(self)} images"
            )
        if index.is_floating_point() or index.is_complex():
            raise DataError(f"indices are {index.dtype}; give whole numbers, or a boolean mask")
        if index.dtype == torch.bool:
            return ImageSet(self.images[index], self.labels[index], self.classes)
        if index.ndim != 1 or int(index.min()) < 0 or int(index.max()) >= len(self):
            raise DataError(
                f"indices of shape {tuple(index.shape)} run from {index.min()} to {index.max()}; "
                f"give a flat list of positions in 0 .. {len(self) - 1}"
            )
        index = index.long()  # torch takes 8-bit numbers for a mask
        return ImageSet(self.images[index], self.labels[index], self.classes)

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) of shape, pixels, labels and class names: equal if and only if the content is."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def float(self, indices: Tensor | None = None) -> Tensor:
        """The images (or those at `indices`) as float32 in [0, 1], (n, C, H, W)."""
        images = self.images if indices is None else self.images[indices]
        return images.to(torch.float32).div_(255)


def of_arrays(
    pixels: npt.NDArray[np.uint8], labels: npt.NDArray[Any], classes: tuple[str, ...], where: str, remedy: str
) -> ImageSet:
    """A set of what a file of a known data set holds; a label that this does not have is named with its place."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise DataError(
            f"{where}: image {wrong[0]} has the label {labels[wrong[0]]}, outside 0 .. {len(classes) - 1}: the file is "
            f"damaged or belongs to another data set; {remedy}"
        )
    images = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    return ImageSet(images, torch.from_numpy(labels.astype(np.int64)), classes)


class Skipped(NamedTuple):
    """An image file that could not be read, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class DataSets:
    """What a data source gives.

    Attributes:
        name: of the source, such as `cifar10`.
        train: to learn from; every choice is made on a validation set taken from it (`hold_out`).
        test: to report on, never to choose by.
        caveat: a sentence on what the data is and what its numbers do not show; empty if there is nothing to say.
        labelled: False where the images have no classes and the labels mean nothing.
        skipped: files that could not be read and were left out; only where the reader asked for that.
    """

    name: str
    train: ImageSet
    test: ImageSet
    caveat: str = ""
    labelled: bool = True
    skipped: tuple[Skipped, ...] = ()

    def summary(self) -> str:
        """What a person should know before a training: numbers, sizes, what was left out, what is there twice.

        >>> from sfumato import data
        >>> print(data.load("digits").summary())
        digits: 1,438 training and 359 test images of 1x8x8 (channels x height x width) in 10 classes; the smallest, \
8, has 139 training images
        """
        train, test = self.train, self.test
        shape = "x".join(map(str, train.image_shape))
        lines = [
            f"{self.name}: {len(train):,} training and {len(test):,} test images of {shape} (channels x height x width)"
        ]
        if self.labelled:
            counts = train.labels.bincount(minlength=train.num_classes)
            smallest = int(counts.argmin())
            lines[0] += (
                f" in {train.num_classes} classes; the smallest, {train.classes[smallest]}, has {counts[smallest]} "
                "training images"
            )
        if max(train.image_shape[1:]) > _LARGE:
            lines.append(
                "the built-in networks are made for images of 32 to 64 pixels and take longer in proportion to the "
                "pixels; --size 64 resizes them"
            )
        if self.skipped:
            lines.append(f"{len(self.skipped)} images cannot be read and are left out:")
            lines += [f"  {skipped.reason}" for skipped in self.skipped]
        within, between = self.repeats()
        if within:
            lines.append(f"{within:,} training images repeat another one pixel for pixel")
        named = {*zip(_hashes(train.images), train.labels.tolist(), strict=True)}
        if self.labelled and (torn := len(named) - (len(train) - within)):
            lines.append(
                f"{torn:,} training images have pixel for pixel the image of another class: no classifier tells those "
                "apart; correct their labels"
            )
        if between:
            lines.append(
                f"{between:,} of {len(test):,} test images are training images, pixel for pixel: an attacker who "
                "learned from those has seen them, and every figure on the test set is too favourable to it"
            )
        return "\n".join(lines)

    def repeats(self) -> tuple[int, int]:
        """Training images that repeat an earlier one exactly, and test images that are training images, by hash."""
        known = Counter(_hashes(self.train.images))
        return len(self.train) - len(known), sum(digest in known for digest in _hashes(self.test.images))


def _hashes(images: Tensor) -> list[bytes]:
    return [hashlib.blake2b(row.data, digest_size=16).digest() for row in images.cpu().flatten(1).contiguous().numpy()]
