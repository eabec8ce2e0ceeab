"""Data: sources by name, sets in memory, validation sets, augmentation on the device.

```python
sets = sfumato.data.load("cifar10", "data/cifar10")
fit, validation = sfumato.data.hold_out(sets.train, 0.1, seed=0)
```
"""

import importlib
from pathlib import Path
from typing import NamedTuple

from sfumato.data.augment import Augmentation
from sfumato.data.imageset import DataSets, ImageSet, Progress, Skipped
from sfumato.data.split import folds, hold_out, limit
from sfumato.errors import ConfigError
from sfumato.settings import check_type

__all__ = [
    "RESIZED",
    "SKIPPABLE",
    "Augmentation",
    "DataSets",
    "ImageSet",
    "Progress",
    "Skipped",
    "folds",
    "hold_out",
    "limit",
    "load",
    "names",
]


class _Source(NamedTuple):
    """A data set that `load` knows.

    Attributes:
        reader: the function that reads it, as module:name; imported when it is asked for.
        content: what has to lie in `data_dir`; empty where it may be left out.
        takes: the options of `load` that it knows.
    """

    reader: str
    content: str
    takes: tuple[str, ...] = ("progress",)


_ARCHIVE = "with the official archive or class folders in it, or an empty one to download it"
_FILES = ("progress", "size", "skip_unreadable")
_SOURCES = {
    "digits": _Source("digits:load_digits", "", ("seed", "size")),
    "fashion-mnist": _Source("idx:load_fashion_mnist", "", ("progress", "size")),
    "mnist": _Source("idx:load_mnist", "", ("progress", "size")),
    "cifar10": _Source("cifar:load_cifar10", _ARCHIVE),
    "cifar100": _Source("cifar:load_cifar100", _ARCHIVE),
    "tinyimagenet": _Source(
        "folder:load_tinyimagenet", "the unpacked http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    ),
    "facescrub": _Source("folder:load_facescrub", "with one folder of images per person in it", _FILES),
    "folder": _Source(
        "folder:load_folder", "with train/<class>/<image> and test/<class>/<image>, or <class>/<image>, in it", _FILES
    ),
    "hub": _Source(
        "hub:load_hub", "one that `datasets.save_to_disk` wrote, or a name of the hub such as owner/name", _FILES
    ),
}
RESIZED = tuple(name for name, source in _SOURCES.items() if "size" in source.takes)
"""The sources whose images `load` can resize."""
SKIPPABLE = tuple(name for name, source in _SOURCES.items() if "skip_unreadable" in source.takes)
"""The sources of image files, of which `load` can leave out unreadable ones."""


def names() -> list[str]:
    """The names that `load` knows."""
    return list(_SOURCES)


def load(
    name: str,
    data_dir: Path | str | None = None,
    *,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    progress: Progress | None = None,
    skip_unreadable: bool = False,
) -> DataSets:
    """A data set by name.

    - `digits`: 1,797 grey 8x8 digits that come with the package; `seed` decides which fifth of them is the test set.
    - `fashion-mnist`, `mnist`: the four official IDX files in `data_dir`, compressed or not; `fashion-mnist` without a
      `data_dir` are those of Debian's package `dataset-fashion-mnist`.
    - `cifar10`, `cifar100`: the official archives, their folders, or class folders in `data_dir`; downloaded if it is
      empty.
    - `tinyimagenet`: the unpacked official archive; its validation part is the test set.
    - `facescrub`: one folder per person in `data_dir`, resized to 48x48; a fixed fifth of each is the test set.
    - `folder`: any images in `data_dir/train/<class>/` and `data_dir/test/<class>/`, or in `data_dir/<class>/`, of
      which a fixed fifth is the test set.
    - `hub`: `data_dir` is the name ("owner/name") of a data set of the Hugging Face hub, or a folder that
      `datasets.save_to_disk` wrote; needs the extra `hf`.

    Args:
        name: one of `names()`.
        data_dir: the folder that holds the data; for all but `digits`, and `fashion-mnist` where Debian installed it.
        seed: for `digits` only; the other sources have one split.
        size: the side, or (H, W), to which images of other sizes are resized; for the sources in `RESIZED`.
        progress: called with (done, total) while reading.
        skip_unreadable: leave out image files that cannot be read, and list them in the result; for `folder`,
            `facescrub` and `hub`.

    Raises:
        ConfigError: the name is unknown, or an argument is missing or does not apply.
        DataError: what lies in `data_dir` is not the data set, or damaged.
    """
    if name not in names():
        raise ConfigError(f"unknown data set {name!r}; choose one of {', '.join(names())}")
    if size is not None and name not in RESIZED:
        raise ConfigError(f"size is for {', '.join(RESIZED)}; {name} has a size of its own: leave it out")
    source = _SOURCES[name]
    if skip_unreadable and name not in SKIPPABLE:
        raise ConfigError(
            f"skip_unreadable is for {', '.join(SKIPPABLE)}; the files of {name} have to be complete: leave it out"
        )
    if name == "digits" and data_dir is not None:
        raise ConfigError(f"digits come with the package and are not read from {data_dir}; leave data_dir out")
    check_type("data_dir", data_dir, str | Path | None)
    if data_dir is None and source.content:
        raise ConfigError(f"{name} needs a folder: pass data_dir (--data-dir), {source.content}")
    module, _, function = source.reader.partition(":")
    read = getattr(importlib.import_module(f"sfumato.data.{module}"), function)
    given = {"seed": seed, "size": size, "progress": progress, "skip_unreadable": skip_unreadable}
    place = [] if name == "digits" else [None if data_dir is None else Path(data_dir)]
    sets: DataSets = read(*place, **{option: given[option] for option in source.takes})
    return sets
