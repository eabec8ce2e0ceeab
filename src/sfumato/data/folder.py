"""Images in class folders: DIR/train/<class>/<image> and DIR/test/<class>/<image>, or DIR/<class>/<image>."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.data.images import TEST_FRACTION, TEST_SEED, Size, of_size, read_folders
from sfumato.data.imageset import DataSets, Progress
from sfumato.data.scan import SPLIT_LAYOUT, ClassFolders, describe, images_in, readable, scan, scan_classes
from sfumato.errors import DataError

__all__ = ["is_unsplit", "load_facescrub", "load_folder", "load_tinyimagenet", "load_unlabelled"]

_LAYOUT = f"{SPLIT_LAYOUT}, or at least two class folders DIR/<class>/<image>.jpg, to be split here"
_PARTS = {"train", "test", "val"}
_FACES_PAGE = "http://vintage.winklerbros.net/facescrub.html"
_FACES_LAYOUT = "one folder per person, DIR/<identity>/<image>.jpg"
_FACES, _PEOPLE = 106_863, 530
_TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY = "tiny-imagenet-200"
_TINY_LAYOUT = "DIR/train/<wnid>/images/<image>.JPEG"
_GET = f"get it with `curl -LO {_TINY_URL} && unzip -q {_TINY}.zip` and pass the folder {_TINY}"
_AGAIN = f"unpack {_TINY}.zip again, from {_TINY_URL}"
_TINY_COMPLETE = (100_000, 10_000)


def load_folder(data_dir: Path | str, **reading: Any) -> DataSets:
    """Read images in class folders as RGB images of one size.

    The split is that of `data_dir`/train and `data_dir`/test (or `val`). Where the class folders lie directly in
    `data_dir`, a fifth of the images of each class is taken for testing, always the same (see `read_folders`). Folders
    inside class folders are read, too.

    The decoded images are cached, keyed by the files' names and bytes. `reading`: `size`, `progress` and
    `skip_unreadable` of `read_folders`.
    """
    folder = Path(data_dir)
    unsplit = is_unsplit(folder)
    parts = [scan_classes(folder, _LAYOUT)] if unsplit else scan(folder, _LAYOUT)
    caveat = _no_split("The folder has no split of its own", " of each class") if unsplit else ""
    return read_folders("folder", *parts, caveat=caveat, **reading)


def load_unlabelled(data_dir: Path | str, **reading: Any) -> DataSets:
    """Read images that have no classes: those directly in DIR/train and DIR/test (or `val`), or directly in DIR.

    Where there is no split, a fifth of the images is taken for testing, always the same. All images get label 0 of the
    one class `unlabelled`, and the result says that they are not labelled. The arguments are those of `load_folder`.
    """
    folder = Path(data_dir)
    test_dir = next((folder / name for name in ("test", "val") if images_in(folder / name)), None)
    whole = test_dir is not None and bool(images_in(folder / "train"))
    parts = [_flat(folder / "train"), _flat(test_dir)] if whole and test_dir is not None else [_flat(folder)]
    caveat = "" if whole else _no_split("The folder has no split of its own", "")
    sets = read_folders("folder", *parts, caveat=caveat, **reading)
    return replace(sets, labelled=False)


def load_facescrub(data_dir: Path | str, *, size: Size = None, **reading: Any) -> DataSets:
    """FaceScrub, photographs of 530 people, from one folder per person, resized to 48x48 as in the paper.

    H.-W. Ng and S. Winkler, "A data-driven approach to cleaning large face datasets", ICIP 2014. The authors publish a
    list of addresses and face boxes, not the images; everybody downloads and crops what is still there, so two copies
    are rarely the same. There is no split: a fifth of the images of each person is taken for testing, always the same.
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
    return read_folders("facescrub", found, size=48 if size is None else size, caveat=caveat, **reading)


def _no_split(subject: str, whose: str) -> str:
    return f"{subject}: {TEST_FRACTION:.0%} of the images{whose}, drawn with seed {TEST_SEED}, are the test set."


def _flat(folder: Path) -> ClassFolders:
    return replace(scan_classes(folder, classes=["."], remedy="name a folder with images"), classes=("unlabelled",))


def is_unsplit(folder: Path) -> bool:
    """Whether class folders lie directly in `folder`: two or more, one of them with images, none called like a part."""
    if not folder.is_dir():
        return False
    with readable():
        inner = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
        if len(inner) < 2 or any(entry.name.lower() in _PARTS for entry in inner):
            return False
        return any(images_in(Path(entry.path)) for entry in inner)


def load_tinyimagenet(data_dir: Path | str, *, progress: Progress | None = None) -> DataSets:
    """TinyImageNet from its unpacked archive: 110,000 labelled colour images of 64 x 64 pixels in 200 classes.

    Y. Le and X. Yang, "Tiny ImageNet visual recognition challenge", 2015.

        train/<wnid>/images/<wnid>_0.JPEG   500 images per class; wnid is WordNet's number, such as n01443537
        val/images/val_0.JPEG               10,000 images
        val/val_annotations.txt             their classes: file name, wnid and a box, separated by tabs
        wnids.txt                           the 200 classes
        words.txt                           names of these and many other classes: wnid, tab, name
        test/                               10,000 images whose classes were never published; not read

    All become RGB images; grey files get three equal channels.

    The test set is the official validation part, because the classes of the official test part are not public. The
    classes are in the order of their wnids, and are called as `words.txt` calls them; where that file is missing, by
    their wnids. `data_dir` is the folder `tiny-imagenet-200`, or the one that holds it.
    """
    folder = Path(data_dir)
    if (folder / _TINY).is_dir():
        folder = folder / _TINY
    needed = ("wnids.txt", "train", "val/images", "val/val_annotations.txt")
    if missing := [name for name in needed if not (folder / name).exists()]:
        raise DataError(
            f"no TinyImageNet in {folder}: there is no {', no '.join(missing)}, but found {describe(folder)}; {_GET}"
        )
    with readable():
        wnids = sorted(set(_read(folder / "wnids.txt").split()))
        train = scan_classes(folder / "train", _TINY_LAYOUT, classes=wnids, remedy=_AGAIN)
        train = replace(train, passed_over=())  # the boxes of each class
        test = _scan_val(folder / "val", wnids)
        classes = _tiny_names(folder / "words.txt", wnids)
    sets = read_folders(
        "tinyimagenet", train, test, progress=progress, caveat=_tiny_caveat(train, test), skip_unreadable=None
    )
    of_size(sets, 64, f"{folder}", _AGAIN)
    train_set, test_set = (replace(part, classes=classes) for part in (sets.train, sets.test))
    return replace(sets, train=train_set, test=test_set)


def _scan_val(root: Path, wnids: list[str]) -> ClassFolders:
    """The validation images, whose classes are in a file."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    found = images_in(root / "images")
    annotations = dict(
        line.split("\t")[:2] for line in _read(root / "val_annotations.txt").splitlines() if line.count("\t") >= 1
    )
    for reason, wrong in (
        ("has no images", ["it"] if not found else []),
        ("lacks annotated images", sorted(set(annotations) - set(found))),
        ("holds images without a class in val_annotations.txt", sorted(set(found) - set(annotations))),
        ("holds images of classes that wnids.txt lacks", sorted(set(annotations.values()) - set(label_of))),
    ):
        if wrong:
            raise DataError(f"{root / 'images'} {reason} ({', '.join(wrong[:3])}, {len(wrong)} in all); {_AGAIN}")
    labels = tuple(label_of[annotations[name]] for name in found)
    return ClassFolders(root, tuple(wnids), tuple(f"images/{name}" for name in found), labels)


def _tiny_names(path: Path, wnids: list[str]) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(wnids)
    words = dict(line.split("\t", 1) for line in _read(path).splitlines() if "\t" in line)
    return tuple(words.get(wnid, wnid) for wnid in wnids)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _tiny_caveat(train: ClassFolders, test: ClassFolders) -> str:
    text = "The test set is TinyImageNet's official validation part: the classes of its test part are not public."
    if (counts := (len(train.files), len(test.files))) == _TINY_COMPLETE:
        return text
    return (
        f"{text} This copy is incomplete: {counts[0]:,} of {_TINY_COMPLETE[0]:,} training images and {counts[1]:,} of "
        f"{_TINY_COMPLETE[1]:,} test images."
    )
