"""The attacker's images and the images to be reconstructed: from `--data`, or as the target itself says."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sfumato import data
from sfumato.audit.subject import Subject
from sfumato.data import DataSets, ImageSet, Progress
from sfumato.data.folder import is_unsplit, load_folder, load_unlabelled
from sfumato.data.images import Size, resized
from sfumato.data.scan import images_in
from sfumato.errors import ConfigError, DataError
from sfumato.seeds import generator


@dataclass(frozen=True)
class DataOptions:
    """Where the images of an audit come from; None is not given.

    Attributes:
        data: name of a data set, or a folder of images.
        data_dir: where a named data set lies.
        size: side to which images are resized.
        limit: use only that many training images.
        other: name or folder of images of another origin, which an attacker without the training set has.
        other_dir: where that named data set lies.
    """

    data: str | None = None
    data_dir: str | None = None
    size: int | None = None
    limit: int | None = None
    other: str | None = None
    other_dir: str | None = None


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
    size: Size = options.size or own.get("size")
    shape = subject.input_shape
    takes = (shape[1], shape[2]) if shape is not None and len(shape) == 3 else None
    if size is None and (name not in data.names() or name in data.RESIZED):
        size = takes
    sets = _read(name, options.data_dir or own.get("data_dir"), size, progress)
    sets = _limited(sets, options.limit or own.get("limit"), own.get("test_limit"), own.get("seed", 0))
    if size is None and takes is not None and takes != sets.test.image_shape[1:]:
        train, test = (replace(one, images=resized(one.images, takes)) for one in (sets.train, sets.test))
        sets = replace(sets, train=train, test=test)
    return sets if subject.classes is None else _as_the_model_counts(sets, subject.classes)


def _as_the_model_counts(sets: DataSets, classes: tuple[str, ...]) -> DataSets:
    """The labels as indices of the model's outputs, found by the names of the classes; no labels where they differ."""
    if not sets.labelled or sets.train.classes == classes:
        return sets
    if not set(sets.train.classes) <= set(classes) or len(set(classes)) < len(classes):
        theirs, mine = ", ".join(sets.train.classes[:4]), ", ".join(classes[:4])
        said = (
            f"The classes of the images ({theirs}, ...) are not the model's ({mine}, ...), so no accuracy is measured."
        )
        return replace(sets, labelled=False, caveat=f"{sets.caveat} {said}".strip())
    place = torch.tensor([classes.index(name) for name in sets.train.classes])
    train, test = (ImageSet(one.images, place[one.labels], classes) for one in (sets.train, sets.test))
    return replace(sets, train=train, test=test)


def other_images(options: DataOptions, victim: ImageSet, progress: Progress | None = None) -> ImageSet | None:
    """Images of another origin for the attacker, as many as the victim's and of their size; None if none are given.

    As many, so that only their origin makes the difference.

    Raises:
        ConfigError: their channels differ from the victim's.
        DataError: the folder holds no images.
    """
    if options.other is None:
        if options.other_dir is not None:
            raise ConfigError("other_dir says where other images lie; say with --other which data set they are")
        return None
    channels, height, width = victim.image_shape
    named = options.other in data.names() and options.other != "folder"
    read_at = None if named and options.other not in data.RESIZED else (height, width)
    images = _read(options.other, options.other_dir, read_at, progress).train
    if images.image_shape[0] != channels:
        raise ConfigError(
            f"the attacker's other images have {images.image_shape[0]} channels, the victim's {channels}; give others"
        )
    images = shuffled(images, len(victim), 0, "other")
    return replace(images, images=resized(images.images, (height, width)))


def count_shared(sets: DataSets) -> int:
    """How many test images are training images too, bit for bit."""
    known = {row.numpy().tobytes() for row in sets.train.images}
    return sum(row.numpy().tobytes() in known for row in sets.test.images)


def shuffled(images: ImageSet, most: int, seed: int, purpose: str) -> ImageSet:
    """At most `most` images in random order, so that the first n of them are a sample for every n."""
    order = torch.randperm(len(images), generator=generator(seed, "audit", purpose))
    return images.subset(order[:most])


def _read(name: str, folder: str | None, size: Size, progress: Progress | None) -> DataSets:
    """A named data set, or a folder of images whatever its form."""
    if name in data.names() and name != "folder":
        return data.load(name, folder, seed=0, size=size, progress=progress, skip_unreadable=name in data.SKIPPABLE)
    where = Path(folder or name).expanduser()
    if not where.is_dir():
        raise DataError(f"there is no folder {where} and no data set of that name; known are {', '.join(data.names())}")
    has_parts = any((where / part).is_dir() and not images_in(where / part) for part in ("train", "test", "val"))
    load = load_folder if is_unsplit(where) or has_parts else load_unlabelled
    return load(where, size=size, progress=progress, skip_unreadable=True)


def _limited(sets: DataSets, train: int | None, test: int | None, seed: int) -> DataSets:
    """As a run limits its data, so that a run's own images come out."""
    if train is not None and train < len(sets.train):
        sets = replace(sets, train=data.limit(sets.train, train, seed))
    if test is not None and test < len(sets.test):
        sets = replace(sets, test=data.limit(sets.test, test, 0))
    return sets
