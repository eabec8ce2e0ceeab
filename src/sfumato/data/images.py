"""Reading the image files that `sfumato.data.scan` found: decoded in threads, or taken from the cache.

A cache entry is one `.npz` file of images and labels under a digest of the names and bytes of the source files; the
archive format carries checksums. Whatever does not fit is ignored and written anew: a cache may cost time, never a
result.
"""

import contextlib
import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.data.imageset import DataSets, ImageSet, Progress, Skipped
from sfumato.data.scan import ClassFolders
from sfumato.data.split import hold_out
from sfumato.decode import decoded, reason_of
from sfumato.errors import ConfigError, DataError, StorageError
from sfumato.files import sha256_of, write_atomic

__all__ = [
    "TEST_FRACTION",
    "TEST_SEED",
    "WIDEST",
    "Size",
    "both_sides",
    "different_sizes",
    "gather",
    "of_size",
    "read_folders",
    "read_image",
    "resized",
    "unreadable",
]

Size = int | tuple[int, int] | None
"""The side of square images, (H, W), or none to leave them as they are."""
Pixels = npt.NDArray[np.uint8]
Arrays = tuple[Pixels, npt.NDArray[np.int64]]
"""Images (N, C, H, W) and labels (N,)."""

WIDEST = 4096
"""Pixels of a side, at most: a set of larger images fits no memory."""
TEST_FRACTION = 0.2
TEST_SEED = 0
_CHUNK = 256
_THREADS = 4  # small images are decoded faster than Python hands the interpreter lock around; more only wait for it
_FORMAT = 3
_UNREADABLE = "cannot read {}: {}; replace the file by an undamaged 8-bit copy, or remove it"


def both_sides(size: Size) -> tuple[int, int] | None:
    """A size as (H, W).

    Raises:
        ConfigError: it is neither one side nor two, or a side is not of 1 to 4,096 pixels.
    """
    if size is None:
        return None
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2 or not all(type(side) is int and 1 <= side <= WIDEST for side in sides):
        raise ConfigError(f"size is {size!r}; give a side of 1 to {WIDEST:,} pixels, or (height, width)")
    return sides[0], sides[1]


def resized(images: Tensor, sides: tuple[int, int]) -> Tensor:
    """Images in memory at another size, rounded to 8 bits.

    Where both sides divide the images' own, a pixel is the mean of the block that it stands for; otherwise the images
    are interpolated bilinearly, widened where they shrink (antialiased), as Pillow does it.

    Args:
        images: uint8, (N, C, H, W).
        sides: (h, w) of the result.

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
    skip_unreadable: bool | None = False,
) -> DataSets:
    """Read a training and a test part.

    Args:
        name: of the source.
        train: files to learn from.
        test: files to report on. None splits `train`, always in the same way: `hold_out` with the seed `TEST_SEED`
            takes the share `TEST_FRACTION` of the images of each class for testing; which ones depends on the order
            of the files' names.
        size: the side, or (H, W), to which other sizes are resized; none demands that all have one size.
        progress: called with (images read, images in all).
        caveat: of the data set; a sentence on the files that were passed over is added.
        skip_unreadable: leave out files that cannot be read, and list them in the result, instead of refusing; None
            where the set has to be complete.

    Raises:
        DataError: files cannot be read, all of them named (with `skip_unreadable`: no file of a part can), the images
            have different sizes and no `size` is given, or there is nothing to split.
        ConfigError: `size` is not positive.
    """
    sides = both_sides(size)
    parts = [train] if test is None else [train, test]
    total, done = sum(len(part.files) for part in parts), 0
    found: list[Arrays] = []
    broken: dict[str, str] = {}
    empty = False
    for part in parts:
        arrays, bad = _read(part, sides, lambda count: progress and progress(done + count, total))  # noqa: B023
        done += len(part.files)
        found.append(arrays)
        broken |= {part.name(place): reason for place, reason in bad.items()}
        empty |= len(arrays[0]) == 0
    if broken and (empty or not skip_unreadable):
        raise unreadable(broken, total, skip_unreadable is not None)
    sets = [
        ImageSet(torch.from_numpy(images), torch.from_numpy(labels), part.classes)
        for part, (images, labels) in zip(parts, found, strict=True)
    ]
    if test is None:
        sets = [*hold_out(sets[0], TEST_FRACTION, TEST_SEED)]
    elif sets[0].image_shape != sets[1].image_shape:
        raise different_sizes(train.name(0), sets[0].image_shape, test.name(0), sets[1].image_shape)
    skipped = tuple(Skipped(path, _UNREADABLE.format(path, reason)) for path, reason in broken.items())
    passed_over = [file for part in parts for file in part.passed_over]
    return DataSets(name, sets[0], sets[1], f"{caveat} {_passed_over(passed_over)}".strip(), skipped=skipped)


def of_size(sets: DataSets, side: int, where: str, remedy: str) -> DataSets:
    """The sets, or a `DataError` where their images are not those of a data set of this size."""
    _, height, width = sets.train.image_shape
    if (height, width) != (side, side):
        raise DataError(
            f"the images in {where} have {height}x{width} pixels, but those of {sets.name} have {side}x{side}; {remedy}"
        )
    return sets


def _passed_over(files: list[str]) -> str:
    if not files:
        return ""
    kinds = Counter(Path(file).suffix.lower() or "no ending" for file in files)
    told = ", ".join(f"{-count} with {kind}" for count, kind in sorted((-n, kind) for kind, n in kinds.items())[:6])
    return (
        f"{len(files)} files in the folders are not read, because their endings are not those of images or they lie "
        f"outside the class folders ({told}; the first is {files[0]})."
    )


def _read(
    part: ClassFolders, size: tuple[int, int] | None, tell: Callable[[int], object]
) -> tuple[Arrays, dict[int, str]]:
    """Images and labels of the files that can be read, from the cache where they are there; why the others cannot."""
    contents, count = part.contents, len(part.files)
    entry: Path | None = None
    key: str | None = None
    if part.root is not None:
        paths = [part.root / file for file in part.files]
        contents, entry, key = paths, cache_entry(part.root, size), _digest(part, paths)
    if entry is not None and key is not None and (stored := read_entry(entry, key)) is not None:
        tell(count)
        return stored, {}
    images, broken = gather(contents, part.name, count, size, tell)
    labels = np.array([label for i, label in enumerate(part.labels) if i not in broken], dtype=np.int64)
    if not broken and entry is not None and key is not None:  # an incomplete reading is not kept
        write_entry(entry, key, (images, labels))
    return (images, labels), broken


def gather(
    sources: Iterable[bytes | Path],
    name: Callable[[int], str],
    count: int,
    size: tuple[int, int] | None,
    tell: Callable[[int], object],
) -> tuple[Pixels, dict[int, str]]:
    """The images that can be read, (n, 3, H, W), decoded in threads; by place, why the others cannot.

    `sources` are the `count` files' contents, or where they lie; `name` says what the image at a place is called in a
    message, and `tell` hears how many are done.
    """
    images, first, broken = np.empty((0, 3, 1, 1), dtype=np.uint8), "", dict[int, str]()

    def pixels_or_reason(source: bytes | Path) -> Pixels | str:
        try:
            return fitted(decoded(source if isinstance(source, bytes) else source.read_bytes()), size)
        except Exception as error:
            return reason_of(error)

    places = iter(enumerate(sources))
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(places, _CHUNK)):
            for (i, _), found in zip(chunk, pool.map(pixels_or_reason, [source for _, source in chunk]), strict=True):
                if isinstance(found, str):
                    broken[i] = found
                    continue
                if not first:
                    images, first = np.empty((count, *found.shape), dtype=np.uint8), name(i)
                if found.shape != images.shape[1:]:
                    raise different_sizes(first, images.shape[1:], name(i), found.shape)
                images[i] = found
            tell(chunk[-1][0] + 1)
    return (images[[i for i in range(count) if i not in broken]] if broken and first else images), broken


def _digest(part: ClassFolders, paths: Iterable[Path]) -> str | None:
    """Of names, labels and bytes; none where a file cannot be read."""
    digest = hashlib.sha256(repr((part.classes, part.files, part.labels)).encode())
    try:
        for path in paths:
            digest.update(sha256_of(path).encode())
    except OSError:
        return None
    return digest.hexdigest()


def different_sizes(one: str, shape: tuple[int, ...], other: str, other_shape: tuple[int, ...]) -> DataError:
    """What to do about images of two sizes."""
    return DataError(
        f"images of different sizes: {one} has {shape[1]}x{shape[2]} pixels (height x width), "
        f"{other} has {other_shape[1]}x{other_shape[2]}; give `size` to resize all of them"
    )


def unreadable(reasons: dict[str, str], total: int, skippable: bool = True) -> DataError:
    """All images that cannot be read, in one sentence."""
    told = "; ".join(f"{name} ({reason})" for name, reason in reasons.items())
    remedy = "replace them by undamaged 8-bit copies, or remove them"
    if skippable:
        remedy += ", or leave them out with --skip-unreadable (in Python skip_unreadable=True)"
    return DataError(f"cannot read {len(reasons)} of {total} images: {told}; {remedy}")


def read_image(path: Path, size: tuple[int, int] | None = None) -> Pixels:
    """The pixels of one image file as RGB, (3, H, W), resized to `size` (H, W) where that is given; see `decoded`."""
    try:
        return fitted(decoded(path.read_bytes()), size)
    except Exception as error:
        raise DataError(_UNREADABLE.format(f"the image {path}", reason_of(error))) from error


def fitted(pixels: Pixels, size: tuple[int, int] | None) -> Pixels:
    """RGB pixels (H, W, 3) as (3, h, w), resized to `size` (bilinear) where they have another."""
    if size is not None and pixels.shape[:2] != size:
        from PIL import Image

        pixels = np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return pixels.transpose(2, 0, 1)


def cache_entry(source: Path, size: tuple[int, int] | None) -> Path | None:
    """The cache file for what is read from `source` at `size`; none if there is no home to keep it in.

    It lies in $SFUMATO_CACHE, else in $XDG_CACHE_HOME/sfumato, else in ~/.cache/sfumato; one per source and size.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = Path(os.environ.get("SFUMATO_CACHE") or Path(base) / "sfumato")
    except RuntimeError:
        return None
    name = hashlib.sha256(repr((str(source.resolve()), size)).encode()).hexdigest()[:16]
    return root / "folders" / f"{name}.npz"


def read_entry(entry: Path, key: str) -> Arrays | None:
    """The arrays stored under `key`, or none if there are none, they belong to other files, or they are damaged."""
    try:
        with np.load(entry, allow_pickle=False) as stored:
            return (stored["images"], stored["labels"]) if str(stored["key"]) == f"{_FORMAT} {key}" else None
    except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile, AttributeError):
        return None


def write_entry(entry: Path, key: str, arrays: Arrays) -> None:
    """Store the arrays, where that is possible (the disk may be full, or for reading only)."""

    def write(path: Path) -> None:
        with path.open("wb") as handle:  # given a path, numpy would append .npz to it
            np.savez(handle, images=arrays[0], labels=arrays[1], key=np.array(f"{_FORMAT} {key}"))

    with contextlib.suppress(StorageError):
        write_atomic(entry, write)
