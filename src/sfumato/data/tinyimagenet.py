"""TinyImageNet: 110,000 labelled colour images of 64 x 64 pixels in 200 classes, in the official folder layout.

Y. Le and X. Yang, "Tiny ImageNet visual recognition challenge", 2015; http://cs231n.stanford.edu/tiny-imagenet-200.zip

    train/<wnid>/images/<wnid>_0.JPEG   500 images per class; wnid is WordNet's number of the class, such as n01443537
    val/images/val_0.JPEG               10,000 images
    val/val_annotations.txt             their classes: file name, wnid and a box, separated by tabs
    wnids.txt                           the 200 classes
    words.txt                           names of these and many other classes: wnid, tab, name
    test/                               10,000 images whose classes were never published; not read
"""

from dataclasses import replace
from pathlib import Path

from sfumato.data.images import read_folders
from sfumato.data.imageset import DataSets, Progress
from sfumato.data.scan import ClassFolders, describe, images_in, readable, scan_classes
from sfumato.errors import DataError

__all__ = ["load_tinyimagenet"]

_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_FOLDER = "tiny-imagenet-200"
_LAYOUT = "DIR/train/<wnid>/images/<image>.JPEG"
_GET = f"get it with `curl -LO {_URL} && unzip -q {_FOLDER}.zip` and pass the folder {_FOLDER}"
_AGAIN = f"unpack {_FOLDER}.zip again, from {_URL}"
_COMPLETE = (100_000, 10_000)


def load_tinyimagenet(data_dir: Path | str, *, progress: Progress | None = None) -> DataSets:
    """TinyImageNet from its unpacked archive, as RGB images; its grey files get three equal channels.

    The test set is the official validation part, because the classes of the official test part are not public. The
    classes are in the order of their wnids, and are called as `words.txt` calls them; where that file is missing, by
    their wnids. The decoded images are cached as those of `load_folder`.

    Args:
        data_dir: the folder `tiny-imagenet-200`, or the one that holds it.
        progress: called with (images read, images in all).

    Raises:
        DataError: the data set is not there, or incomplete or damaged.
    """
    folder = Path(data_dir)
    if (folder / _FOLDER).is_dir():
        folder = folder / _FOLDER
    needed = ("wnids.txt", "train", "val/images", "val/val_annotations.txt")
    if missing := [name for name in needed if not (folder / name).exists()]:
        raise DataError(
            f"no TinyImageNet in {folder}: there is no {', no '.join(missing)}, but found {describe(folder)}; {_GET}"
        )
    with readable():
        wnids = sorted(set(_read(folder / "wnids.txt").split()))
        train = scan_classes(folder / "train", _LAYOUT, classes=wnids, remedy=_AGAIN)
        train = replace(train, passed_over=())  # the boxes of each class
        test = _scan_val(folder / "val", wnids)
        classes = _names(folder / "words.txt", wnids)
    sets = read_folders("tinyimagenet", train, test, progress=progress, caveat=_caveat(train, test))
    if sets.train.image_shape != (3, 64, 64):
        _, height, width = sets.train.image_shape
        raise DataError(
            f"the images in {folder} have {height}x{width} pixels, but those of TinyImageNet have 64x64; {_AGAIN}"
        )
    named_train, named_test = (replace(part, classes=classes) for part in (sets.train, sets.test))
    return replace(sets, train=named_train, test=named_test)


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


def _names(path: Path, wnids: list[str]) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(wnids)
    words = dict(line.split("\t", 1) for line in _read(path).splitlines() if "\t" in line)
    return tuple(words.get(wnid, wnid) for wnid in wnids)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _caveat(train: ClassFolders, test: ClassFolders) -> str:
    text = "The test set is TinyImageNet's official validation part: the classes of its test part are not public."
    counts = (len(train.files), len(test.files))
    if counts != _COMPLETE:
        text += (
            f" This copy is incomplete: {counts[0]:,} of {_COMPLETE[0]:,} training images "
            f"and {counts[1]:,} of {_COMPLETE[1]:,} test images."
        )
    return text
