"""Images in class folders: DIR/train/<class>/<image> and DIR/test/<class>/<image>."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sfumato.data.cache import Arrays, cache_entry, read_entry, write_entry
from sfumato.data.images import SUFFIXES, Pixels, read_image
from sfumato.data.imageset import DataSets, ImageSet, Progress
from sfumato.errors import ConfigError, DataError

__all__ = ["ClassFolders", "describe", "load_folder", "read_class_folders", "scan"]

_LAYOUT = "DIR/train/<class>/<image>.jpg (or .png, ...) and the same under DIR/test or DIR/val"
_CHUNK = 256
_THREADS = 4  # small images are decoded faster than Python hands the interpreter lock around; more only wait for it


@dataclass(frozen=True)
class ClassFolders:
    """The image files of one part of a data set, found but not read.

    Attributes:
        root: the folder of the class folders.
        classes: their names, sorted.
        files: all images as paths relative to `root`, class after class, sorted.
        labels: the class index of each.
        key: digest of names, sizes and modification times.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    key: str


def load_folder(
    data_dir: Path | str, *, size: int | tuple[int, int] | None = None, progress: Progress | None = None
) -> DataSets:
    """Read `data_dir`/train and `data_dir`/test (or `val`), one folder per class, as RGB images of one size.

    The decoded images are cached (see `sfumato.data.cache`), keyed by the files' names, sizes and modification times.

    Args:
        data_dir: the folder that holds `train` and `test` or `val`.
        size: the side, or (H, W), to which images of other sizes are resized; none demands that all have one size.
        progress: called with (images read, images in all).

    Raises:
        DataError: the layout is another one, a class is empty or missing in one part, a file is damaged, or the images
            have different sizes and no `size` is given.
        ConfigError: `size` is not positive.
    """
    train, test = scan(Path(data_dir))
    return read_class_folders("folder", train, test, size=size, progress=progress)


def scan(data_dir: Path) -> tuple[ClassFolders, ClassFolders]:
    """Find the images of the training and of the test part, and check that both have the same classes.

    Raises:
        DataError: see `load_folder`.
    """
    test_dir = next((data_dir / name for name in ("test", "val") if (data_dir / name).is_dir()), None)
    if not (data_dir / "train").is_dir() or test_dir is None:
        raise DataError(f"no class folders in {data_dir}: expected {_LAYOUT}, but found {describe(data_dir)}")
    try:
        train, test = _scan_part(data_dir / "train"), _scan_part(test_dir)
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}; check that you may read the folder"
        ) from error
    if train.classes != test.classes:
        lacking = [
            f"{', '.join(sorted(there - here)[:5])} in {part.root}"
            for part, here, there in (
                (train, set(train.classes), set(test.classes)),
                (test, set(test.classes), set(train.classes)),
            )
            if there - here
        ]
        raise DataError(
            f"both parts need the same classes, but there is no {' and no '.join(lacking)}; add or remove them"
        )
    return train, test


def read_class_folders(
    name: str,
    train: ClassFolders,
    test: ClassFolders,
    *,
    size: int | tuple[int, int] | None = None,
    progress: Progress | None = None,
    caveat: str = "",
) -> DataSets:
    """Read what `scan` found, from the cache where possible.

    Raises:
        DataError: see `load_folder`.
        ConfigError: `size` is not positive.
    """
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None and min(sides) < 1:
        raise ConfigError(f"size is {size}; give a side of at least one pixel, or (height, width)")
    total, before = len(train.files) + len(test.files), 0
    sets = []
    for part in (train, test):
        entry = cache_entry(part.root, sides)
        arrays = read_entry(entry, part.key) if entry is not None else None
        if arrays is None:
            arrays = _read_images(part, sides, progress, before, total)
            if entry is not None:
                write_entry(entry, part.key, arrays)
        before += len(part.files)
        if progress is not None:
            progress(before, total)
        images, labels = arrays
        sets.append(ImageSet(torch.from_numpy(images), torch.from_numpy(labels), part.classes))
    if sets[0].image_shape != sets[1].image_shape:
        raise _different_sizes(train, train.files[0], sets[0].image_shape, test, test.files[0], sets[1].image_shape)
    return DataSets(name, sets[0], sets[1], caveat)


def describe(folder: Path) -> str:
    """What is in a folder, in a few words, for messages."""
    if not folder.exists():
        return "that it does not exist"
    if not folder.is_dir():
        return "that it is a file"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(folder))
    if not names:
        return "it empty"
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _scan_part(root: Path) -> ClassFolders:
    classes = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _hidden(entry)))
    if not classes:
        raise DataError(f"no class folders in {root}: expected {_LAYOUT}, but found {describe(root)}")
    files: list[str] = []
    labels: list[int] = []
    digest = hashlib.sha256()
    for label, name in enumerate(classes):
        found = sorted(_images_in(root / name))
        if not found:
            raise DataError(
                f"the class folder {root / name} has no images (found {describe(root / name)}); "
                f"add some ({', '.join(sorted(SUFFIXES))}) or remove the folder"
            )
        files += [f"{name}/{file}" for file, _, _ in found]
        labels += [label] * len(found)
        digest.update(repr((name, found)).encode())
    return ClassFolders(root, classes, tuple(files), tuple(labels), digest.hexdigest())


def _images_in(folder: Path) -> Iterator[tuple[str, int, int]]:
    for entry in os.scandir(folder):
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not _hidden(entry) and entry.is_file():
            status = entry.stat()
            yield entry.name, status.st_size, status.st_mtime_ns


def _hidden(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".")


def _read_images(
    part: ClassFolders, size: tuple[int, int] | None, progress: Progress | None, before: int, total: int
) -> Arrays:
    first = read_image(part.root / part.files[0], size)
    images = np.empty((len(part.files), *first.shape), dtype=np.uint8)

    def read(start: int) -> int:
        chunk = part.files[start : start + _CHUNK]
        for i, file in enumerate(chunk, start):
            pixels: Pixels = read_image(part.root / file, size)
            if pixels.shape != first.shape:
                raise _different_sizes(part, part.files[0], first.shape, part, file, pixels.shape)
            images[i] = pixels
        return len(chunk)

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for count in pool.map(read, range(0, len(part.files), _CHUNK)):
                before += count
                if progress is not None:
                    progress(before, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return images, np.array(part.labels, dtype=np.int64)


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
