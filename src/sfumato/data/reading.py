"""Reading the image files that `sfumato.data.scan` found, from the cache where possible."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.data.cache import Arrays, cache_entry, read_entry, write_entry
from sfumato.data.images import Pixels, read_image
from sfumato.data.imageset import DataSets, ImageSet, Progress, Skipped
from sfumato.data.scan import ClassFolders
from sfumato.data.split import hold_out
from sfumato.errors import ConfigError, DataError

__all__ = ["TEST_FRACTION", "TEST_SEED", "Size", "both_sides", "read_class_folders", "read_unsplit", "resized"]

Size = int | tuple[int, int] | None
"""The side of square images, (H, W), or none to leave them as they are."""

TEST_FRACTION = 0.2
TEST_SEED = 0
_CHUNK = 256
_THREADS = 4  # small images are decoded faster than Python hands the interpreter lock around; more only wait for it


def both_sides(size: Size) -> tuple[int, int] | None:
    """A size as (H, W).

    Raises:
        ConfigError: a side is below one pixel.
    """
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and min(sides) < 1:
        raise ConfigError(f"size is {size}; give a side of at least one pixel, or (height, width)")
    return sides


def resized(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """Images in memory at another size, rounded to 8 bits.

    Where both sides divide the images' own, a pixel is the mean of the block that it stands for; otherwise the images
    are interpolated bilinearly, widened where they shrink (antialiased), as Pillow does it.

    Args:
        images: uint8, (N, C, H, W).
        sides: (h, w) of the result.

    Example:
        >>> resized(torch.tensor([[[[0, 10, 50, 50], [20, 30, 50, 54]]]], dtype=torch.uint8), (1, 2)).tolist()
        [[[[15, 51]]]]
    """
    height, width = images.shape[2:]
    if (height, width) == sides:
        return images
    if height % sides[0] == 0 and width % sides[1] == 0:
        scaled = F.avg_pool2d(images.float(), (height // sides[0], width // sides[1]))
    else:
        scaled = F.interpolate(images.float(), size=sides, mode="bilinear", align_corners=False, antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)


def read_class_folders(
    name: str,
    train: ClassFolders,
    test: ClassFolders,
    *,
    size: Size = None,
    progress: Progress | None = None,
    caveat: str = "",
    skip_broken: bool = False,
) -> DataSets:
    """Read a training and a test part.

    Args:
        name: of the source.
        train: files to learn from.
        test: files to report on.
        size: the side, or (H, W), to which other sizes are resized.
        progress: called with (images read, images in all).
        caveat: of the data set.
        skip_broken: leave out files that cannot be read, and list them in the result, instead of refusing.

    Raises:
        DataError: a file is damaged (with `skip_broken`: all files of a part are), or the images have different sizes
            and no `size` is given.
        ConfigError: `size` is not positive.
    """
    sides = both_sides(size)
    total = len(train.files) + len(test.files)
    skipped: list[Skipped] | None = [] if skip_broken else None
    sets = [
        _read_part(train, sides, progress, 0, total, skipped),
        _read_part(test, sides, progress, len(train.files), total, skipped),
    ]
    if sets[0].image_shape != sets[1].image_shape:
        raise _different_sizes(train, train.files[0], sets[0].image_shape, test, test.files[0], sets[1].image_shape)
    return DataSets(name, sets[0], sets[1], caveat, skipped=tuple(skipped or ()))


def read_unsplit(
    name: str,
    found: ClassFolders,
    *,
    size: Size = None,
    progress: Progress | None = None,
    caveat: str = "",
    skip_broken: bool = False,
) -> DataSets:
    """Read a data set without a split of its own and split it, always in the same way.

    `hold_out` with the seed `TEST_SEED` takes the share `TEST_FRACTION` of the images of each class for testing; which
    ones depends on the order of the files' names.

    Raises:
        DataError: as for `read_class_folders`, or no class has a second image.
        ConfigError: `size` is not positive.
    """
    skipped: list[Skipped] | None = [] if skip_broken else None
    every = _read_part(found, both_sides(size), progress, 0, len(found.files), skipped)
    train, test = hold_out(every, TEST_FRACTION, TEST_SEED)
    return DataSets(name, train, test, caveat, skipped=tuple(skipped or ()))


def _read_part(
    part: ClassFolders,
    size: tuple[int, int] | None,
    progress: Progress | None,
    before: int,
    total: int,
    skipped: list[Skipped] | None,
) -> ImageSet:
    entry = cache_entry(part.root, size)
    arrays = read_entry(entry, part.key) if entry is not None else None
    if arrays is None:
        known = len(skipped or ())
        arrays = _read_images(part, size, progress, before, total, skipped)
        if entry is not None and len(skipped or ()) == known:  # an incomplete reading is not kept
            write_entry(entry, part.key, arrays)
    if progress is not None:
        progress(before + len(part.files), total)
    images, labels = arrays
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), part.classes)


def _read_images(
    part: ClassFolders,
    size: tuple[int, int] | None,
    progress: Progress | None,
    before: int,
    total: int,
    skipped: list[Skipped] | None,
) -> Arrays:
    first, first_pixels = _first_readable(part, size, skip=skipped is not None)
    images = np.empty((len(part.files), *first_pixels.shape), dtype=np.uint8)
    broken: dict[int, str] = {}

    def read(start: int) -> int:
        chunk = part.files[start : start + _CHUNK]
        for i, file in enumerate(chunk, start):
            try:
                pixels: Pixels = read_image(part.root / file, size)
            except DataError as error:
                if skipped is None:
                    raise
                broken[i] = str(error)
                continue
            if pixels.shape != first_pixels.shape:
                raise _different_sizes(part, first, first_pixels.shape, part, file, pixels.shape)
            images[i] = pixels
        return len(chunk)

    _in_threads(read, range(0, len(part.files), _CHUNK), progress, before, total)
    labels = np.array(part.labels, dtype=np.int64)
    if skipped is None or not broken:
        return images, labels
    skipped += [Skipped(str(part.root / part.files[i]), broken[i]) for i in sorted(broken)]
    kept = np.array([i not in broken for i in range(len(part.files))])
    return images[kept], labels[kept]


def _first_readable(part: ClassFolders, size: tuple[int, int] | None, *, skip: bool) -> tuple[str, Pixels]:
    """The first file that can be read, and its pixels, which say what size all others must have."""
    problem: DataError | None = None
    for file in part.files:
        try:
            return file, read_image(part.root / file, size)
        except DataError as error:
            problem = problem or error
            if not skip:
                break
    assert problem is not None  # a part has at least one file
    raise problem


def _in_threads(read: Callable[[int], int], starts: range, progress: Progress | None, before: int, total: int) -> None:
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for count in pool.map(read, starts):
                before += count
                if progress is not None:
                    progress(before, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _different_sizes(
    one: ClassFolders,
    file: str,
    shape: tuple[int, ...],
    other: ClassFolders,
    file2: str,
    shape2: tuple[int, ...],
) -> DataError:
    return DataError(
        f"images of different sizes: {one.root / file} has {shape[1]}x{shape[2]} pixels (height x width), "
        f"{other.root / file2} has {shape2[1]}x{shape2[2]}; give `size` to resize all of them"
    )
