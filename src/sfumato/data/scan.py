"""Finding labelled image files in folders, without reading them; what is passed over is counted."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import DataError

__all__ = [
    "LOSSY_SUFFIXES",
    "SPLIT_LAYOUT",
    "ClassFolders",
    "describe",
    "images_in",
    "printable",
    "readable",
    "scan",
    "scan_classes",
]

LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".webp"})
SUFFIXES = LOSSY_SUFFIXES | {".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
SPLIT_LAYOUT = "DIR/train/<class>/<image>.jpg (or .png, ...) and the same under DIR/test or DIR/val"


@dataclass(frozen=True)
class ClassFolders:
    """The image files of one part of a data set, found but not read."""

    root: Path | None  # the folder of the class folders; None where `contents` are no files
    classes: tuple[str, ...]  # their names, in the order of the labels
    files: tuple[str, ...]  # all images, relative to `root`; links that lead nowhere are among them
    labels: tuple[int, ...]  # the class index of each
    passed_over: tuple[str, ...] = ()  # other files, relative: with another ending, or outside the class folders
    contents: Iterable[bytes | Path] = ()  # of images that are no files in `root`; `files` are then their names

    def name(self, place: int) -> str:
        """What an image is called in a message."""
        return printable(self.files[place] if self.root is None else str(self.root / self.files[place]))


def scan(data_dir: Path, layout: str = SPLIT_LAYOUT) -> tuple[ClassFolders, ClassFolders]:
    """Find the images of DIR/train and DIR/test (or DIR/val), and check that both have the same classes."""
    test_dir = next((data_dir / name for name in ("test", "val") if (data_dir / name).is_dir()), None)
    if not (data_dir / "train").is_dir() or test_dir is None:
        raise DataError(f"no class folders in {data_dir}: expected {layout}, but found {describe(data_dir)}")
    train, test = scan_classes(data_dir / "train", layout), scan_classes(test_dir, layout)
    if train.classes != test.classes:
        lacking = [
            f"{', '.join(sorted(set(other.classes) - set(part.classes))[:5])} in {part.root}"
            for part, other in ((train, test), (test, train))
            if set(other.classes) - set(part.classes)
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
    remedy: str = f"add some ({', '.join(sorted(SUFFIXES))}) or remove the folder",
) -> ClassFolders:
    """Find the images in `root`/<class>/ and the folders inside it, class after class, sorted by path.

    `classes` are the folders to look into, in the order of the labels; none: all there are, sorted. `remedy` says what
    to do about a class folder without images.
    """
    with readable():
        outside: list[str] = []
        if classes is None:
            entries = sorted((entry for entry in os.scandir(root) if not _hidden(entry)), key=lambda entry: entry.name)
            classes = [entry.name for entry in entries if entry.is_dir()]
            outside = [entry.name for entry in entries if not entry.is_dir()]
        if not classes:
            raise DataError(f"no class folders in {root}: expected {layout}, but found {describe(root)}")
        files: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            folder = root / name
            below = sorted(_below(folder, f"{name}/", frozenset())) if folder.is_dir() else []
            found = [path for path, good in below if good]
            if not found:
                raise DataError(f"the class folder {folder} has no images (found {describe(folder)}); {remedy}")
            files += found
            labels += [label] * len(found)
            outside += [path for path, good in below if not good]
    told = (tuple(map(printable, names)) for names in (classes, outside))
    return ClassFolders(root, next(told), tuple(files), tuple(labels), next(told))


def printable(name: str) -> str:
    r"""A name as text that can be written and shown: bytes of a file system that are no UTF-8 as escapes.

    >>> print(printable("caf\udce9"))
    caf\xe9
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def images_in(folder: Path) -> list[str]:
    """The names of the image files directly in a folder, sorted; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir() and _is_image(entry))


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


def _below(folder: Path, way: str, above: frozenset[str]) -> Iterator[tuple[str, bool]]:
    """The files in a folder and in those inside it, and whether each is an image; links upwards are loops."""
    above |= {os.path.join(os.path.realpath(folder), "")}
    for entry in os.scandir(folder):
        if _hidden(entry):
            continue
        if entry.is_dir():
            target = os.path.join(os.path.realpath(entry.path), "")
            if any(place.startswith(target) for place in above):
                continue
            yield from _below(Path(entry.path), f"{way}{entry.name}/", above)
        else:
            yield way + entry.name, _is_image(entry)


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By its name; a pipe or device, which nobody could read to the end, is none, and a link to nowhere is one."""
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES or _hidden(entry):
        return False
    return entry.is_file() or not os.path.exists(entry.path)


def _hidden(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(".")
