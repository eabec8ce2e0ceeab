"""Images in class folders: DIR/train/<class>/<image> and DIR/test/<class>/<image>, or DIR/<class>/<image>."""

import os
from dataclasses import replace
from pathlib import Path

from sfumato.data.imageset import DataSets, Progress
from sfumato.data.reading import TEST_FRACTION, TEST_SEED, Size, read_class_folders, read_unsplit
from sfumato.data.scan import SPLIT_LAYOUT, ClassFolders, describe, images_in, readable, scan, scan_classes

__all__ = ["ClassFolders", "describe", "is_unsplit", "load_folder", "load_unlabelled", "read_class_folders", "scan"]

_LAYOUT = f"{SPLIT_LAYOUT}, or at least two class folders DIR/<class>/<image>.jpg, to be split here"
_PARTS = {"train", "test", "val"}


def load_folder(
    data_dir: Path | str, *, size: Size = None, progress: Progress | None = None, skip_broken: bool = False
) -> DataSets:
    """Read images in class folders as RGB images of one size.

    The split is that of `data_dir`/train and `data_dir`/test (or `val`). Where the class folders lie directly in
    `data_dir`, a fifth of the images of each class is taken for testing, always the same (see `read_unsplit`).

    The decoded images are cached (see `sfumato.data.cache`), keyed by the files' names, sizes and modification times.

    Args:
        data_dir: the folder that holds `train` and `test` or `val`, or the class folders.
        size: the side, or (H, W), to which images of other sizes are resized; none demands that all have one size.
        progress: called with (images read, images in all).
        skip_broken: leave out files that cannot be read, and list them in the result, instead of refusing.

    Raises:
        DataError: the layout is another one, a class is empty or missing in one part, a file is damaged, or the images
            have different sizes and no `size` is given.
        ConfigError: `size` is not positive.
    """
    folder = Path(data_dir)
    if is_unsplit(folder):
        caveat = (
            f"The folder has no split of its own: {TEST_FRACTION:.0%} of the images of each class, drawn with seed "
            f"{TEST_SEED}, are the test set."
        )
        found = scan_classes(folder, _LAYOUT)
        return read_unsplit("folder", found, size=size, progress=progress, caveat=caveat, skip_broken=skip_broken)
    train, test = scan(folder, _LAYOUT)
    return read_class_folders("folder", train, test, size=size, progress=progress, skip_broken=skip_broken)


def load_unlabelled(
    data_dir: Path | str, *, size: Size = None, progress: Progress | None = None, skip_broken: bool = False
) -> DataSets:
    """Read images that have no classes: those directly in DIR/train and DIR/test (or `val`), or directly in DIR.

    Where there is no split, a fifth of the images is taken for testing, always the same. All images get label 0 of the
    one class `unlabelled`, and the result says that they are not labelled.

    Args:
        data_dir: the folder.
        size: as for `load_folder`.
        progress: called with (images read, images in all).
        skip_broken: as for `load_folder`.

    Raises:
        DataError: there are no images, a file is damaged, or the images have different sizes and no `size` is given.
        ConfigError: `size` is not positive.
    """
    folder = Path(data_dir)
    test_dir = next((folder / name for name in ("test", "val") if images_in(folder / name)), None)
    if images_in(folder / "train") and test_dir is not None:
        parts = _flat(folder / "train"), _flat(test_dir)
        sets = read_class_folders("folder", *parts, size=size, progress=progress, skip_broken=skip_broken)
    else:
        caveat = f"The folder has no split of its own: {TEST_FRACTION:.0%} of the images, drawn with seed {TEST_SEED}, "
        caveat += "are the test set."
        sets = read_unsplit(
            "folder", _flat(folder), size=size, progress=progress, caveat=caveat, skip_broken=skip_broken
        )
    return replace(sets, labelled=False)


def _flat(folder: Path) -> ClassFolders:
    return replace(scan_classes(folder, classes=["."], remedy="name a folder with images"), classes=("unlabelled",))


def is_unsplit(folder: Path) -> bool:
    """Whether class folders lie directly in `folder`: two or more, one of them with images, none called like a part.

    Raises:
        DataError: a folder cannot be read.
    """
    if not folder.is_dir():
        return False
    with readable():
        inner = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
        if len(inner) < 2 or any(entry.name.lower() in _PARTS for entry in inner):
            return False
        return any(images_in(Path(entry.path)) for entry in inner)
