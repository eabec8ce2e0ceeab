"""Data sets of the Hugging Face hub, through the optional package `datasets`."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.data.images import both_sides, read_folders
from sfumato.data.imageset import DataSets
from sfumato.data.scan import ClassFolders
from sfumato.errors import ConfigError, DataError, first_line

__all__ = ["load_hub"]

_TEST_NAMES = ("test", "validation", "valid", "val")
_LABEL_NAMES = ("label", "labels", "fine_label")


def load_hub(source: Path | str, **reading: Any) -> DataSets:
    """An image classification data set of the hub, or of a folder that `datasets.save_to_disk` wrote, as RGB images.

    The split `train` is learned from; the test set is the first there is of `test`, `validation`, `valid` and `val`
    whose labels were published (many a `test` has the label -1 throughout). The columns are found by their types: the
    only one of images, and the only `ClassLabel` or, among several, the one called `label`, `labels` or `fine_label`.

    `source` is "owner/name" of the hub, which is downloaded to the cache of `datasets`, or a folder; `reading`: `size`,
    `progress` and `skip_unreadable` of `read_folders`.
    """
    both_sides(reading.get("size"))
    where = Path(source).as_posix()
    splits = _open(where)
    present = [name for name in _TEST_NAMES if name in splits]
    if "train" not in splits or not present:
        raise DataError(
            f"{where} has the splits {', '.join(splits)}; a training needs `train` and one of "
            f"{', '.join(_TEST_NAMES)}: divide it with `train_test_split` and store it with `save_to_disk`"
        )
    columns = {name: _columns(splits[name], f"{where}, split {name}") for name in ("train", *present)}
    labels = {name: np.array(splits[name][column], dtype=np.int64) for name, (_, column) in columns.items()}
    bare = [name for name, values in labels.items() if values.max() < 0]
    test_name = next((name for name in present if name not in bare), None)
    if test_name is None or "train" in bare:
        raise DataError(
            f"the splits {', '.join(bare)} of {where} have no labels (-1 throughout); take a data set whose `train` "
            f"and one of {', '.join(_TEST_NAMES)} have them, or divide `train` with `train_test_split`"
        )
    train, test = (
        ClassFolders(
            root=None,
            classes=tuple(splits[name].features[columns[name][1]].names),
            files=tuple(f"image {index} of {where}, split {name}" for index in range(len(splits[name]))),
            labels=tuple(labels[name].tolist()),
            contents=_contents(splits[name], columns[name][0]),
        )
        for name in ("train", test_name)
    )
    if train.classes != test.classes:
        raise DataError(
            f"the splits of {where} differ: they have {len(train.classes)} and {len(test.classes)} classes; store "
            "splits with the same classes"
        )
    caveat = f"Read from {where}; its split `{test_name}` is the test set."
    if bare:
        caveat += f" The labels of {', '.join(f'`{name}`' for name in bare)} are not published (-1), so it is not read."
    return read_folders("hub", train, test, caveat=caveat, **reading)


def _open(where: str) -> dict[str, Any]:
    """The splits by name."""
    try:
        # Imported by name: the package is optional, and type checkers need not have it.
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ConfigError("data sets of the hub need the package datasets; run `pip install 'sfumato[hf]'`") from error
    local = Path(where).is_dir()
    try:
        found = datasets.load_from_disk(where) if local else datasets.load_dataset(where)
    except Exception as error:
        # Errors of the network, of the hub's client, of the file formats: there is no common class.
        remedy = (
            "a folder has to be one that `save_to_disk` wrote (class folders are read as `folder`)"
            if local
            else "check the name on https://huggingface.co/datasets and the network, or give a folder that "
            "`save_to_disk` wrote"
        )
        raise DataError(f"cannot load the data set {where}: {first_line(error).rstrip('.')}; {remedy}") from error
    return dict(found) if hasattr(found, "keys") else {"(one only)": found}


def _contents(split: Any, column: str) -> Iterator[bytes | Path]:
    rows = split.select_columns([column]).cast_column(column, type(split.features[column])(decode=False))
    for index in range(len(rows)):
        stored = rows[index][column]
        yield stored["bytes"] or (Path(stored["path"]) if stored["path"] else b"")


def _columns(split: Any, where: str) -> tuple[str, str]:
    """The names of the columns of images and of labels."""
    if len(split) == 0:
        raise DataError(f"{where} is empty; choose a data set with images in it")
    kinds = {name: type(feature).__name__ for name, feature in split.features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    if len(labels) > 1:
        labels = [name for name in _LABEL_NAMES if name in labels][:1]
    if len(images) != 1 or len(labels) != 1:
        listing = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise DataError(
            f"{where} has the columns {listing}; needed are one Image and one ClassLabel (or one called label): "
            "`remove_columns` or `class_encode_column` bring it to that form, `save_to_disk` stores it"
        )
    return images[0], labels[0]
