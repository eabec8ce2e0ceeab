"""Images in class folders: DIR/train/<class>/<image> and DIR/test/<class>/<image>, or DIR/<class>/<image>."""

import os
from dataclasses import replace
from pathlib import Path

from sfumato.data.images import TEST_FRACTION, TEST_SEED, Size, read_folders
from sfumato.data.imageset import DataSets, Progress
from sfumato.data.scan import SPLIT_LAYOUT, ClassFolders, describe, images_in, readable, scan, scan_classes
from sfumato.errors import DataError

__all__ = ["is_unsplit", "load_facescrub", "load_folder", "load_unlabelled"]

_LAYOUT = f"{SPLIT_LAYOUT}, or at least two class folders DIR/<class>/<image>.jpg, to be split here"
_PARTS = {"train", "test", "val"}
_FACES_PAGE = "http://vintage.winklerbros.net/facescrub.html"
_FACES_LAYOUT = "one folder per person, DIR/<identity>/<image>.jpg"
_FACES, _PEOPLE = 106_863, 530


def load_folder(
    data_dir: Path | str, *, size: Size = None, progress: Progress | None = None, skip_unreadable: bool = False
) -> DataSets:
    """Read images in class folders as RGB images of one size.

    The split is that of `data_dir`/train and `data_dir`/test (or `val`). Where the class folders lie directly in
    `data_dir`, a fifth of the images of each class is taken for testing, always the same (see `read_folders`). Folders
    inside class folders are read, too.

    The decoded images are cached, keyed by the files' names and bytes.

    Args:
        data_dir: the folder that holds `train` and `test` or `val`, or the class folders.
        size: the side, or (H, W), to which images of other sizes are resized; none demands that all have one size.
        progress: called with (images read, images in all).
        skip_unreadable: leave out files that cannot be read, and list them in the result, instead of refusing.

    Raises:
        DataError: the layout is another one, a class is empty or missing in one part, a file is damaged, or the images
            have different sizes and no `size` is given.
        ConfigError: `size` is not positive.
    """
    folder = Path(data_dir)
    unsplit = is_unsplit(folder)
    parts = [scan_classes(folder, _LAYOUT)] if unsplit else scan(folder, _LAYOUT)
    caveat = _no_split("The folder has no split of its own", " of each class") if unsplit else ""
    return read_folders("folder", *parts, size=size, progress=progress, caveat=caveat, skip_unreadable=skip_unreadable)


def load_unlabelled(
    data_dir: Path | str, *, size: Size = None, progress: Progress | None = None, skip_unreadable: bool = False
) -> DataSets:
    """Read images that have no classes: those directly in DIR/train and DIR/test (or `val`), or directly in DIR.

    Where there is no split, a fifth of the images is taken for testing, always the same. All images get label 0 of the
    one class `unlabelled`, and the result says that they are not labelled. The arguments are those of `load_folder`.

    Raises:
        DataError: there are no images, a file is damaged, or the images have different sizes and no `size` is given.
        ConfigError: `size` is not positive.
    """
    folder = Path(data_dir)
    test_dir = next((folder / name for name in ("test", "val") if images_in(folder / name)), None)
    whole = test_dir is not None and bool(images_in(folder / "train"))
    parts = [_flat(folder / "train"), _flat(test_dir)] if whole and test_dir is not None else [_flat(folder)]
    caveat = "" if whole else _no_split("The folder has no split of its own", "")
    sets = read_folders("folder", *parts, size=size, progress=progress, caveat=caveat, skip_unreadable=skip_unreadable)
    return replace(sets, labelled=False)


def load_facescrub(
    data_dir: Path | str, *, size: Size = None, progress: Progress | None = None, skip_unreadable: bool = False
) -> DataSets:
    """FaceScrub, photographs of 530 people, from one folder per person, resized to 48x48 as in the paper.

    H.-W. Ng and S. Winkler, "A data-driven approach to cleaning large face datasets", ICIP 2014. The authors publish a
    list of addresses and face boxes, not the images; everybody downloads and crops what is still there, so two copies
    are rarely the same. There is no split: a fifth of the images of each person is taken for testing, always the same.

    Args:
        data_dir: the folder of the persons' folders.
        size: another side, or (H, W).
        progress: called with (images read, images in all).
        skip_unreadable: as in `load_folder`.

    Raises:
        DataError: the data set is not there, a person has no image, or a file is damaged.
        ConfigError: `size` is not positive.
    """
    folder = Path(data_dir)
    if not is_unsplit(folder):
        raise DataError(
            f"no FaceScrub in {folder}: expected {_FACES_LAYOUT}, but found {describe(folder)}; ask for the list of "
            f"addresses and boxes on {_FACES_PAGE}, download the images and crop the faces to that layout (a copy with "
            "train/ and test/ in it is read as `folder` with size 48)"
        )
    found = scan_classes(folder, _FACES_LAYOUT)
    caveat = (
        f"{_no_split('FaceScrub has no official split', ' of each person')} This copy holds {len(found.files):,} of "
        f"{_FACES:,} listed images and {len(found.classes)} of {_PEOPLE} people: numbers of different copies do not "
        "compare digit by digit."
    )
    return read_folders(
        "facescrub", found, size=48 if size is None else size, progress=progress, caveat=caveat,
        skip_unreadable=skip_unreadable,
    )  # fmt: skip


def _no_split(subject: str, whose: str) -> str:
    return f"{subject}: {TEST_FRACTION:.0%} of the images{whose}, drawn with seed {TEST_SEED}, are the test set."


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
