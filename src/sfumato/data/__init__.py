"""Data: sources by name, sets in memory, held-out parts, augmentation on the device.

sets = sfumato.data.load("cifar10", "data/cifar10")
fit, held_out = sfumato.data.hold_out(sets.train, 0.1, seed=0)
"""

from collections.abc import Callable
from pathlib import Path

from sfumato.data.augment import Augmentation
from sfumato.data.imageset import DataSets, ImageSet, Progress
from sfumato.data.split import folds, hold_out, limit
from sfumato.errors import ConfigError

__all__ = ["Augmentation", "DataSets", "ImageSet", "Progress", "folds", "hold_out", "limit", "load", "names"]

_Size = int | tuple[int, int] | None
_Source = Callable[[Path, _Size, Progress | None], DataSets]


def names() -> list[str]:
    """The names that `load` knows."""
    return ["digits", *_FROM_FOLDER]


def load(
    name: str,
    data_dir: Path | str | None = None,
    *,
    seed: int = 0,
    size: _Size = None,
    progress: Progress | None = None,
) -> DataSets:
    """A data set by name.

    - `digits`: 1,797 grey 8x8 digits that come with the package; `seed` decides which fifth of them is the test set.
    - `cifar10`, `cifar100`: the official archives, their folders, or class folders in `data_dir`; downloaded if it is
      empty.
    - `folder`: any images in `data_dir`/train/<class>/ and `data_dir`/test/<class>/.

    Args:
        name: one of `names()`.
        data_dir: the folder that holds the data; for all but `digits`.
        seed: for `digits` only; the other sources bring their own split.
        size: for `folder` only: the side, or (H, W), to which images of other sizes are resized.
        progress: called with (done, total) while reading.

    Raises:
        ConfigError: the name is unknown, or an argument is missing or does not apply.
        DataError: what lies in `data_dir` is not the data set, or damaged.
    """
    if name not in names():
        raise ConfigError(f"unknown data set {name!r}; choose one of {', '.join(names())}")
    if size is not None and name != "folder":
        raise ConfigError(f"size is for the data set `folder` only, {name} has a size of its own; leave it out")
    if name == "digits":
        if data_dir is not None:
            raise ConfigError(f"digits come with the package and are not read from {data_dir}; leave data_dir out")
        from sfumato.data.digits import load_digits

        return load_digits(seed)
    if data_dir is None:
        raise ConfigError(f"{name} needs a folder: pass data_dir (--data-dir), {_CONTENT[name]}")
    return _FROM_FOLDER[name](Path(data_dir), size, progress)


def _cifar10(data_dir: Path, size: _Size, progress: Progress | None) -> DataSets:
    from sfumato.data.cifar import load_cifar10

    return load_cifar10(data_dir, progress=progress)


def _cifar100(data_dir: Path, size: _Size, progress: Progress | None) -> DataSets:
    from sfumato.data.cifar import load_cifar100

    return load_cifar100(data_dir, progress=progress)


def _folder(data_dir: Path, size: _Size, progress: Progress | None) -> DataSets:
    from sfumato.data.folder import load_folder

    return load_folder(data_dir, size=size, progress=progress)


_FROM_FOLDER: dict[str, _Source] = {"cifar10": _cifar10, "cifar100": _cifar100, "folder": _folder}

_CIFAR_CONTENT = "with the official archive or class folders in it, or an empty one to download it"
_CONTENT = {
    "cifar10": _CIFAR_CONTENT,
    "cifar100": _CIFAR_CONTENT,
    "folder": "with train/<class>/<image> and test/<class>/<image> in it",
}
