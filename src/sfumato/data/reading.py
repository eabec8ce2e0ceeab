"""Reading the image files that `sfumato.data.scan` found: decoded in threads, or taken from the cache.

A cache entry is one `.npz` file of images and labels under a digest of the names, sizes and modification times of the
source files; the archive format carries checksums. Whatever does not fit is ignored and written anew: a cache may cost
time, never a result.
"""

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.data.imageset import DataSets, ImageSet, Progress, Skipped
from sfumato.data.scan import ClassFolders
from sfumato.data.split import hold_out
from sfumato.errors import ConfigError, DataError, StorageError
from sfumato.files import write_atomic

__all__ = ["TEST_FRACTION", "TEST_SEED", "Size", "both_sides", "fitted", "read_folders", "read_image", "resized", "rgb"]

Size = int | tuple[int, int] | None
"""The side of square images, (H, W), or none to leave them as they are."""
Pixels = npt.NDArray[np.uint8]
Arrays = tuple[Pixels, npt.NDArray[np.int64]]
"""Images (N, C, H, W) and labels (N,)."""

TEST_FRACTION = 0.2
TEST_SEED = 0
_CHUNK = 256
_THREADS = 4  # small images are decoded faster than Python hands the interpreter lock around; more only wait for it
_DAMAGED = re.compile(r"premature end|bad huffman", re.IGNORECASE)
_FORMAT = 2


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


def read_folders(
    name: str,
    train: ClassFolders,
    test: ClassFolders | None = None,
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
        test: files to report on. None splits `train`, always in the same way: `hold_out` with the seed `TEST_SEED`
            takes the share `TEST_FRACTION` of the images of each class for testing; which ones depends on the order
            of the files' names.
        size: the side, or (H, W), to which other sizes are resized.
        progress: called with (images read, images in all).
        caveat: of the data set.
        skip_broken: leave out files that cannot be read, and list them in the result, instead of refusing.

    Raises:
        DataError: a file is damaged (with `skip_broken`: all files of a part are), the images have different sizes
            and no `size` is given, or there is nothing to split.
        ConfigError: `size` is not positive.
    """
    parts = [train] if test is None else [train, test]
    reader = _Reader(both_sides(size), progress, sum(len(part.files) for part in parts), skip_broken)
    sets = [reader.read(part) for part in parts]
    if test is None:
        sets = [*hold_out(sets[0], TEST_FRACTION, TEST_SEED)]
    elif sets[0].image_shape != sets[1].image_shape:
        raise _different_sizes(
            train.root / train.files[0], sets[0].image_shape, test.root / test.files[0], sets[1].image_shape
        )
    return DataSets(name, sets[0], sets[1], caveat, skipped=tuple(reader.skipped))


class _Reader:
    """Reads parts one after the other, and counts images and what it had to skip."""

    def __init__(self, size: tuple[int, int] | None, progress: Progress | None, total: int, skip_broken: bool) -> None:
        self.skipped: list[Skipped] = []
        self._size, self._progress, self._total, self._skips = size, progress, total, skip_broken
        self._done = 0

    def read(self, part: ClassFolders) -> ImageSet:
        """One part, from the cache where it is there."""
        entry = cache_entry(part.root, self._size)
        arrays = read_entry(entry, part.key) if entry is not None else None
        if arrays is None:
            known, start = len(self.skipped), self._done
            arrays = self._decode(part)
            self._done = start
            if entry is not None and len(self.skipped) == known:  # an incomplete reading is not kept
                write_entry(entry, part.key, arrays)
        self._count(len(part.files))
        images, labels = arrays
        return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), part.classes)

    def _count(self, images: int) -> None:
        self._done += images
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _decode(self, part: ClassFolders) -> Arrays:
        first, shape = self._first(part)
        images = np.empty((len(part.files), *shape), dtype=np.uint8)
        broken: dict[int, str] = {}

        def read(start: int) -> int:
            chunk = part.files[start : start + _CHUNK]
            for i, file in enumerate(chunk, start):
                try:
                    pixels = read_image(part.root / file, self._size)
                except DataError as error:
                    if not self._skips:
                        raise
                    broken[i] = str(error)
                    continue
                if pixels.shape != shape:
                    raise _different_sizes(part.root / first, shape, part.root / file, pixels.shape)
                images[i] = pixels
            return len(chunk)

        for count in _in_threads(read, range(0, len(part.files), _CHUNK)):
            self._count(count)
        labels = np.array(part.labels, dtype=np.int64)
        self.skipped += [Skipped(str(part.root / part.files[i]), broken[i]) for i in sorted(broken)]
        kept = [i for i in range(len(part.files)) if i not in broken]
        return (images[kept], labels[kept]) if broken else (images, labels)

    def _first(self, part: ClassFolders) -> tuple[str, tuple[int, ...]]:
        """The first file that can be read, and the shape of its pixels, which all others must have."""
        problem: DataError | None = None
        for file in part.files:
            try:
                return file, read_image(part.root / file, self._size).shape
            except DataError as error:
                problem = problem or error
                if not self._skips:
                    break
        assert problem is not None  # a part has at least one file
        raise problem


def _in_threads(read: Callable[[int], int], starts: range) -> Iterator[int]:
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            yield from pool.map(read, starts)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _different_sizes(one: Path, shape: tuple[int, ...], other: Path, other_shape: tuple[int, ...]) -> DataError:
    return DataError(
        f"images of different sizes: {one} has {shape[1]}x{shape[2]} pixels (height x width), "
        f"{other} has {other_shape[1]}x{other_shape[2]}; give `size` to resize all of them"
    )


def read_image(path: Path, size: tuple[int, int] | None = None) -> Pixels:
    """The pixels of one image file as RGB, (3, H, W); grey images get three equal channels, transparency is dropped.

    JPEG files are decoded by simplejpeg (five times faster than Pillow, same pixels), everything else by Pillow. Pixels
    are taken as stored: an EXIF orientation is not applied.

    Args:
        path: the file.
        size: (H, W) to which other sizes are resized (bilinear; stretched where the shape differs), or none.

    Raises:
        DataError: the file cannot be read, is truncated or damaged, or has more than 8 bits per channel.
    """
    try:
        pixels = _decode(path.read_bytes())
    except Exception as error:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, their own warnings-as-errors and more.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise DataError(
            f"cannot read the image {path}: {reason}; replace the file by an undamaged 8-bit copy, or remove it"
        ) from error
    return fitted(pixels, size)


def fitted(pixels: Pixels, size: tuple[int, int] | None) -> Pixels:
    """RGB pixels (H, W, 3) as (3, h, w), resized to `size` (bilinear) where they have another."""
    if size is not None and pixels.shape[:2] != size:
        from PIL import Image

        pixels = np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return pixels.transpose(2, 0, 1)


def rgb(image: Any) -> Pixels:
    """The pixels (H, W, 3) of an image of Pillow.

    Raises:
        ValueError: it has more than 8 bits per channel.
    """
    if image.mode[0] in "IF":
        raise ValueError(f"its pixels have more than 8 bits (mode {image.mode})")
    return np.asarray(image.convert("RGB"))


def _decode(data: bytes) -> Pixels:
    from PIL import Image, UnidentifiedImageError

    if data.startswith(b"\xff\xd8"):
        try:
            import simplejpeg

            # The two round CMYK differently, and a device may have Pillow only.
            if simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK"):
                pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
                return pixels
        except ValueError as error:
            # What is missing cannot be decoded by others either; they would only fill it with grey.
            if _DAMAGED.search(str(error)):
                raise
        except ImportError:
            pass
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError("it is empty, truncated or no image" if data else "it is empty") from None
    with image:
        return rgb(image)


def cache_entry(source: Path, size: tuple[int, int] | None) -> Path | None:
    """The cache file for what is read from `source` at `size`; none if there is no home to keep it in.

    It lies in $SFUMATO_CACHE, else in $XDG_CACHE_HOME/sfumato, else in ~/.cache/sfumato. One source has one entry per
    size, so a changed source replaces its old entry.
    """
    if chosen := os.environ.get("SFUMATO_CACHE"):
        root = Path(chosen)
    elif base := os.environ.get("XDG_CACHE_HOME"):
        root = Path(base) / "sfumato"
    else:
        try:
            root = Path.home() / ".cache" / "sfumato"
        except RuntimeError:
            return None
    name = hashlib.sha256(repr((str(source.resolve()), size)).encode()).hexdigest()[:16]
    return root / "folders" / f"{name}.npz"


def read_entry(entry: Path, key: str) -> Arrays | None:
    """The arrays stored under `key`, or none if there are none, they belong to other files, or they are damaged."""
    try:
        with np.load(entry, allow_pickle=False) as stored:
            if str(stored["key"]) != f"{_FORMAT} {key}":
                return None
            return stored["images"], stored["labels"]
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile, AttributeError):
        return None


def write_entry(entry: Path, key: str, arrays: Arrays) -> None:
    """Store the arrays; does nothing where that is impossible, for example on a read-only or full disk."""
    images, labels = arrays

    def write(path: Path) -> None:
        with path.open("wb") as handle:  # given a path, numpy would append .npz to it
            np.savez(handle, images=images, labels=labels, key=np.array(f"{_FORMAT} {key}"))

    try:
        write_atomic(entry, write)
    except StorageError:
        return
