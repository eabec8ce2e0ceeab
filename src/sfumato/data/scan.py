"""Finding labelled image files in folders, without reading them."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import DataError

__all__ = [
    "LOSSY_SUFFIXES",
    "SPLIT_LAYOUT",
    "ClassFolders",
    "FoundFile",
    "describe",
    "images_in",
    "readable",
    "scan",
    "scan_classes",
]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})
LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})
SPLIT_LAYOUT = "DIR/train/<class>/<image>.jpg (or .png, ...) and the same under DIR/test or DIR/val"

FoundFile = tuple[str, int, int]
"""Name, size in bytes and time of the last change in nanoseconds."""


@dataclass(frozen=True)
class ClassFolders:
    """The image files of one part of a data set, found but not read.

    Attributes:
        root: the folder of the class folders.
        classes: their names, in the order of the labels.
        files: all images as paths relative to `root`.
        labels: the class index of each.
        key: digest of names, labels, sizes and modification times.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    key: str


def scan(data_dir: Path, layout: str = SPLIT_LAYOUT) -> tuple[ClassFolders, ClassFolders]:
    """Find the images of DIR/train and DIR/test (or DIR/val), and check that both have the same classes.

    Raises:
        DataError: the layout is another one, a class is empty or missing in one part, or a folder cannot be read.
    """
    test_dir = next((data_dir / name for name in ("test", "val") if (data_dir / name).is_dir()), None)
    if not (data_dir / "train").is_dir() or test_dir is None:
        raise DataError(f"no class folders in {data_dir}: expected {layout}, but found {describe(data_dir)}")
    train, test = scan_classes(data_dir / "train", layout), scan_classes(test_dir, layout)
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


def scan_classes(
    root: Path,
    layout: str = SPLIT_LAYOUT,
    *,
    classes: Sequence[str] | None = None,
    inner: str = "",
    remedy: str = f"add some ({', '.join(sorted(SUFFIXES))}) or remove the folder",
) -> ClassFolders:
    """Find the images in `root`/<class>/ (or `root`/<class>/`inner`/), class after class, sorted by name.

    Args:
        root: the folder of the class folders.
        layout: what is expected, for the message.
        classes: folders to look into, in the order of the labels; none: all there are, sorted.
        inner: a folder inside each class folder that holds its images.
        remedy: what to do about a class folder without images.

    Raises:
        DataError: there is no class folder, one has no images, or a folder cannot be read.
    """
    with readable():
        if classes is None:
            classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not _hidden(entry))
        if not classes:
            raise DataError(f"no class folders in {root}: expected {layout}, but found {describe(root)}")
        files: list[str] = []
        labels: list[int] = []
        digest = hashlib.sha256()
        for label, name in enumerate(classes):
            folder = root / name / inner
            found = images_in(folder)
            if not found:
                raise DataError(f"the class folder {folder} has no images (found {describe(folder)}); {remedy}")
            way = f"{name}/{inner}/" if inner else f"{name}/"
            files += [way + file for file, _, _ in found]
            labels += [label] * len(found)
            digest.update(repr((name, found)).encode())
    return ClassFolders(root, tuple(classes), tuple(files), tuple(labels), digest.hexdigest())


def images_in(folder: Path) -> list[FoundFile]:
    """The image files directly in a folder, sorted by name; none if there is no such folder."""
    return sorted(_find_images(folder)) if folder.is_dir() else []


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


@contextmanager
def readable() -> Iterator[None]:
    """Turns what the system says about an unreadable file or folder into a `DataError`."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}; check that you may read the folder"
        ) from error


def _find_images(folder: Path) -> Iterator[FoundFile]:
    for entry in os.scandir(folder):
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES and not _hidden(entry) and entry.is_file():
            status = entry.stat()
            yield entry.name, status.st_size, status.st_mtime_ns


def _hidden(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".")
