"""The attacker's images and the images to be redrawn: from `--data`, or as the target itself says."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sfumato import data
from sfumato.audit.subject import Subject
from sfumato.data import DataSets, ImageSet, Progress
from sfumato.data.folder import is_unsplit, load_folder, load_unlabelled
from sfumato.data.scan import images_in
from sfumato.errors import ConfigError, DataError
from sfumato.seeds import generator

__all__ = ["DataOptions", "audit_sets", "shuffled"]


@dataclass(frozen=True)
class DataOptions:
    """Where the images of an audit come from; None is not given.

    Attributes:
        data: name of a data set, or a folder of images.
        data_dir: where a named data set lies.
        size: side to which images are resized.
        limit: use only that many training images.
    """

    data: str | None = None
    data_dir: str | None = None
    size: int | None = None
    limit: int | None = None


def audit_sets(subject: Subject, options: DataOptions, progress: Progress | None = None) -> DataSets:
    """The data of an audit: what the options say, else what the target says.

    Files that cannot be read are skipped and listed where the data is a folder of images.

    Raises:
        ConfigError: nobody says which data.
        DataError: the folder holds no images.
    """
    if options.data is None and subject.sets is not None:
        return _limited(subject.sets, options.limit, None, 0)
    own = subject.data_options
    if options.data is None and not own:
        raise ConfigError(
            f"which images? Give --data with a folder of them or a name ({', '.join(data.names())}); the target does "
            "not say"
        )
    if options.data is not None:
        own = {}
    name = options.data or own["data"]
    folder = options.data_dir or own.get("data_dir")
    size = options.size or own.get("size")
    if name not in data.names() or name == "folder":
        where = Path(folder or name).expanduser()
        sets = _read_folder(where, size, progress)
    else:
        sets = data.load(name, folder, seed=0, size=size, progress=progress)
    return _limited(sets, options.limit or own.get("limit"), own.get("test_limit"), own.get("seed", 0))


def shuffled(images: ImageSet, most: int, seed: int, purpose: str) -> ImageSet:
    """At most `most` images in random order, so that the first n of them are a sample for every n."""
    order = torch.randperm(len(images), generator=generator(seed, "audit", purpose))
    return images.subset(order[:most])


def _read_folder(where: Path, size: int | None, progress: Progress | None) -> DataSets:
    if not where.is_dir():
        raise DataError(f"there is no folder {where} and no data set of that name; known are {', '.join(data.names())}")
    has_parts = any((where / part).is_dir() and not images_in(where / part) for part in ("train", "test", "val"))
    if is_unsplit(where) or has_parts:
        return load_folder(where, size=size, progress=progress, skip_broken=True)
    return load_unlabelled(where, size=size, progress=progress, skip_broken=True)


def _limited(sets: DataSets, train: int | None, test: int | None, seed: int) -> DataSets:
    """As a run limits its data, so that a run's own images come out."""
    if train is not None and train < len(sets.train):
        sets = replace(sets, train=data.limit(sets.train, train, seed))
    if test is not None and test < len(sets.test):
        sets = replace(sets, test=data.limit(sets.test, test, 0))
    return sets
