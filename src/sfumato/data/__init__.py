"""Data: sources by name, sets in memory, held-out parts, augmentation on the device.

```python
sets = sfumato.data.load("cifar10", "data/cifar10")
fit, held_out = sfumato.data.hold_out(sets.train, 0.1, seed=0)
```
"""

from collections.abc import Callable
from pathlib import Path

from sfumato.data.augment import Augmentation
from sfumato.data.imageset import DataSets, ImageSet, Progress, Skipped
from sfumato.data.split import folds, hold_out, limit
from sfumato.errors import ConfigError

__all__ = [
    "RESIZED",
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

_Size = int | tuple[int, int] | None
_Source = Callable[[Path, _Size, Progress | None], DataSets]
_IDX = ("fashion-mnist", "mnist")


def names() -> list[str]:
    """The names that `load` knows."""
    return ["digits", *_IDX, *_FROM_FOLDER]


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

    Raises:
        ConfigError: the name is unknown, or an argument is missing or does not apply.
        DataError: what lies in `data_dir` is not the data set, or damaged.
    """
    if name not in names():
        raise ConfigError(f"unknown data set {name!r}; choose one of {', '.join(names())}")
    if size is not None and name not in RESIZED:
        raise ConfigError(f"size is for {', '.join(RESIZED)}; {name} has a size of its own: leave it out")
    if name == "digits":
        if data_dir is not None:
            raise ConfigError(f"digits come with the package and are not read from {data_dir}; leave data_dir out")
        from sfumato.data.digits import load_digits

        return load_digits(seed, size=size)
    if name in _IDX:
        from sfumato.data.idx import load_idx

        return load_idx(name, data_dir, size=size, progress=progress)
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


def _tinyimagenet(data_dir: Path, size: _Size, progress: Progress | None) -> DataSets:
    from sfumato.data.tinyimagenet import load_tinyimagenet

    return load_tinyimagenet(data_dir, progress=progress)


def _facescrub(data_dir: Path, size: _Size, progress: Progress | None) -> DataSets:
    from sfumato.data.facescrub import load_facescrub

    return load_facescrub(data_dir, size=size, progress=progress)


def _hub(data_dir: Path, size: _Size, progress: Progress | None) -> DataSets:
    from sfumato.data.hub import load_hub

    return load_hub(data_dir, size=size, progress=progress)


_FROM_FOLDER: dict[str, _Source] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "tinyimagenet": _tinyimagenet,
    "facescrub": _facescrub,
    "folder": _folder,
    "hub": _hub,
}
RESIZED = ("digits", *_IDX, "facescrub", "folder", "hub")
"""The sources whose images `load` can resize."""

_CIFAR_CONTENT = "with the official archive or class folders in it, or an empty one to download it"
_CONTENT = {
    "cifar10": _CIFAR_CONTENT,
    "cifar100": _CIFAR_CONTENT,
    "tinyimagenet": "the unpacked http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    "facescrub": "with one folder of images per person in it",
    "folder": "with train/<class>/<image> and test/<class>/<image>, or <class>/<image>, in it",
    "hub": "one that `datasets.save_to_disk` wrote, or a name of the hub such as owner/name",
}
